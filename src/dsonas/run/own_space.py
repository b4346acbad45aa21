"""A model of the user's own in a run: from ``FILE.py:FUNCTION`` to the network found in it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dsonas._utils import import_file, told_by
from dsonas.cost import Budget
from dsonas.run.network_files import RunError, Shape
from dsonas.search import ChoiceSupernet, SearchConfig
from dsonas.sparse import Choice, apply_choices, choices_of, copied

SOURCE_FILE, CHOICES_FILE = "supernet.py", "choices.json"  # in a run folder


@dataclass(frozen=True)
class OwnModel:
    """A function of the user's that returns a model.

    It is called by name with those of ``num_classes``, ``in_channels`` and ``image_size`` that it
    takes. The model maps images (B, in_channels, image_size, image_size) to logits (B,
    num_classes).
    """

    option: ClassVar[str] = "--model"
    path: Path  # the file; it stands by itself, for a run keeps a copy
    function: str  # a name in it; a class will do

    @classmethod
    def of(cls, place: str) -> Self:
        """Read ``FILE.py:FUNCTION``.

        Raises:
            RunError: if it is something else.
        """
        path, _, function = place.rpartition(":")
        if not path or not function.isidentifier():
            raise RunError(f"{cls.option} must be FILE.py:FUNCTION, got {place!r}")
        return cls(Path(path), function)

    def model(self, shape: Shape) -> nn.Module:
        """Call the function, and the model once, with images of zeros.

        Raises:
            RunError: if there is no such function, it fails, or what it returns is no model for
                images and classes of this shape.
        """
        try:
            found = getattr(import_file(self.path, self.option), self.function, None)
        except ValueError as error:
            raise RunError(f"{error}") from error
        if not callable(found):
            raise self._error(f"must name a function of that file, got {self.function!r}")
        try:
            model = found(**self._arguments(found, shape))
        except RunError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise self._error(f"fails{told_by(self.path, error)}") from error
        if not isinstance(model, nn.Module):
            raise self._error(f"must return a torch.nn.Module, got {type(model).__name__}")
        self._require(model)
        check_output(model, shape, self._error)
        return model

    def _require(self, model: nn.Module) -> None:
        """Refuse a model that lacks what it is for."""

    def _arguments(self, function: Any, shape: Shape) -> dict[str, int]:
        known = {
            "num_classes": shape.num_classes,
            "in_channels": shape.input_channels,
            "image_size": shape.image_size,
        }
        parameters = inspect.signature(function).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return known
        for parameter in parameters:
            optional = parameter.default is not parameter.empty
            named = parameter.name in known and parameter.kind is not parameter.POSITIONAL_ONLY
            if not (named or optional or parameter.kind is parameter.VAR_POSITIONAL):
                raise self._error(
                    f"must take no other arguments than {', '.join(known)}, by name, but it needs "
                    f"{parameter.name!r}: give that a default"
                )
        return {p.name: known[p.name] for p in parameters if p.name in known}

    def __str__(self) -> str:
        return f"{self.path}:{self.function}"

    def _error(self, what: str) -> RunError:
        return RunError(f"{self.option} {self} {what}")


@torch.no_grad()
def check_output(model: nn.Module, shape: Shape, error: Callable[[str], RunError]) -> None:
    """Refuse a model for other images or classes; it also gives lazy modules their sizes.

    It comes out in training mode. ``error`` makes what is raised, of what is wrong.
    """
    images = torch.zeros(2, shape.input_channels, shape.image_size, shape.image_size)
    wanted = (2, shape.num_classes)
    try:
        outputs = model.eval()(images), copied(model).train()(images)
    except Exception as fault:  # whatever the user's code raises
        reason = " ".join(str(fault).split())[:300]
        raise error(
            f"fails on images {tuple(images.shape)}: {type(fault).__name__}: {reason}"
        ) from fault
    for logits in outputs:
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise error(
                f"must give logits {wanted} for 2 images of {wanted[1]} classes, got {got}: its "
                "last layer must have an output for each class of the data"
            )
    factors = {id(module.factors) for module in model.modules() if isinstance(module, Choice)}
    if not any(p.requires_grad and id(p) not in factors for p in model.parameters()):
        raise error("must have parameters to train, but requires_grad is True for none of them")
    model.train()


class OwnSpace(OwnModel):
    """A function of the user's that returns a model with choices, see ``OwnModel``."""

    option = "network.supernet"

    def _require(self, model: nn.Module) -> None:
        if not choices_of(model):
            raise self._error(
                "must return a model with LayerChoice or InputChoice, but there is nothing to "
                "choose in it"
            )

    def supernet(
        self, shape: Shape, budget: Budget | None, config: SearchConfig, seed: int
    ) -> ChoiceSupernet:
        """Make the supernet, whose costs are those of one image.

        Raises:
            RunError: see ``model``.
            ValueError: if its choices contradict each other, or nothing keeps the budget.
        """
        example = torch.zeros(1, shape.input_channels, shape.image_size, shape.image_size)
        return ChoiceSupernet(self.model(shape), example, budget, config, seed=seed)

    def final(self, shape: Shape, choices: Mapping[str, Sequence[str]]) -> nn.Module:
        """Make the network that choices leave of a fresh model.

        Raises:
            RunError: if the choices are not those of the model.
        """
        try:
            network = apply_choices(self.model(shape), choices)
        except ValueError as error:
            raise RunError(f"{CHOICES_FILE} is not of {self}: {error}") from None
        network.register_forward_pre_hook(contiguous)
        return network.train()


def contiguous(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give images, which come in channels_last, the layout in which features take any view()."""
    return tuple(images.clone(memory_format=torch.contiguous_format) for images in inputs)


def choices_from_json(path: Path) -> dict[str, list[str]]:
    """Read ``choices.json``: the names that are left, by label.

    Raises:
        RunError: if it is something else.
    """
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
    lists = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(some, list) and all(isinstance(n, str) for n in some) for some in lists):
        raise RunError(f"{path} must hold the names that are left, by label: repeat the search")
    return value
