"""A run that brings a trained model to a budget: ``dsonas compress``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsonas._utils import derive_seed, readable_json
from dsonas.run.choice_job import COUNTED, ChoiceJob
from dsonas.run.console import readable_count
from dsonas.run.network_files import Preprocessing, RunError, Shape
from dsonas.run.own_space import OwnModel, contiguous
from dsonas.run.runs import COMPRESSED_FILE, MODEL_FOLDER, MODEL_SOURCE
from dsonas.run.trained_model import LibraryModel, fingerprint, give_weights, named_model
from dsonas.search import ChoiceNetwork, ScaledSupernet, scale_model, search_network
from dsonas.sparse import load_model, save_model


@dataclass
class CompressJob(ChoiceJob):
    """A run that searches the branches and channels of a trained model, and trains what is left.

    What it finds are the numbers of ``compressed.json``; the network itself is in the folder.
    """

    place: str = ""  # see ``named_model``
    # a file of its ``state_dict``; None: those that the user's function gives
    weights: str | None = None

    copied = MODEL_SOURCE
    searched = "a model of your own"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reporter.unit = "branches and channels"

    @cached_property
    def _model(self) -> LibraryModel | OwnModel:
        return named_model(self.place)

    @property
    def _source_path(self) -> Path | None:
        return self._model.path if isinstance(self._model, OwnModel) else None

    @cached_property
    def _scaled(self) -> ScaledSupernet:
        shape = Shape.of(self.data)
        torch.manual_seed(derive_seed(self.config.seed, "supernet"))
        model = self._model.model(shape)
        if self.weights is not None:
            give_weights(model, Path(self.weights), shape.num_classes)
        example = torch.zeros(1, shape.input_channels, shape.image_size, shape.image_size)
        return scale_model(model, example, self.config.budget, self.config.search)

    def _check_model(self) -> None:
        if self.weights is None and isinstance(self._model, LibraryModel):
            raise RunError(
                f"--weights is required with --model {self.place}, whose weights would be random: "
                "give a file of the state_dict of your trained model"
            )
        if self.weights is not None:
            now = fingerprint(Path(self.weights))
            if self._extras.setdefault("weights", now) != now:
                self.folder.refuse([f"--weights {self.weights} has changed since"])
        _ = self._scaled  # made here, it refuses what cannot work

    def search(self) -> dict[str, Any]:
        """Step 2; what it has left, see ``compressed.json``."""
        if "compressed" in self._extras:
            return self._extras["compressed"]
        supernet, folder = self._scaled, self.folder
        if self._source_path is not None:
            folder.write(MODEL_SOURCE, self._source.decode())
        whole = supernet.live
        cost = {name: int(supernet.cost(whole, name)) for name in COUNTED}
        self._describe_search(
            f"{self.place}, {sum(map(len, whole))} branches and channels, "
            f"{readable_count(cost['macs'])} multiply-adds, "
            f"{readable_count(cost['params'])} parameters"
        )
        network = ChoiceNetwork(supernet)
        self.engine.place(network)
        stage = search_network(network, self.data, **self._search_options)
        network.train_only("weights")  # what the user has frozen stays so
        network.cpu()
        result = stage.searcher.finish()
        live = supernet.live
        sizes = zip(supernet.labels, live, strict=True)
        found = {
            "model": self._recorded_place,
            "left": {label: [sum(flags), len(flags)] for label, flags in sizes},
            **{name: int(supernet.cost(live, name)) for name in COUNTED},
            **{f"supernet_{name}": value for name, value in cost.items()},
        }
        save_model(result.model, folder.path / MODEL_FOLDER)
        folder.write(COMPRESSED_FILE, readable_json(found, 2) + "\n")
        folder.write_log(self.journal.rows)
        self._extras["compressed"] = found
        self.resume = None
        return found

    @property
    def _recorded_place(self) -> str:
        """What makes the model again: a library, or the copy of the user's file."""
        if isinstance(self._model, OwnModel):
            return f"{MODEL_SOURCE}:{self._model.function}"
        return self.place

    def drawn(self, found: Any) -> str:
        """Write how much is left of every sum, concatenation and group of channels, a line each."""
        width = max(map(len, found["left"]))
        return "\n".join(f"{label:<{width}}  {kept:>5} of {whole}"
                         for label, (kept, whole) in found["left"].items())  # fmt: skip

    def _take(self, found: Any) -> nn.Module:
        self._extras["compressed"] = found
        self.reporter.say(
            f"\n{self.drawn(found)}\n\nnetwork   {readable_count(found['macs'])} multiply-adds, "
            f"{readable_count(found['params'])} parameters"
        )
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
        shape = Shape.of(self.data)
        self.folder.write_network(network, Preprocessing.of(self.data), shape)
