"""The size of a data set, known, counted or stated, without loading its images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dsonas.data import (
    DataConfig,
    DataError,
    ImageData,
    Listing,
    TensorImages,
    choose_image_size,
    list_parts,
    load_data,
    resolve_augmentation,
    scan,
)

_DIGITS = 1797
_SAMPLE = 200  # files of a folder that are looked at for their size and colour
_STORED = 64  # different random images that stand for a whole data set


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """How many images of which size.

    Args:
        num_train: training images, >= 1.
        num_test: test images, >= 1.
        image_size: side in pixels, >= 4.
        input_channels: 1 for grey, 3 for RGB.
        num_classes: >= 2.
        origin: where the numbers are from, in words.

    Raises:
        DataError: if a number is too small.

    Example:
        >>> cifar = published_shape(DataConfig(name="cifar10"))
        >>> cifar.num_train, cifar.num_test, cifar.image_size
        (50000, 10000, 32)
    """

    num_train: int
    num_test: int
    image_size: int
    input_channels: int
    num_classes: int
    origin: str = "stated"

    def __post_init__(self) -> None:
        least = {"num_train": self.num_classes, "num_test": 1, "image_size": 4, "num_classes": 2}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise DataError(
                    f"{name} must be at least {minimum}, got {getattr(self, name)}: "
                    "see --images, --test-images, --classes and --data.image_size"
                )

    def blank(self, config: DataConfig) -> ImageData:
        """Random images and labels of this shape, a few of them standing for all.

        Args:
            config: its augmentation is kept.
        """
        images = _random_images(self.num_train, self)
        return ImageData(
            train=images,
            test=_random_images(self.num_test, self),
            class_names=tuple(map(str, range(self.num_classes))),
            mean=(0.5,) * self.input_channels,
            std=(0.25,) * self.input_channels,
            train_augmentation=resolve_augmentation(
                config, self.image_size, flip=config.source != "digits"
            ),
        )


def _random_images(count: int, shape: DataShape) -> TensorImages:
    generator = torch.Generator().manual_seed(0)
    stored = (min(count, _STORED), shape.input_channels, shape.image_size, shape.image_size)
    pixels = torch.randint(0, 256, stored, generator=generator, dtype=torch.uint8)
    numbers = torch.arange(count)
    return TensorImages(pixels, numbers % shape.num_classes, numbers % len(pixels))


def published_shape(config: DataConfig) -> DataShape | None:
    """The shape of a data set that everybody has; None for one's own images."""
    num_test = round(config.test_fraction * _DIGITS)
    known = {
        "digits": (_DIGITS - num_test, num_test, 8, 1, 10),
        "fashion-mnist": (60_000, 10_000, 28, 1, 10),
        "cifar10": (50_000, 10_000, 32, 3, 10),
        "cifar100": (50_000, 10_000, 32, 3, 100),
    }
    if config.source not in known:
        return None
    train, test, size, channels, classes = known[config.source]
    return DataShape(
        num_train=train,
        num_test=test,
        image_size=config.image_size or size,
        input_channels=1 if config.color == "grey" else channels,
        num_classes=classes,
        origin="published size",
    )


def find_shape(
    config: DataConfig,
    *,
    images: int | None = None,
    test_images: int | None = None,
    classes: int | None = None,
) -> DataShape:
    """The shape of a data set: as stated, as published, or else counted where it lies.

    Args:
        config: which data set, and how much of it.
        images: training images as stated, in place of those that are there.
        test_images: test images as stated; None: ``data.test_fraction`` of ``images``.
        classes: as stated.

    Raises:
        DataError: if the images are neither known nor stated nor there.

    Example:
        >>> find_shape(DataConfig(name="digits"), images=10_000).num_test
        2000
    """
    shape = published_shape(config)
    if shape is None and images is not None:
        shape = _stated_shape(config, images, classes)
    elif shape is None:
        shape = _counted_shape(config)
    if images is not None:
        test_images = test_images or max(1, round(config.test_fraction * images))
        shape = replace(shape, num_train=images, origin="stated")
    num_test, num_classes = test_images or shape.num_test, classes or shape.num_classes
    return _limited(replace(shape, num_test=num_test, num_classes=num_classes), config)


def _limited(shape: DataShape, config: DataConfig) -> DataShape:
    """No more images than the configuration uses."""
    return replace(
        shape,
        num_train=min(shape.num_train, config.max_train_images or shape.num_train),
        num_test=min(shape.num_test, config.max_test_images or shape.num_test),
    )


def _stated_shape(config: DataConfig, images: int, classes: int | None) -> DataShape:
    missing = {"--classes": classes, "--data.image_size": config.image_size}
    for option, value in missing.items():
        if value is None:
            raise DataError(f"--images {images} needs {option}: state it, or give the data set")
    return DataShape(
        num_train=images,
        num_test=1,
        image_size=config.image_size or 0,
        input_channels=1 if config.color == "grey" else 3,
        num_classes=classes or 0,
    )


def _counted_shape(config: DataConfig) -> DataShape:
    """Count the files of a folder and look at a few; of shards, the index says it all."""
    if config.source != "folder":
        data = load_data(config)
        sizes = data.image_size, data.input_channels, data.num_classes
        return _shape(len(data.train), len(data.test), *sizes)
    assert config.root is not None
    try:
        train, test, names = list_parts(config.root, config.test_fraction)
    except DataError as error:
        raise DataError(f"{error}; or state --images, --classes and --data.image_size") from None
    _, headers, _ = scan(_some(train), 1)
    if not headers:
        raise DataError(f"no image of {config.root} can be read: state --images and --classes")
    grey = config.color == "grey" or (config.color == "auto" and all(h.grey for h in headers))
    size = config.image_size or choose_image_size([header.short_side for header in headers])
    return _shape(len(train.paths), len(test.paths), size, 1 if grey else 3, len(names))


def _some(listing: Listing) -> Listing:
    every = -(-len(listing.paths) // _SAMPLE)
    return Listing(listing.paths[::every], listing.labels[::every])


def _shape(train: int, test: int, size: int, channels: int, classes: int) -> DataShape:
    return DataShape(
        num_train=train,
        num_test=test,
        image_size=size,
        input_channels=channels,
        num_classes=classes,
        origin="counted",
    )
