"""A run of a supernet of the user's own, by ``network.supernet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsonas._utils import derive_seed, readable_json
from dsonas.run.console import readable_count
from dsonas.run.network_files import Preprocessing, RunError, Shape
from dsonas.run.own_space import CHOICES_FILE, SOURCE_FILE, OwnSpace
from dsonas.run.pipeline import Job
from dsonas.search import ChoiceNetwork, ChoiceSupernet, search_network

COUNTED = ("macs", "params")  # what is counted for a model with choices
OF_BLOCKS = ("auxiliary", "drop_path", "dropout")  # parts of step 3 that stand in our own network


class ChoiceJob(Job):
    """A run in which the user's model with choices is searched in place of our blocks.

    What it finds are choices: the names that are left, by label.
    """

    copied = SOURCE_FILE  # the user's file, in the run folder
    searched = "a supernet of your own"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reporter.unit = "candidates"

    @cached_property
    def _space(self) -> OwnSpace:
        assert self.config.network.supernet is not None
        return OwnSpace.of(self.config.network.supernet)

    @cached_property
    def _supernet(self) -> ChoiceSupernet:
        seed = self.config.seed
        torch.manual_seed(derive_seed(seed, "supernet"))
        shape = Shape.of(self.data)
        return self._space.supernet(shape, self.config.budget, self.config.search, seed)

    def _check_network(self, stages: tuple[str, ...], architecture: Any) -> None:
        for name in self.config.budget.given:
            if name not in COUNTED:
                raise RunError(
                    f"budget.{name} cannot bound {self.searched}, whose cost is counted in "
                    f"{' and '.join(COUNTED)}: bound one of these"
                )
        for name in OF_BLOCKS:
            value = getattr(self.config.train, name)
            if value and "train" in stages:
                raise RunError(
                    f"train.{name} {value} is a part of our own network: give 0, and put it into "
                    "your model"
                )
        copy = self.folder.path / self.copied
        if self.folder.begun is not None and copy.is_file():
            same = copy.read_bytes() == self._source
            self.folder.refuse([] if same else [f"{self._source_path} has changed since"])
        self._check_model()

    def _check_model(self) -> None:
        self._supernet.cost(self._supernet.live)  # made here, it refuses what cannot work

    @property
    def _source_path(self) -> Path | None:
        return self._space.path

    @property
    def _source(self) -> bytes:
        try:
            return self._source_path.read_bytes() if self._source_path else b""
        except OSError:
            return b""  # what is wrong is told by what loads it

    def search(self) -> Mapping[str, Sequence[str]]:
        """Steps 1 and 2; the choices that keep the budget."""
        if "choices" in self._extras:
            return self._extras["choices"]
        supernet, folder = self._supernet, self.folder
        folder.write(SOURCE_FILE, self._source.decode())
        cost = {name: readable_count(supernet.cost(supernet.live, name)) for name in COUNTED}
        self._describe_search(
            f"{len(supernet.live)} choices, {sum(map(len, supernet.live.values()))} candidates, "
            f"{cost['macs']} multiply-adds, {cost['params']} parameters"
        )
        network = ChoiceNetwork(supernet)
        self.engine.place(network)
        stage = search_network(
            network,
            self.data,
            **self._search_options,
        )
        found = dict(stage.searcher.finish().choices)
        network.cpu()  # its memory is for the training now
        self._extras["choices"] = found
        self.resume = None
        folder.write(CHOICES_FILE, readable_json(found, 1) + "\n")
        folder.write_choice_factors(supernet.names, stage.history)
        folder.write_log(self.journal.rows)
        return found

    def drawn(self, found: Mapping[str, Sequence[str]]) -> str:
        """Write the choices, a line each."""
        width = max(map(len, found))
        return "\n".join(f"{label:<{width}}  {', '.join(names)}" for label, names in found.items())

    def _take(self, found: Any) -> nn.Module:
        self._extras["choices"] = found
        torch.manual_seed(derive_seed(self.config.seed, "network"))
        network = self._space.final(Shape.of(self.data), found)
        costs = self._costs(found)
        self.reporter.say(
            f"\n{self.drawn(found)}\n\nnetwork   {readable_count(costs['macs'])} multiply-adds, "
            f"{readable_count(costs['params'])} parameters"
        )
        return network

    def _costs(self, found: Any) -> dict[str, Any]:
        supernet = self._supernet
        whole = {f"supernet_{name}": int(supernet.cost(supernet.names, name)) for name in COUNTED}
        return {
            **{name: int(supernet.cost(found, name)) for name in COUNTED},
            **whole,
            "live_connections": sum(map(len, found.values())),
            "supernet_connections": sum(map(len, supernet.names.values())),
        }

    def _write_network(self, found: Any, network: Any) -> None:
        self.folder.write(CHOICES_FILE, readable_json(found, 1) + "\n")
        preprocessing, shape = Preprocessing.of(self.data), Shape.of(self.data)
        self.folder.write_network(network, preprocessing, shape, supernet=self._space.function)
