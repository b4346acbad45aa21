"""The images on which an exported file is compared with the network it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor

from dsonas.data import Batches, DataConfig, ImageData, load_data
from dsonas.graph import Skeleton
from dsonas.nn import Network
from dsonas.run import Preprocessing, RunFolder, check_fits

NUM_RANDOM = 64
BATCH_SIZE = 128


@dataclass(frozen=True)
class CheckImages:
    """Normalised images, in batches of different sizes.

    Args:
        batches: tensors (B, C, H, W).
        description: what they are, for the user.
    """

    batches: tuple[Tensor, ...]
    description: str

    @property
    def first(self) -> Tensor:
        """One image, as a batch (1, C, H, W)."""
        return self.batches[0][:1]


def stored_settings(run: RunFolder) -> dict[str, Any]:
    """What the ``config.yaml`` of a run holds; nothing if it cannot be read."""
    try:
        value = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def stored_data_config(run: RunFolder) -> DataConfig:
    """Which data a run was made with.

    Raises:
        ValueError: if its folder does not say so.
    """
    try:
        return DataConfig(**stored_settings(run)["data"])
    except (KeyError, TypeError):
        raise ValueError(f"{run.path / 'config.yaml'} names no data set") from None


def check_images(
    run: RunFolder, network: Network, preprocessing: Preprocessing, num_images: int
) -> CheckImages:
    """Test images of a run, preprocessed as it says; random ones where they are out of reach.

    Args:
        run: the folder of the run.
        network: for its image size.
        preprocessing: normalisation and classes.
        num_images: at most so many, >= 1, equally many of all classes.
    """
    try:
        config = stored_data_config(run)
        data = load_data(config)
        check_fits(network.architecture, data)
        if data.class_names != preprocessing.class_names:
            raise ValueError("the data set has other classes than the network")
        chosen = data.test.sample(num_images, seed=0)
        data = replace(data, test=chosen, mean=preprocessing.mean, std=preprocessing.std)
        batches = tuple(_split(_test_batches(data)))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split()).split(": ")[0]
        random = _random_batches(network.architecture.skeleton)
        return CheckImages(random, f"{NUM_RANDOM} random images ({reason})")
    return CheckImages(batches, f"{len(chosen)} test images of {describe(config)}")


def describe(config: DataConfig) -> str:
    """The name of a data set; of a folder its own name alone."""
    root = config.root
    return f"folder {root.resolve().name}" if config.source == "folder" and root else config.source


def _test_batches(data: ImageData) -> Iterator[Tensor]:
    batches = Batches(
        data.test,
        data,
        batch_size=BATCH_SIZE,
        augmentation=None,
        shuffle=False,
        drop_last=False,
        seed=0,
    )
    return (images for images, _ in batches.epoch(0))


def _random_batches(skeleton: Skeleton) -> tuple[Tensor, ...]:
    size = skeleton.image_size
    shape = (NUM_RANDOM, skeleton.input_channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return tuple(_split(iter(images.split(NUM_RANDOM - 1))))


def _split(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The first image by itself: a file must not depend on the size of the batch."""
    for i, images in enumerate(batches):
        yield from images.tensor_split([1]) if i == 0 and len(images) > 1 else [images]
