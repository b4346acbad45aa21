"""The trained model of ``dsonas compress``: out of a library or a file of the user's; weights."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dsonas.run.network_files import RunError, Shape
from dsonas.run.own_space import OwnModel, check_output

LIBRARIES = ("torchvision", "timm")
SHOWN = 3  # keys that an error names


@dataclass(frozen=True)
class LibraryModel:
    """A classifier of torchvision or timm, without weights."""

    library: str  # ``torchvision`` or ``timm``
    name: str  # as the library calls it

    def model(self, shape: Shape) -> nn.Module:
        """Make it for images and classes of a shape.

        Raises:
            RunError: if there is no such model, or it is not for such images.

        Example:
            >>> LibraryModel("torchvision", "resnet8").model(Shape(32, 3, 10))
            Traceback (most recent call last):
            ...
            dsonas.run.network_files.RunError: --model torchvision:resnet8 is not known ...
        """
        library = self._known()
        if shape.input_channels != 3:
            raise self._error(
                f"takes images of 3 channels, but the data have {shape.input_channels}: save the "
                "images as RGB"
            )
        if self.library == "timm":
            model = library.create_model(self.name, num_classes=shape.num_classes)
        else:
            model = library.get_model(self.name, weights=None, num_classes=shape.num_classes)
        check_output(model, shape, self._error)
        return model

    def _known(self) -> Any:
        """The library, which has a model of this name."""
        if self.library == "timm":
            try:
                library: Any = import_module("timm")
            except ImportError:
                raise self._error("needs timm: python -m pip install timm") from None
            names = library.list_models()
        else:
            library = torchvision.models
            names = library.list_models(module=library)
        if self.name not in names:
            near = get_close_matches(self.name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.library}.list_models() has all"
            raise self._error(f"is not known to {self.library}: {hint}")
        return library

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


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def give_weights(model: nn.Module, path: Path, num_classes: int) -> None:
    """Load a file of a ``state_dict`` into a model, every tensor of it.

    ``num_classes`` are those of the data, for which the model was made.

    Raises:
        RunError: if the file is none, or its keys or shapes are not those of the model.
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
