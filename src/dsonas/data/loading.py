"""From a configuration to training and test images with everything derived from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from .augmentation import Augmentation
from .data_config import PLACED, DataConfig, DataError, with_share
from .folder_images import read_folder, read_test_images
from .folder_layout import say
from .images import ImageSet, channel_statistics
from .shards import ShardImages, read_shards
from .sources import SPLIT_SEED, Parts, SourceData, read_cifar, read_digits, read_fashion_mnist
from .splitting import Split

logger = logging.getLogger(__name__)

SKEWED = 5  # images of the largest class over those of the smallest, from which it is said
SOURCES: dict[str, Callable[[DataConfig, int], SourceData]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "folder": read_folder,
    "shards": read_shards,
}


@dataclass(frozen=True, kw_only=True)
class ImageData(Parts):
    """A data set ready for use."""

    mean: tuple[float, ...]  # mean of every channel in units of 0..1
    std: tuple[float, ...]  # standard deviation of every channel in units of 0..1, > 0
    train_augmentation: Augmentation  # crop, flip and cutout, for step 3
    fit: str = "crop"  # how image files become squares, see ``DataConfig.fit``
    balanced: bool = False  # whether training draws from all classes equally often

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps: class names, and a fingerprint of files and labels."""
        used = self.split.to_csv(ignored=False) if self.split else ""
        digest = hashlib.sha256(used.encode())
        for part in filter(None, (self.train, self.test, self.val)):
            digest.update(part.labels.numpy().tobytes())
            if isinstance(part, ShardImages):
                digest.update(part.files.told)
        return {"class_names": list(self.class_names), "fingerprint": digest.hexdigest()}

    @property
    def shards(self) -> str | None:
        """A fingerprint of the shards that the images are in; None for other data."""
        parts = self.train, self.test
        told = [part.files.told for part in parts if isinstance(part, ShardImages)]
        return hashlib.sha256(b"".join(told)).hexdigest() if told else None

    @property
    def search_augmentation(self) -> Augmentation:
        """Crop and flip without cutout, for steps 1 and 2."""
        return replace(self.train_augmentation, cutout=0)

    @property
    def summary(self) -> str:
        """Its size in words."""
        val = f", {len(self.val)} validation" if self.val is not None else ""
        size = f"{self.image_size}x{self.image_size}x{self.input_channels}"
        return (
            f"{len(self.train)} training{val} and {len(self.test)} test images, {size}, "
            f"{self.num_classes} classes"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes, at least 2."""
        return len(self.class_names)

    @property
    def input_channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train.image_shape[0]

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.image_shape[1]


def load_data(config: DataConfig, seed: int = 0) -> ImageData:
    """Load a data set.

    Args:
        config: which one, and how.
        seed: chooses the subset of ``config.max_train_images``. The test images do not depend on
            it, so that results of runs with different seeds are comparable.

    Raises:
        DataError: if the data are missing, damaged or unsuitable; the message says what to do.

    Example:
        >>> data = load_data(DataConfig(name="digits"))
        >>> len(data.train), len(data.test), data.num_classes, data.image_size
        (1438, 359, 10, 8)
    """
    source = SOURCES[config.source](config, seed)
    rows = source.split.rows if source.split else {}
    told = [f"{n} ({rows[n].reason})" if n in rows else n for n in source.skipped]
    say("%d unreadable image files skipped: %s", told)
    if source.val is None and config.val:
        train, val = source.train.split(float(config.val), SPLIT_SEED)
        source = replace(source, train=train, val=val)
    _say_unused(config)
    _check_counts(source, config)
    mean, std = source.statistics or channel_statistics(source.train)
    size = source.train.image_shape[1]
    return ImageData(
        **{entry.name: getattr(source, entry.name) for entry in fields(Parts)},
        mean=mean,
        std=std,
        train_augmentation=resolve_augmentation(config, size, source.crop_padding, source.flip),
        fit=config.fit if config.source in PLACED else "crop",
        balanced=config.balance,
    )


def load_test(
    config: DataConfig,
    seed: int = 0,
    *,
    class_names: Sequence[str],
    image_size: int,
    input_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
    fit: str = "crop",
    split: Split | None = None,
    shards: str | None = None,
) -> ImageData:
    """Load the images on which a finished network is to be measured, as its ``test``.

    Those of its run's data set or another one; all other arguments are those of the network and its
    run, see ``read_pixels``, ``read_test_images`` and ``ImageData.shards``. A DataError if the data
    are missing or have other classes.
    """
    color = "grey" if input_channels == 1 else "auto"
    fit = with_share(fit, crop)
    config = replace(config, image_size=image_size, color=color, fit=fit)
    if config.source == "folder":
        test = read_test_images(config, class_names, input_channels, split)
    else:
        data = load_data(config, seed)
        if data.class_names != tuple(class_names):
            raise DataError(
                f"the network knows the classes {list(class_names)}, the data set has "
                f"{list(data.class_names)}: give the data set it was trained on"
            )
        if None not in (shards, data.shards) and data.shards != shards:
            logger.warning(
                "%s holds other shards than those of the run: which of its images were in training "
                "is not known, all are measured", config.location,
            )  # fmt: skip
        test = data.test
    return ImageData(
        train=test,
        test=test,
        class_names=tuple(class_names),
        mean=tuple(mean),
        std=tuple(std),
        train_augmentation=Augmentation(),
        fit=fit,
    )


def split_for_search(images: ImageSet, factor_split: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divide the training images into those that update the weights and the scaling factors.

    Stratified by class; of shards, each part has its own. A ``factor_split`` of 0 gives all images
    to both.

    Source: arXiv 1811.01567, table 3 (the effect of the split).
    """
    return (images, images) if factor_split == 0 else images.split(factor_split, seed)


def _check_counts(source: SourceData, config: DataConfig) -> None:
    """Refuse parts and classes without images; say where classes differ much in size."""
    names, num_train = source.class_names, len(source.train)
    if num_train < len(names):
        raise DataError(
            f"training images must be at least as many as classes, got {num_train} for "
            f"{len(names)} classes (data.max_train_images {config.max_train_images}): "
            "use more images"
        )
    if len(source.test) == 0:
        raise DataError("no test image can be read: check that the files are complete images")
    counts = torch.bincount(source.train.labels, minlength=len(names))
    if missing := [names[at] for at in torch.nonzero(counts == 0).flatten().tolist()]:
        raise DataError(
            f"{len(missing)} classes have no readable training image, the first is "
            f"{missing[0]!r}, or only copies of test images: replace its files or remove its folder"
        )
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= SKEWED * counts[least] and not config.balance:
        logger.warning(
            "classes differ in size, from %d images of %s to %d of %s: look at the balanced "
            "accuracy rather than the error; data.balance true draws all classes equally often",
            counts[least], names[least], counts[most], names[most],
        )  # fmt: skip


def _say_unused(config: DataConfig) -> None:
    """Say which settings change nothing for a source."""
    known = config.source
    if known not in PLACED and config.fit != DataConfig.fit:
        told = "data.fit %s changes nothing: it is for folders and shards, %s has squares"
        logger.warning(told, config.fit, known)
    if known not in ("digits", "folder") and config.test != DataConfig.test:
        told = "data.test %s changes nothing: %s has a test part of its own"
        logger.warning(told, config.test, known)


def resolve_augmentation(
    config: DataConfig, image_size: int, crop_padding: int | None = None, flip: bool = True
) -> Augmentation:
    """Find the augmentation of training images that ``config.augment`` names.

    What the data set says of ``crop_padding`` (None: an eighth of the side) and of mirroring holds
    where the configuration says nothing.
    """
    shift, crop = config.augment == "shift", config.augment == "crop"
    padding = image_size // 8 if crop_padding is None else crop_padding
    return Augmentation(
        crop_padding=padding if shift else 0,
        flip=flip and (shift or crop) if config.flip is None else config.flip,
        cutout=config.cutout,
        random_crop=crop,
        transform=config.augment if ":" in config.augment else None,
    )
