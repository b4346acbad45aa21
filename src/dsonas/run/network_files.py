"""A finished network on disk: its weights, and what it expects of an image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from dsonas._utils import write_atomically
from dsonas.data import FITS, RESIZE, ImageData, crop_share, with_share
from dsonas.graph import Skeleton
from dsonas.nn import Network

_LISTS = ("class_names", "mean", "std")


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


class Shape(NamedTuple):
    """What goes into a classifier of square images, and what comes out."""

    image_size: int
    input_channels: int
    num_classes: int

    @classmethod
    def of(cls, known: Skeleton | ImageData) -> Shape:
        """That of our networks, or of those for a data set."""
        return cls(known.image_size, known.input_channels, known.num_classes)


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image, and what its outputs mean."""

    class_names: tuple[str, ...]  # names of the classes, in the order of the outputs
    mean: tuple[float, ...]  # per channel, in units of 0..1
    std: tuple[float, ...]  # per channel, in units of 0..1
    # side of the middle square that is used over the image's shorter side, in (0, 1]
    crop: float = 1.0
    fit: str = "crop"  # how images become squares: ``crop``, ``pad`` or ``stretch``

    @classmethod
    def of(cls, data: ImageData) -> Preprocessing:
        """That of a data set."""
        share, kind = crop_share(data.fit), data.fit.partition(":")[0]
        return cls(data.class_names, data.mean, data.std, share, kind)

    def pixels(self, shape: Shape | Skeleton) -> dict[str, Any]:
        """How an image file becomes an input of a network: arguments of ``load_images``."""
        shaped = {"image_size": shape.image_size, "input_channels": shape.input_channels}
        return {**shaped, "mean": self.mean, "std": self.std, "crop": self.crop, "fit": self.fit}

    def settings(self, shape: Shape | Skeleton) -> dict[str, Any]:
        """The same as settings of a run."""
        return {
            "data.image_size": shape.image_size,
            "data.color": "grey" if shape.input_channels == 1 else "auto",
            "data.fit": with_share(self.fit, self.crop),
        }

    def description(self, shape: Shape | Skeleton) -> dict[str, Any]:
        """All of it as JSON values, for files of networks and exports."""
        return {"class_names": self.class_names, **self.pixels(shape), "resize": RESIZE}

    def check(self, shape: Shape | Skeleton) -> None:
        """Refuse what does not fit a network, by a ValueError: a missing name, a wrong number."""
        numbers = [*self.mean, *self.std]
        named = all(isinstance(name, str) for name in self.class_names)
        if len(self.class_names) != shape.num_classes or not named:
            raise ValueError(f"class_names must be {shape.num_classes} names")
        if not len(self.mean) == len(self.std) == shape.input_channels:
            raise ValueError(f"mean and std must be {shape.input_channels} numbers each")
        if not all(math.isfinite(number) for number in numbers) or min(self.std) <= 0:
            raise ValueError("mean and std must be finite numbers, std above 0")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit}")


class FinishedNetwork(NamedTuple):
    """A trained network, in evaluation mode, what it expects of images, and of which shape."""

    network: Any  # a Network, or a module of the user's
    preprocessing: Preprocessing
    shape: Shape


def write_weights(
    path: Path, network: nn.Module, preprocessing: Preprocessing, shape: Shape, **notes: str
) -> None:
    """Write the weights of a network, without an auxiliary head, and what it expects.

    ``notes`` are what else its reader must know. Refused if what it expects does not fit its shape.
    """
    try:
        preprocessing.check(shape)
    except ValueError as error:
        raise RunError(f"{path} is not written: {error}") from None
    weights = {
        name: value.detach().cpu().contiguous().clone()  # modules of the user's may share some
        for name, value in network.state_dict().items()
        if not (isinstance(network, Network) and name.startswith("auxiliary."))
    }
    values = {**preprocessing.description(shape), **notes}.items()
    # the default is left out, as in files of before it could be chosen
    metadata = {name: json.dumps(v) for name, v in values if (name, v) != ("fit", "crop")}
    write_atomically(path, _in_order(to_safetensors(weights, metadata)))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order; the library writes them in a random one.

    So equal networks are equal files. The head is its length in 8 bytes, then JSON, padded with
    spaces to a multiple of 8 bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_network(
    path: Path, build: Callable[[Shape, dict[str, Any]], nn.Module], shape: Shape | None = None
) -> FinishedNetwork:
    """Read what ``write_weights`` wrote; a RunError if it is damaged, or not of this network.

    The network is built for a shape (None: as the file says) and the notes of the file.
    """
    with _telling_damage(path):
        with safe_open(path, framework="pt") as file:
            notes = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names, mean, std = (tuple(notes[key]) for key in _LISTS)
        # older files have none of these two
        preprocessing = Preprocessing(
            names, mean, std, notes.get("crop", 1.0), notes.get("fit", "crop")
        )
        shape = shape or Shape(notes["image_size"], notes["input_channels"], len(names))
        preprocessing.check(shape)
    network = build(shape, notes)
    with _telling_damage(path):
        network.load_state_dict(weights)
    return FinishedNetwork(network.eval().requires_grad_(False), preprocessing, shape)


@contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} is damaged or not of this architecture: {reason}") from None
