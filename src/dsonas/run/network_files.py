"""A finished network on disk: its weights, and what it expects of an image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from dsonas._utils import write_atomically
from dsonas.data import FITS, RESIZE, ImageData, crop_share
from dsonas.graph import Architecture, Skeleton
from dsonas.nn import Network

_LISTS = ("class_names", "mean", "std")


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image, and what its outputs mean.

    Args:
        class_names: names of the classes, in the order of the outputs.
        mean: per channel, in units of 0..1.
        std: per channel, in units of 0..1.
        crop: side of the middle square that is used over the image's shorter side, in (0, 1].
        fit: how images become squares: ``crop``, ``pad`` or ``stretch``.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    fit: str = "crop"

    @classmethod
    def of(cls, data: ImageData) -> Preprocessing:
        """That of a data set."""
        share, kind = crop_share(data.fit), data.fit.partition(":")[0]
        return cls(data.class_names, data.mean, data.std, share, kind)

    def pixels(self, skeleton: Skeleton) -> dict[str, Any]:
        """How an image file becomes an input of a network: arguments of ``load_images``."""
        values = {"mean": self.mean, "std": self.std, "crop": self.crop, "fit": self.fit}
        size, channels = skeleton.image_size, skeleton.input_channels
        return {"image_size": size, "input_channels": channels, **values}

    def description(self, skeleton: Skeleton) -> dict[str, Any]:
        """All of it as JSON values, for files of networks and exports."""
        return {"class_names": self.class_names, **self.pixels(skeleton), "resize": RESIZE}

    def check(self, skeleton: Skeleton) -> None:
        """Refuse what does not fit a network.

        Raises:
            ValueError: if a number or a name is missing, or out of range.
        """
        numbers = [*self.mean, *self.std]
        named = all(isinstance(name, str) for name in self.class_names)
        if len(self.class_names) != skeleton.num_classes or not named:
            raise ValueError(f"class_names must be {skeleton.num_classes} names")
        if not len(self.mean) == len(self.std) == skeleton.input_channels:
            raise ValueError(f"mean and std must be {skeleton.input_channels} numbers each")
        if not all(math.isfinite(number) for number in numbers) or min(self.std) <= 0:
            raise ValueError("mean and std must be finite numbers, std above 0")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit}")


def write_weights(path: Path, network: Network, preprocessing: Preprocessing) -> None:
    """Write the weights of a network, without an auxiliary head, and what it expects.

    Raises:
        RunError: if that does not fit the network.
    """
    try:
        preprocessing.check(network.architecture.skeleton)
    except ValueError as error:
        raise RunError(f"{path} is not written: {error}") from None
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith("auxiliary.")
    }
    values = preprocessing.description(network.architecture.skeleton).items()
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


def read_network(path: Path, architecture: Architecture) -> tuple[Network, Preprocessing]:
    """Read what ``write_weights`` wrote.

    Args:
        path: the file of the weights.
        architecture: of the network.

    Returns:
        The network, in evaluation mode, and what it expects.

    Raises:
        RunError: if the file is damaged, or not of this architecture.
    """
    network = Network(architecture)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights)
        names, mean, std = (tuple(json.loads(metadata[key])) for key in _LISTS)
        crop = json.loads(metadata.get("crop", "1.0"))  # older files have none
        fit = json.loads(metadata.get("fit", '"crop"'))
        preprocessing = Preprocessing(names, mean, std, crop, fit)
        preprocessing.check(architecture.skeleton)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} is damaged or not of this architecture: {reason}") from None
    return network.eval().requires_grad_(False), preprocessing
