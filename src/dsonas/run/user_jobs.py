"""Runs of a model of the user's: a supernet with choices, or a trained model to compress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dsonas._utils import derive_seed, fingerprint, readable_json
from dsonas.run.console import readable_count
from dsonas.run.network_files import Preprocessing, RunError, Shape
from dsonas.run.pipeline import Job
from dsonas.run.runs import COMPRESSED_FILE, MODEL_FOLDER, MODEL_SOURCE
from dsonas.run.user_models import (
    CHOICES_FILE,
    SOURCE_FILE,
    LibraryModel,
    OwnModel,
    OwnSpace,
    contiguous,
    give_weights,
    named_model,
)
from dsonas.search import ChoiceNetwork, ChoiceSupernet, ScaledSupernet, scale_model, search_network
from dsonas.sparse import load_model, save_model

COUNTED = ("macs", "params")  # what is counted for a model of the user's
OF_BLOCKS = ("auxiliary", "drop_path", "dropout")  # parts of step 3 that stand in our own network


class _OwnJob(Job):
    """A run in which a model of the user's is searched in place of our blocks."""

    searched: ClassVar[str]  # what it is called in a message
    unit: ClassVar[str]  # what scaling factors belong to
    copied: ClassVar[str]  # the user's file, in the run folder
    kept: ClassVar[str]  # the name under which checkpoints keep what was found
    _model: OwnModel | LibraryModel
    _supernet: Any
    _described: Any  # how many parts of the supernet can go
    _found: Callable[..., Any]  # what a search has left, which also writes its files
    _final: Callable[[Any], nn.Module]  # the network to train

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reporter.unit = self.unit

    @property
    def _source(self) -> bytes:
        """The user's file; nothing where there is none, or it cannot be read."""
        try:
            return self._model.path.read_bytes() if isinstance(self._model, OwnModel) else b""
        except OSError:
            return b""  # what is wrong is told by what loads it

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
        if self.folder.begun is not None and copy.is_file() and isinstance(self._model, OwnModel):
            same = copy.read_bytes() == self._source
            self.folder.refuse([] if same else [f"{self._model.path} has changed since"])
        _ = self._supernet  # made here, it refuses what cannot work

    def search(self) -> Any:
        """Steps 1 and 2; what keeps the budget."""
        if self.kept in self._extras:
            return self._extras[self.kept]
        if isinstance(self._model, OwnModel):
            self.folder.write(self.copied, self._source.decode())
        supernet = self._supernet
        costs = {name: int(supernet.cost(supernet.live, name)) for name in COUNTED}
        self._describe_search(f"{self._described}, {_counts(costs)}")
        network = ChoiceNetwork(supernet)
        self.engine.place(network)
        stage = search_network(network, self.data, **self._search_options)
        self._extras[self.kept] = self._found(stage, network, costs)
        network.cpu()  # its memory is for the training now
        self.resume = None
        self.folder.write_log(self.journal.rows)
        return self._extras[self.kept]

    def _take(self, found: Any) -> nn.Module:
        self._extras[self.kept] = found
        network = self._final(found)
        self.reporter.say(f"\n{self.drawn(found)}\n\nnetwork   {_counts(self._costs(found))}")
        return network


def _counts(costs: Mapping[str, int]) -> str:
    macs, params = (readable_count(costs[name]) for name in COUNTED)
    return f"{macs} multiply-adds, {params} parameters"


class ChoiceJob(_OwnJob):
    """A run that searches the choices of ``network.supernet``.

    What it finds are the names that are left, by label.
    """

    searched, unit = "a supernet of your own", "candidates"
    copied, kept = SOURCE_FILE, "choices"

    @cached_property
    def _model(self) -> OwnSpace:
        assert self.config.network.supernet is not None
        return OwnSpace.of(self.config.network.supernet)

    @cached_property
    def _supernet(self) -> ChoiceSupernet:
        seed = self.config.seed
        torch.manual_seed(derive_seed(seed, "supernet"))
        shape = Shape.of(self.data)
        supernet = self._model.supernet(shape, self.config.budget, self.config.search, seed)
        supernet.cost(supernet.live)  # refuses what cannot be counted
        return supernet

    @property
    def _described(self) -> str:
        live = self._supernet.live
        return f"{len(live)} choices, {sum(map(len, live.values()))} candidates"

    def _found(self, stage: Any, network: ChoiceNetwork, costs: dict[str, int]) -> Any:
        found = dict(stage.searcher.finish().choices)
        self.folder.write(CHOICES_FILE, readable_json(found, 1) + "\n")
        self.folder.write_choice_factors(self._supernet.names, stage.history)
        return found

    def drawn(self, found: Mapping[str, Sequence[str]]) -> str:
        """Write the choices, a line each."""
        width = max(map(len, found))
        return "\n".join(f"{label:<{width}}  {', '.join(names)}" for label, names in found.items())

    def _final(self, found: Any) -> nn.Module:
        torch.manual_seed(derive_seed(self.config.seed, "network"))
        return self._model.final(Shape.of(self.data), found)

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
        self.folder.write_network(network, preprocessing, shape, supernet=self._model.function)


