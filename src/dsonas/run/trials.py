"""Short trainings at the budget by which a search makes its last choice, see ``refining``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from dsonas._utils import derive_seed
from dsonas.cost import CostFunction, InfeasibleBudgetError
from dsonas.data import Batches, ImageData, ImageSet, split_for_search
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.run.console import Reporter
from dsonas.run.fitting import fit_to_budget
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder
from dsonas.search import refine
from dsonas.train import DivergedError, Engine, Journal, Training, run_stage

FILE = "trials.json"


@dataclass
class Trials:
    """Train structures on the weight part of the training set, measure them on the other part.

    The losses are kept in the run folder, so that a search that was interrupted goes on behind the
    last trial that was finished; at other bounds or with other trainings it begins anew.

    Args:
        config: how to train, and for how many epochs; its seed fixes everything.
        data: only its training images are used.
        engine: device, precision, processes.
        cost: all measures of an architecture.
        folder: of the run.
        reporter: told about every trial.
        stop: polled after every step.
    """

    config: RunConfig
    data: ImageData
    engine: Engine
    cost: CostFunction
    folder: RunFolder
    reporter: Reporter
    stop: Callable[[], bool]
    losses: list[float] = field(init=False, default_factory=list)
    seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        path = self.folder.path / FILE
        held = json.loads(path.read_text()) if path.exists() else {}
        if held.get("settings") == self._settings():
            self.losses, self.seconds = held["losses"], held["seconds"]

    def _settings(self) -> dict[str, Any]:
        """What a loss depends on, besides what does not change in a run folder."""
        config = self.config
        return {
            "bounds": config.budget.bounds,
            "channel_multiple": config.network.channel_multiple,
            "trial_epochs": config.search.trial_epochs,
            "train": asdict(config.train),
        }

    def choose(self, chain: Sequence[Architecture]) -> list[Architecture]:
        """The chain with the chosen structure last; as it is, without trials or a budget.

        Raises:
            Interrupted: if ``stop()`` says so; the trial that was running is lost.
        """
        search = self.config.search
        if not self.wanted:
            return list(chain)
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "trials"))
        shared = search.space == "share"
        return refine(chain, search.trials, self._trial, generator, shared=shared)

    @property
    def wanted(self) -> bool:
        """Whether there are any: they need a budget."""
        return bool(self.config.search.trials and self.config.budget.bounds)

    def fit(self, chain: Sequence[Architecture]) -> Architecture:
        """What meets the budget of a chosen chain: its last member, as the trials measured it.

        The whole chain without trials, or where that member is too large at any width.

        Raises:
            InfeasibleBudgetError: if nothing of the chain meets the budget.
        """
        if self.wanted:
            with suppress(InfeasibleBudgetError):
                return fit_to_budget(chain[-1:], self.config, self.cost)
        return fit_to_budget(chain, self.config, self.cost)

    def _trial(self, structure: Architecture, number: int) -> float:
        losses = self.engine.processes.decide(lambda: self.losses)
        if number < len(losses):
            return losses[number]
        seed, start = derive_seed(self.config.seed, "trial", number), time.perf_counter()
        try:
            fitted = fit_to_budget([structure], self.config, self.cost)
            loss = self._loss(fitted, seed)
        except (DivergedError, InfeasibleBudgetError):
            loss = math.inf
        self.losses.append(loss)
        self.seconds += time.perf_counter() - start
        held = {"settings": self._settings(), "losses": self.losses, "seconds": self.seconds}
        self.folder.write(FILE, json.dumps(held) + "\n")
        self.reporter.say(f"trial {number + 1} of {self.config.search.trials}  loss {loss:.4f}")
        return loss

    def _loss(self, architecture: Architecture, seed: int) -> float:
        """The loss on the factor part after a short training on the weight part."""
        epochs = self.config.search.trial_epochs
        train = replace(self.config.train, epochs=epochs, evaluate_every=epochs)
        split = derive_seed(self.config.seed, "split")
        parts = split_for_search(self.data.train, self.config.data.lambda_fraction, split)
        torch.manual_seed(seed)
        network = Network(architecture, auxiliary=train.auxiliary > 0, dropout=train.dropout)
        self.engine.place(network)
        stage = Training(
            network,
            self._batches(parts[0], seed, train.batch_size, learns=True),
            self._batches(parts[1], seed, train.batch_size, learns=False),
            train,
            self.engine,
            seed,
        )
        journal = Journal(stop=self.stop)
        run_stage(stage, journal, self.engine.device, None, self.engine.processes)
        return float(journal.rows[-1]["test_loss"])

    def _batches(self, images: ImageSet, seed: int, size: int, *, learns: bool) -> Batches:
        return Batches(
            images,
            self.data,
            batch_size=size,
            augmentation=self.data.train_augmentation if learns else None,
            shuffle=learns,
            drop_last=learns,
            seed=seed,
            device=self.engine.device,
            workers=self.config.data.workers,
            share=self.engine.processes.share,
        )
