"""The whole job: search, fit the width, train, measure; and the same steps one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from dsonas._utils import derive_seed
from dsonas.cost import (
    CostFunction,
    architecture_cost,
    chain_to_json,
    check_reachable,
    latency_from_table,
)
from dsonas.data import ImageData, load_data
from dsonas.graph import Architecture, draw_architecture
from dsonas.nn import AuxiliaryHead, Network
from dsonas.run.console import Reporter, readable_count
from dsonas.run.fitting import check_known, final_latency, fit_to_budget, parts_table, run_measures
from dsonas.run.measuring import (
    check_fits,
    class_metrics,
    held_out_batches,
    predictions_csv,
    training_batches,
)
from dsonas.run.network_files import Shape
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import Preprocessing, RunError, RunFolder, versions
from dsonas.run.tracking import Tracking
from dsonas.search import search
from dsonas.train import (
    MEASUREMENTS,
    STAGES,
    Engine,
    Journal,
    Outcome,
    Training,
    World,
    classify,
    run_stage,
)


@dataclass
class Job:
    """A run in progress."""

    config: RunConfig  # what to do
    folder: RunFolder  # where it is kept
    reporter: Reporter  # where it is shown
    stop: Callable[[], bool] = lambda: False  # polled after every step; True saves and ends
    # the processes that do it together; only the first should write and show
    world: World = field(default_factory=World)
    measurements: int = MEASUREMENTS  # about how often a training measures the test error
    images: ImageData | None = None  # its data, if they are loaded already
    engine: Engine = field(init=False)
    data: ImageData = field(init=False)
    journal: Journal = field(init=False)
    resume: dict[str, Any] | None = field(init=False)
    outcome: Outcome | None = None  # of the test images, at the end

    def __post_init__(self) -> None:
        self.tracking = Tracking(self.config, self.folder, writes=self.folder.writes)
        self.engine = Engine(self.config.engine, self.world)
        if self.config.data.source == "folder" and (root := self.config.data.root):
            self.folder.require_outside(root)
        self.data = self.images or self.engine.processes.one_before_others(
            partial(load_data, self.config.data, self.config.seed)
        )
        self.resume = self.engine.processes.decide(lambda: self.folder.last_checkpoint)
        saved = self.resume or {}
        self.journal = Journal(
            rows=list(saved.get("rows", ())),
            seconds=dict(saved.get("seconds", {})),
            save=self._save,
            report=self.reporter.step,
            stop=self.stop,
            save_every=self.config.engine.checkpoint_seconds,
        )
        self.measures = run_measures(self.config, self.latency)
        self._extras: dict[str, Any] = dict(saved.get("extras", {}))
        self._require_same_images()
        if self.data.layout:
            self.reporter.say(f"images    {self.data.layout}")
        if self.resume:
            stage, epoch = self.resume["stage"], self.resume["epoch"]
            self.reporter.say(f"resuming {stage} after {epoch} epochs")

    def _require_same_images(self) -> None:
        """Refuse to go on with other classes or files than the run has used so far."""
        known, now = self._extras.get("data"), self.data.identity
        if known is not None and known != now:
            self.folder.require_images(self.data.split)
            raise RunError(
                f"{self.folder.path} was begun with other images (files or labels): put them back "
                "as they were, or choose another --out"
            )
        self._extras["data"] = now

    def write_split(self) -> None:
        """Write which file of an image folder is for what."""
        if self.data.split is not None:
            self.folder.write("split.csv", self.data.split.to_csv())

    def latency(self, architecture: Architecture) -> float:
        """Milliseconds that a budget bounds, as the first process measures them, for all."""
        if self.config.engine.latency_table is not None:
            return self._by_parts(architecture)
        return self.engine.processes.decide(lambda: self._meter(architecture))

    @cached_property
    def _by_parts(self) -> CostFunction:
        """By a table, given or measured, that the run keeps from its begin."""
        if "latency_table" not in self._extras:
            supernet = self.config.space(self.data).complete()
            self._extras["latency_table"] = self.engine.processes.decide(
                lambda: parts_table(self.config, self.engine, supernet)
            )
        return latency_from_table(self._extras["latency_table"])

    @cached_property
    def _meter(self) -> CostFunction:
        return final_latency(self.config, self.engine)

    def _save(self, state: dict[str, Any]) -> None:
        self.folder.checkpoints.save({**state, "extras": self._extras})
        self.folder.write_log(self.journal.rows)
        self.tracking.write(self.journal.rows)

    def check(
        self, stages: tuple[str, ...] = STAGES, architecture: Architecture | None = None
    ) -> None:
        """Refuse, before anything is written, what cannot work; lower batches that are too large.

        An architecture is what is to be trained, if it is not to be searched.
        """
        self.config, told = self.config.with_fitting_batches(self.data, stages, self.world.size)
        if told:
            self.reporter.say(told)
        for stage in stages:
            size = getattr(self.config, stage).batch_size
            self.world.check_batch_size(f"{stage}.batch_size", size)
        self._check_network(stages, architecture)

    def _check_network(self, stages: tuple[str, ...], architecture: Architecture | None) -> None:
        """Refuse what cannot work of the network and its budget."""
        supernet = self.config.space(self.data).complete()
        check_known(architecture or supernet, self.config, self.measures)
        if architecture is None:
            multiple = self.config.network.channel_multiple
            check_reachable(supernet, self.config.budget, self.measures, multiple)
        else:
            check_fits(Shape.of(architecture.skeleton), self.data)
        if "train" in stages and self.config.train.auxiliary:
            with torch.device("meta"):
                AuxiliaryHead((architecture or supernet).skeleton)

    def search(self) -> Any:
        """Steps 1 and 2; the architecture that meets the budget, in structure and width.

        The structure is the one found, unless no width of it comes close (see ``fit_chain``).
        """
        if "architecture" in self._extras:
            return Architecture.from_json(self._extras["architecture"])
        space = self.config.space(self.data)
        supernet, cost = space.complete(), architecture_cost(space.complete())
        self._describe_search(
            f"{supernet.num_live} connections, {space.num_factors} scaling "
            f"factors ({space.sharing}), {readable_count(cost.macs)} multiply-adds, "
            f"{readable_count(cost.params)} parameters"
        )
        result = search(
            space,
            self.data,
            budget=self.config.budget,
            measures=run_measures(self.config, lambda net: self._by_parts(net)),
            **self._search_options,
        )
        self.folder.write("chain.json", chain_to_json(result.chain))
        architecture = fit_to_budget(result.chain, self.config, self.measures)
        self._extras["architecture"] = architecture.to_json()
        self._extras["factors"] = result.factors
        self.resume = None
        self.folder.write("architecture.json", architecture.to_json())
        self.folder.write_factors(result.supernet.blocks[0], result.history)
        self.folder.write_log(self.journal.rows)
        return architecture

    @property
    def _search_options(self) -> dict[str, Any]:
        """What a search of any supernet is done with."""
        config = self.config
        return {
            "seed": config.seed,
            "factor_split": config.data.factor_split,
            "pretrain": config.pretrain,
            "config": config.search,
            "engine": self.engine,
            "journal": self.journal,
            "resume": self.resume,
            "workers": config.data.workers,
        }

    def _describe_search(self, supernet: str) -> None:
        """Say what is searched, on which images."""
        self.reporter.say(f"data      {self.data.summary}\nsupernet  {supernet}")

    def drawn(self, found: Any) -> str:
        """Draw what a search has found, as text."""
        return draw_architecture(found)

    def _take(self, found: Any) -> nn.Module:
        """Go on with what was found: keep it, say what it is, and make its network."""
        self._extras["architecture"] = found.to_json()
        cost, train = architecture_cost(found), self.config.train
        self.reporter.say(
            f"\n{self.drawn(found)}\n\nnetwork   "
            f"{'-'.join(map(str, found.skeleton.channels))} channels, "
            f"{readable_count(cost.macs)} multiply-adds, {readable_count(cost.params)} parameters"
        )
        torch.manual_seed(derive_seed(self.config.seed, "network"))
        return Network(found, auxiliary=train.auxiliary > 0, dropout=train.dropout)

    def train(self, found: Any) -> dict[str, Any]:
        """Step 3, of what ``search`` returns; the metrics, also written with the network."""
        found = self.engine.processes.decide(lambda: found)
        network = self._take(found)
        config, seed = self.config, self.config.seed
        self.engine.place(network)
        batches = training_batches(self.data, self.engine, config)
        test = held_out_batches(self.data, self.engine, config.data.workers)
        val = None
        if self.data.val is not None:
            val = held_out_batches(self.data, self.engine, config.data.workers, self.data.val)
        stage = Training(
            network, batches, test, config.train, self.engine, seed, self.measurements, val
        )
        begun = self.resume is not None and self.resume["stage"] == stage.name
        resume = self.resume if begun else None
        run_stage(stage, self.journal, self.engine.device, resume, self.engine.processes)
        best = stage.keep_best()
        self.outcome = classify(network, test, self.engine)
        return self._finish(found, network, best)

    def _costs(self, found: Any) -> dict[str, Any]:
        """What the network costs, and how much of the supernet it is."""
        skeleton = found.skeleton
        supernet = Architecture.complete(skeleton, found.operations, found.num_levels)
        timed = self.config.budget.latency_ms is not None
        return {
            **asdict(architecture_cost(found)),
            **({"latency_ms": round(self.latency(found), 4)} if timed else {}),
            "live_connections": found.num_live,
            "supernet_connections": supernet.num_live,
            "channels": list(skeleton.channels),
        }

    def _write_network(self, found: Any, network: Any) -> None:
        self.folder.write_network(network, Preprocessing.of(self.data), Shape.of(self.data))

    def _finish(self, found: Any, network: nn.Module, best: dict[str, float]) -> dict[str, Any]:
        seconds, outcome = self.journal.seconds, self.outcome
        assert outcome is not None
        metrics = {
            "test_error": round(outcome.error, 6),
            "test_loss": round(outcome.loss, 6),
            **{name: round(value, 6) for name, value in best.items()},
            **self._costs(found),
            "search_seconds": round(seconds.get("pretrain", 0) + seconds.get("search", 0), 3),
            "train_seconds": round(seconds.get("train", 0), 3),
            "seed": self.config.seed,
            "skipped_images": len(self.data.skipped),
            **({"shards": shards} if (shards := self.data.shards) else {}),
            "device": str(self.engine.device),
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
            "versions": versions(),
            **class_metrics(outcome, self.data.class_names),
        }
        self.write_split()
        self._write_network(found, network)
        self.folder.write_log(self.journal.rows)
        self.folder.write("predictions.csv", predictions_csv(outcome, self.data))
        self.folder.write_metrics(metrics)
        return metrics