@dataclass
class CompressJob(_OwnJob):
    """A run that searches the branches and channels of a trained model, and trains what is left.

    What it finds are the numbers of ``compressed.json``; the network itself is in the folder.
    """

    place: str = ""  # see ``named_model``
    # a file of its ``state_dict``; None: those that the user's function gives
    weights: str | None = None

    searched, unit = "a model of your own", "branches and channels"
    copied, kept = MODEL_SOURCE, "compressed"

    @cached_property
    def _model(self) -> LibraryModel | OwnModel:
        return named_model(self.place)

    @cached_property
    def _supernet(self) -> ScaledSupernet:
        if self.weights is None and isinstance(self._model, LibraryModel):
            raise RunError(
                f"--weights is required with --model {self.place}, whose weights would be random: "
                "give a file of the state_dict of your trained model"
            )
        if self.weights is not None:
            now = fingerprint(Path(self.weights))
            if self._extras.setdefault("weights", now) != now:
                self.folder.refuse([f"--weights {self.weights} has changed since"])
        shape = Shape.of(self.data)
        torch.manual_seed(derive_seed(self.config.seed, "supernet"))
        model = self._model.model(shape)
        if self.weights is not None:
            give_weights(model, Path(self.weights), shape.num_classes)
        example = torch.zeros(1, shape.input_channels, shape.image_size, shape.image_size)
        return scale_model(model, example, self.config.budget, self.config.search)

    @property
    def _described(self) -> str:
        return f"{self.place}, {sum(map(len, self._supernet.live))} branches and channels"

    def _found(self, stage: Any, network: ChoiceNetwork, costs: dict[str, int]) -> Any:
        network.train_only("weights")  # what the user has frozen stays so
        network.cpu()
        result, supernet = stage.searcher.finish(), self._supernet
        sizes = zip(supernet.labels, supernet.live, strict=True)
        found = {
            "model": self.place,
            "left": {label: [sum(flags), len(flags)] for label, flags in sizes},
            **{name: int(supernet.cost(supernet.live, name)) for name in COUNTED},
            **{f"supernet_{name}": value for name, value in costs.items()},
        }
        if isinstance(self._model, OwnModel):  # the copy of the user's file makes it again
            found["model"] = f"{MODEL_SOURCE}:{self._model.function}"
        save_model(result.model, self.folder.path / MODEL_FOLDER)
        self.folder.write(COMPRESSED_FILE, readable_json(found, 2) + "\n")
        return found

    def drawn(self, found: Any) -> str:
        """Write how much is left of every sum, concatenation and group of channels, a line each."""
        width = max(map(len, found["left"]))
        return "\n".join(f"{label:<{width}}  {kept:>5} of {whole}"
                         for label, (kept, whole) in found["left"].items())  # fmt: skip

    def _final(self, found: Any) -> nn.Module:
        model = self._model.model(Shape.of(self.data))
        network = load_model(self.folder.path / MODEL_FOLDER, model)
        network.register_forward_pre_hook(contiguous)
        return network.train()

    def _costs(self, found: Any) -> dict[str, Any]:
        numbers = {name: value for name, value in found.items() if isinstance(value, int)}
        kept, whole = zip(*found["left"].values(), strict=True)
        return {**numbers, "live_connections": sum(kept), "supernet_connections": sum(whole)}

    def _write_network(self, found: Any, network: Any) -> None:
        save_model(network, self.folder.path / MODEL_FOLDER)
        super()._write_network(found, network)
