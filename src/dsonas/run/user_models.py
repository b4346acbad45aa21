"""The user's own model of a run: ``FILE.py:FUNCTION``, or one of a library, and its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dsonas._utils import import_file, read_json, told_by
from dsonas.cost import Budget
from dsonas.run.network_files import RunError, Shape
from dsonas.search import ChoiceSupernet, SearchConfig
from dsonas.sparse import Choice, apply_choices, choices_of, copied

SOURCE_FILE, CHOICES_FILE = "supernet.py", "choices.json"  # in a run folder
LIBRARIES = ("torchvision", "timm")
SHOWN = 3  # keys that an error names


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
        """Read ``FILE.py:FUNCTION``; a RunError if it is something else."""
        path, _, function = place.rpartition(":")
        if not path or not function.isidentifier():
            raise RunError(f"{cls.option} must be FILE.py:FUNCTION, got {place!r}")
        return cls(Path(path), function)

    def model(self, shape: Shape) -> nn.Module:
        """Call the function, and the model once, with images of zeros.

        A RunError if there is no such function, it fails, or what it returns is no model for images
        and classes of this shape.
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
        if isinstance(self, OwnSpace) and not choices_of(model):
            raise self._error(
                "must return a model with LayerChoice or InputChoice, but there is nothing to "
                "choose in it"
            )
        check_output(model, shape, self._error)
        return model

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

    def supernet(
        self, shape: Shape, budget: Budget | None, config: SearchConfig, seed: int
    ) -> ChoiceSupernet:
        """Make the supernet, whose costs are those of one image; see ``model``.

        A ValueError if its choices contradict each other, or nothing keeps the budget.
        """
        example = torch.zeros(1, shape.input_channels, shape.image_size, shape.image_size)
        return ChoiceSupernet(self.model(shape), example, budget, config, seed=seed)

    def final(self, shape: Shape, choices: Mapping[str, Sequence[str]]) -> nn.Module:
        """Make the network that choices leave of a fresh model, which must have them."""
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
    """Read ``choices.json``: the names that are left, by label; a RunError if it has others."""
    value = read_json(path)
    lists = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(some, list) and all(isinstance(n, str) for n in some) for some in lists):
        raise RunError(f"{path} must hold the names that are left, by label: repeat the search")
    return value


@dataclass(frozen=True)
class LibraryModel:
    """A classifier of torchvision or timm, without weights."""

    library: str  # ``torchvision`` or ``timm``
    name: str  # as the library calls it

    def model(self, shape: Shape) -> nn.Module:
        """Make it for images and classes of a shape; a RunError if it is not for such.

        Example:
            >>> LibraryModel("torchvision", "resnet8").model(Shape(32, 3, 10))
            Traceback (most recent call last):
            ...
            dsonas.run.network_files.RunError: --model torchvision:resnet8 is not known ...
        """
        of_timm = self.library == "timm"
        try:  # both take a second
            library: Any = import_module("timm" if of_timm else "torchvision.models")
        except ImportError:
            raise self._error("needs timm: python -m pip install timm") from None
        names = library.list_models() if of_timm else library.list_models(module=library)
        if self.name not in names:
            near = get_close_matches(self.name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.library}.list_models() has all"
            raise self._error(f"is not known to {self.library}: {hint}")
        if shape.input_channels != 3:
            raise self._error(
                f"takes images of 3 channels, but the data have {shape.input_channels}: save the "
                "images as RGB"
            )
        make = library.create_model if of_timm else partial(library.get_model, weights=None)
        model = make(self.name, num_classes=shape.num_classes)
        check_output(model, shape, self._error)
        return model

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def _error(self, what: str) -> RunError:
        return RunError(f"{OwnModel.option} {self} {what}")


def named_model(place: str) -> LibraryModel | OwnModel:
    """Read what ``--model`` names: ``torchvision:NAME``, ``timm:NAME`` or ``FILE.py:FUNCTION``.

    Raises:
        RunError: if it is something else.

    Example:
        >>> named_model("torchvision:resnet18")
        LibraryModel(library='torchvision', name='resnet18')
    """
    library, _, name = place.partition(":")
    if library in LIBRARIES and name:
        return LibraryModel(library, name)
    if ".py:" not in place:
        raise RunError(
            f"{OwnModel.option} must be torchvision:NAME, timm:NAME or FILE.py:FUNCTION, got "
            f"{place!r}"
        )
    return OwnModel.of(place)


def give_weights(model: nn.Module, path: Path, num_classes: int) -> None:
    """Load a file of a ``state_dict`` into a model made for ``num_classes``, every tensor of it.

    A RunError if the file is none, or its keys or shapes are not those of the model.
    """
    given, wanted = _read_weights(path), model.state_dict()
    missing = [key for key in wanted if key not in given]
    unknown = [key for key in given if key not in wanted]
    both = {k: (tuple(given[k].shape), tuple(wanted[k].shape)) for k in wanted if k in given}
    shapes = {key: (was, ours) for key, (was, ours) in both.items() if was != ours}
    if shapes and not missing and not unknown:
        classes = {was[:1] for was, _ in shapes.values()}
        of_head = all(ours[:1] == (num_classes,) and was[1:] == ours[1:]
                      for was, ours in shapes.values())  # fmt: skip
        if of_head and len(classes) == 1:
            raise RunError(
                f"--weights {path} is of a classifier of {classes.pop()[0]} classes, but the data "
                f"have {num_classes}: give the model a last layer of {num_classes} outputs, train "
                "it on these images, and give its state_dict"
            )
    others = [f"{key} {was} in place of {ours}" for key, (was, ours) in shapes.items()]
    faults = {"lacks": missing, "has unknown": unknown, "has": others}
    told = [f"{what} {_some(keys)}" for what, keys in faults.items() if keys]
    if told:
        raise RunError(f"--weights {path} is not of this model: it {'; it '.join(told)}")
    model.load_state_dict(given)


def _read_weights(path: Path) -> dict[str, Tensor]:
    found: Any = None
    with suppress(SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    named = isinstance(found, dict) and found and all(isinstance(key, str) for key in found)
    if not named or not all(isinstance(value, Tensor) for value in found.values()):
        raise RunError(
            f"--weights {path} must hold tensors by name, as torch.save(model.state_dict(), FILE) "
            "and safetensors write them, but does not"
        )
    return dict(found)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
