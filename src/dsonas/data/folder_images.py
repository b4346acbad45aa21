"""The images in a folder: read for a run, or to measure a finished network on them."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from dsonas._utils import derive_seed

from . import sources
from .augmentation import CentreCrop, cropped
from .data_config import DataConfig, DataError
from .decoding import ImageHeader, UnreadableImageError, decode, read_header
from .folders import Contents, Listing, Split, first, list_contents, num_bytes
from .images import FileImages, ImageSet
from .sources import SPLIT_SEED, SourceData

logger = logging.getLogger(__name__)

MOST_COMPARED = 100_000  # files; among more no copies are looked for


def read_folder(config: DataConfig, seed: int) -> SourceData:
    """Read a folder of images: see ``list_contents`` for what is read.

    Files that cannot be read are left out. Sets beyond ``MEMORY_LIMIT`` are not decoded now but
    when they are used.

    Args:
        config: its ``root`` is the folder.
        seed: of the subset that ``config.max_train_images`` asks for.

    Raises:
        DataError: if the folder is unsuitable, or colours are not as ``config.color`` demands.
    """
    assert config.root is not None, "DataConfig demands a path for folders"
    contents = list_contents(config.root, config.test_fraction)
    parts, headers, reasons = [], [], {}
    for name, listing in (("training", contents.train), ("test", contents.test)):
        good, heads, bad = scan(listing, max(1, config.workers))
        if not good.paths:
            raise DataError(
                f"none of the {len(listing.paths)} {name} images can be read, the first is "
                f"{listing.paths[0]} ({bad[listing.paths[0]]}): check that they are complete images"
            )
        parts.append(good)
        headers.append(heads)
        reasons.update(bad)
    say_copies(contents, *parts)
    size = config.image_size or choose_image_size([head.short_side for head in headers[0]])
    paths = [path for part in parts for path in part.paths]
    grey = [head.grey for heads in headers for head in heads]
    example = paths[grey.index(True)] if any(grey) else ""
    channels = choose_channels(config, sum(grey), len(grey), example)
    layout = contents.layout.describe(
        len(contents.class_names), len(parts[0].paths), config.test_fraction
    )
    train_seed = derive_seed(seed, "max_train_images")
    train = parts[0].sample(config.max_train_images, train_seed)
    test = parts[1].sample(config.max_test_images, SPLIT_SEED)
    images = [_file_images(contents, part, size, channels) for part in (train, test)]
    images[1] = cropped(images[1], CentreCrop(config.test_crop))
    # random crops are cut out of the whole image, so it is decoded anew each time
    if config.augment != "crop":
        images = _load(images, config.workers, reasons)
    return SourceData(
        train=images[0],
        test=images[1],
        class_names=contents.class_names,
        layout=layout,
        split=contents.split(reasons),
        skipped=tuple(map(contents.name, reasons)),
    )


def list_parts(root: Path, test_fraction: float) -> tuple[Listing, Listing, tuple[str, ...]]:
    """List the training and test files of an image folder, and its classes."""
    contents = list_contents(root, test_fraction)
    return contents.train, contents.test, contents.class_names


def scan(
    listing: Listing, num_threads: int, complete: bool = False
) -> tuple[Listing, list[ImageHeader], dict[str, str]]:
    """Read the heads of image files.

    Args:
        listing: of the files.
        num_threads: that read at a time, >= 1.
        complete: decode the pixels too, which finds truncated files.

    Returns:
        The readable files, their headers, and why the others are unreadable, by path.
    """

    def header_or_reason(path: str) -> ImageHeader | str:
        try:
            if complete:
                decode(path, 32, 3)
            return read_header(path)
        except UnreadableImageError as error:
            return error.reason

    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(header_or_reason, listing.paths))
    bad = {
        path: head for path, head in zip(listing.paths, found, strict=True) if isinstance(head, str)
    }
    headers = [head for head in found if isinstance(head, ImageHeader)]
    return listing.where(torch.tensor([path not in bad for path in listing.paths])), headers, bad


def choose_image_size(short_sides: Sequence[int]) -> int:
    """Choose the size at which images are used.

    Args:
        short_sides: the shorter side of every image in pixels, at least one.

    Returns:
        32 if their median is below 48, 64 if it is below 160, otherwise 224.

    Example:
        >>> choose_image_size([28, 28, 500]), choose_image_size([640, 480])
        (32, 224)
    """
    middle = median(short_sides)
    if middle < 48:
        return 32
    return 64 if middle < 160 else 224


def say_copies(contents: Contents, train: Listing, test: Listing) -> None:
    """Say how many test images are exact copies of training images."""
    if len(train.paths) + len(test.paths) > MOST_COMPARED:
        return
    sizes = set(map(num_bytes, train.paths)) & set(map(num_bytes, test.paths))
    trained, tested = (
        {_digest(path): path for path in part.paths if num_bytes(path) in sizes}
        for part in (train, test)
    )
    if copies := [(path, trained[key]) for key, path in tested.items() if key in trained]:
        names = [f"{contents.name(path)} = {contents.name(other)}" for path, other in copies]
        told = "%d test images are exact copies of training images, so the error looks too good: %s"
        logger.warning(told, len(names), first(names))


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def choose_channels(config: DataConfig, num_grey: int, num_images: int, example: str) -> int:
    """1 or 3, as ``config.color`` says; ``example`` names a grey image."""
    if config.color == "grey" or (config.color == "auto" and num_grey == num_images):
        return 1
    if config.color == "rgb" and num_grey:
        raise DataError(
            f"{example} is grey but data.color is rgb ({num_grey} such images): "
            "use --data.color auto, or save them as RGB"
        )
    if num_grey:
        logger.warning("%d grey images of %d converted to RGB", num_grey, num_images)
    return 3


def _file_images(contents: Contents, listing: Listing, size: int, channels: int) -> FileImages:
    names = tuple(map(contents.name, listing.paths))
    shape = {"image_size": size, "channels": channels}
    return FileImages(listing.paths, listing.labels, **shape, names=names)


def _load(parts: Sequence[FileImages], workers: int, reasons: dict[str, str]) -> Sequence[ImageSet]:
    """The images decoded into memory, if they fit; adds why some could not be read."""
    if sum(len(part) * math.prod(part.image_shape) for part in parts) > sources.MEMORY_LIMIT:
        return parts
    loaded = [part.load(max(1, workers)) for part in parts]
    for _, bad in loaded:
        reasons.update(bad)
    return [images for images, _ in loaded]


def read_test_images(
    config: DataConfig, class_names: Sequence[str], channels: int, split: Split | None
) -> ImageSet:
    """Read the images of a folder on which a finished network is to be measured.

    Of the folder that the network was trained on these are the test images of its run, whatever
    has been added since; of any other folder its test part, or all images where it has none, but
    never one that was in training. What is left out is said in the log.

    Args:
        config: its ``root`` is the folder, its ``image_size`` that of the network.
        class_names: of the network, in the order of its outputs; the folder may lack some.
        channels: of the network's images.
        split: of the network's run; None if nothing in the folder was in training.

    Raises:
        DataError: if the folder is unsuitable, has other classes, or no image is left.
    """
    assert config.root is not None, "DataConfig demands a path for folders"
    assert config.image_size is not None, "that of the network"
    contents = list_contents(config.root, None)
    listing = _measured(contents, split)
    names = [contents.class_names[label] for label in listing.labels.tolist()]
    if unknown := sorted(set(names) - set(class_names)):
        raise DataError(
            f"the network knows the classes {list(class_names)}, {config.root} has {unknown} too: "
            "give images of the network's classes"
        )
    if missing := sorted(set(class_names) - set(names)):
        told = "%s has no images of %d of the network's %d classes: %s"
        logger.warning(told, config.root, len(missing), len(class_names), first(missing))
    places = {name: place for place, name in enumerate(class_names)}
    labels = torch.tensor([places[name] for name in names], dtype=torch.int64)
    good, _, reasons = scan(Listing(listing.paths, labels), max(1, config.workers))
    good = good.sample(config.max_test_images, SPLIT_SEED)
    images = _file_images(contents, good, config.image_size, channels)
    (loaded,) = _load([cropped(images, CentreCrop(config.test_crop))], config.workers, reasons)
    if reasons:
        bad = [f"{contents.name(path)} ({reason})" for path, reason in reasons.items()]
        logger.warning("%d unreadable image files skipped: %s", len(bad), first(bad))
    if not len(loaded):
        raise DataError(f"{config.root} has no image to measure: give a folder of test images")
    return loaded


def _measured(contents: Contents, split: Split | None) -> Listing:
    """The files of a folder that may be measured, see ``read_test_images``."""
    rows = split.rows if split else {}
    both = [contents.test, contents.train]
    paths = [path for part in both for path in part.paths]
    everything = Listing(tuple(paths), torch.cat([part.labels for part in both]))
    names = dict(zip(paths, map(contents.name, paths), strict=True))
    known = {
        name for path, name in names.items()
        if name in rows and rows[name].num_bytes == num_bytes(path)
    }  # fmt: skip
    held_out = {name for name, row in rows.items() if row.part == "test"}
    if 2 * len(known) > min(len(names), len(rows)):  # the folder of the run, here or elsewhere
        _say(contents, "test images of the run are gone", held_out - set(names.values()))
        _say(contents, "images are new and not measured", set(names.values()) - set(rows))
        return everything.where(torch.tensor([names[path] in held_out for path in paths]))
    seen = {name for name in known if rows[name].part == "train"}
    _say(contents, "images were in training and are not measured", seen)
    if len(contents.test.paths):
        everything = contents.test
    return everything.where(torch.tensor([names[path] not in seen for path in everything.paths]))


def _say(contents: Contents, what: str, names: set[str]) -> None:
    if names:
        logger.warning("%s: %d %s: %s", contents.root, len(names), what, first(sorted(names)))
