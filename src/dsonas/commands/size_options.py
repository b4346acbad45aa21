"""The size of a run's data: known, counted where it lies, or stated, without loading an image."""

from __future__ import annotations

from dataclasses import replace

import torch
from jsonargparse import Namespace

from dsonas.commands.configuring import OptionParser, to_config
from dsonas.data import (
    PLACED,
    DataConfig,
    DataError,
    ImageData,
    Listing,
    TensorImages,
    choose_image_size,
    list_contents,
    load_data,
    resolve_augmentation,
    scan,
)
from dsonas.run import RunConfig

Size = tuple[int, int | None, int, int, int, int]
"""Training, validation (None: those of ``data.val``, out of the training images) and test images,
side in pixels, channels, classes."""

OPTIONS = {
    "images": "training images, if the data set is not here or will have another size",
    "test-images": "test images (default: data.test of --images)",
    "classes": "classes",
}
PUBLISHED: dict[str, Size] = {
    "fashion-mnist": (60_000, None, 10_000, 28, 1, 10),
    "cifar10": (50_000, None, 10_000, 32, 3, 10),
    "cifar100": (50_000, None, 10_000, 32, 3, 100),
}
_PLACE = "images"  # of a folder that is stated, not given
_SAMPLE = 200  # files of a folder that are looked at for their size and colour
_STORED = 64  # different random images that stand for a whole data set


def add_size_options(parser: OptionParser) -> None:
    """Add the options that state a size."""
    for name, text in OPTIONS.items():
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        parser.add_argument(*spellings, type=int, default=None, metavar="N", help=text)


def stated_run(values: Namespace) -> tuple[RunConfig, ImageData]:
    """The run of a parser with ``add_size_options``, and blank data; see ``blank_data``."""
    if values.images and values.data.name in PLACED:  # stated images need no place
        values.data.name += f":{_PLACE}"
    config = to_config(values)
    return config, blank_data(config.data, values.images, values.test_images, values.classes)


def blank_data(
    config: DataConfig,
    images: int | None = None,
    test_images: int | None = None,
    classes: int | None = None,
    side: int | None = None,
) -> ImageData:
    """Make random images, a few standing for all, as many and as large as those of a data set.

    What is not stated is as in the data set; of stated ``images`` the share ``data.val`` is for
    validation, and test images are ``data.test`` of them.

    Raises:
        DataError: if the images are neither known nor stated nor there, or if a number is too
            small.

    Example:
        >>> data = blank_data(DataConfig(name="cifar10"), images=10_000)
        >>> len(data.train), len(data.test), data.image_size, data.num_classes
        (10000, 2000, 32, 10)
    """
    if side is not None:
        config = replace(config, image_size=side)
    train, val, test, side, channels, known = _size(config, images, classes)
    if images is not None:
        share = DataConfig.test if isinstance(config.test, str) else config.test
        train, val, test = images, None, max(1, round(float(share) * images))
    test = test if test_images is None else test_images
    known = known if classes is None else classes
    rules = (("classes", known, 2), ("images", train, known), ("test-images", test, 1))
    for name, value, least in (*rules, ("data.image_size", side, 4)):
        if value < least:
            raise DataError(f"{name} must be at least {least}, got {value}: see --help")
    train, test = (min(train, config.max_train_images or train),
                   min(test, config.max_test_images or test))  # fmt: skip
    if val is None:
        val = 0 if isinstance(config.val, str) else round(float(config.val or 0) * train)
        train -= val
    generator = torch.Generator().manual_seed(0)
    stored = (_STORED, channels, side, side)
    pixels = torch.randint(0, 256, stored, generator=generator, dtype=torch.uint8)
    parts = [
        TensorImages(pixels, torch.arange(count) % known, torch.arange(count) % _STORED)
        for count in (train, test, val)
    ]
    return ImageData(
        train=parts[0],
        test=parts[1],
        val=parts[2] if val else None,
        class_names=tuple(map(str, range(known))),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        train_augmentation=resolve_augmentation(config, side, flip=config.source != "digits"),
    )


def _size(config: DataConfig, images: int | None, classes: int | None) -> Size:
    if config.source in PUBLISHED:
        train, val, test, side, channels, known = PUBLISHED[config.source]
        grey = config.color == "grey"
        return train, val, test, config.image_size or side, 1 if grey else channels, known
    if images is None or config.source not in PLACED:
        return _counted(config)
    for option, value in (("--classes", classes), ("--data.image_size", config.image_size)):
        if value is None:
            raise DataError(f"--images {images} needs {option}: state it, or give the data set")
    return images, None, 1, config.image_size or 0, 1 if config.color == "grey" else 3, classes or 0


def _counted(config: DataConfig) -> Size:
    """Count the files of a folder and look at a few; others tell all when they are opened."""
    if config.source != "folder":
        data = load_data(config)
        counts = len(data.train), len(data.val or ()), len(data.test)
        return *counts, data.image_size, data.input_channels, data.num_classes
    try:
        contents = list_contents(config)
    except DataError as error:
        raise DataError(f"{error}; or state --images, --classes and --data.image_size") from None
    train, val, test = (contents.parts[part] for part in ("train", "val", "test"))
    every = -(-len(train.paths) // _SAMPLE)
    found, _ = scan(Listing(train.paths[::every], train.labels[::every]), 1)
    if not (headers := list(found.values())):
        raise DataError(f"no image of {config.root} can be read: state --images and --classes")
    grey = config.color == "grey" or (config.color == "auto" and all(h.grey for h in headers))
    side = config.image_size or choose_image_size([header.short_side for header in headers])
    counts = len(train.paths), len(val.paths), len(test.paths)
    return *counts, side, 1 if grey else 3, len(contents.class_names)
