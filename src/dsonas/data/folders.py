"""A folder of the user's own images: one folder per class, with or without a test part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from dsonas._utils import derive_seed

from . import sources
from .augmentation import CentreCrop, cropped
from .data_config import DataConfig, DataError
from .decoding import EXTENSIONS, ImageHeader, UnreadableImageError, decode, read_header
from .images import FileImages, ImageSet
from .sources import SPLIT_SEED, SourceData
from .splitting import stratified_choice

logger = logging.getLogger(__name__)

TEST_FOLDERS = ("test", "val", "valid", "validation")
_LAYOUT = "one folder of images per class, or train/ and val/ with such folders inside"


@dataclass(frozen=True)
class Listing:
    """Image files and their classes, before anything is known about the images.

    Args:
        paths: of the files.
        labels: int64 tensor, class of each file.
    """

    paths: tuple[str, ...]
    labels: Tensor

    def where(self, chosen: Tensor) -> Listing:
        """Those for which a bool tensor is true."""
        paths = zip(self.paths, chosen.tolist(), strict=True)
        return Listing(tuple(path for path, keep in paths if keep), self.labels[chosen])

    def sample(self, num_images: int | None, seed: int) -> Listing:
        """A stratified subset; see ``ImageSet.sample``."""
        if num_images is None or num_images >= len(self.paths):
            return self
        return self.where(stratified_choice(self.labels, num_images, seed))


def read_folder(config: DataConfig, seed: int) -> SourceData:
    """Read a folder of class folders, or one with ``train`` and ``test`` or ``val`` inside.

    Files that cannot be read are left out. Where there is no test part a stratified one is held
    out, which depends on the names of the files only, not on ``seed``. Sets beyond
    ``MEMORY_LIMIT`` are not decoded now but when they are used.

    Args:
        config: its ``root`` is the folder.
        seed: of the subset that ``config.max_train_images`` asks for.

    Returns:
        The parts, their classes and the files left out.

    Raises:
        DataError: if the folder is missing or does not hold at least two classes of images, if
            train and test classes differ, or if colours are not as ``config.color`` demands.
    """
    root = config.root
    assert root is not None, "DataConfig demands a path for folders"
    train, test, class_names = list_parts(root, config.test_fraction)
    train_seed = derive_seed(seed, "max_train_images")
    train = train.sample(config.max_train_images, train_seed)
    test = test.sample(config.max_test_images, SPLIT_SEED)
    (train_images, test_images), skipped = _read_parts([train, test], config)
    relative = tuple(str(Path(path).relative_to(root)) for path in skipped)
    return SourceData(
        train=train_images, test=test_images, class_names=class_names, skipped=relative
    )


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


def list_parts(root: Path, test_fraction: float) -> tuple[Listing, Listing, tuple[str, ...]]:
    """List the training and test files of an image folder.

    Args:
        root: the folder.
        test_fraction: share held out for testing, in (0, 1), where there is no test part.

    Returns:
        Both parts, and the names of the classes.

    Raises:
        DataError: as ``read_folder``.
    """
    if not root.is_dir():
        raise DataError(f"image folder {root} not found: give the path of {_LAYOUT}")
    train_folder = root / "train"
    if not (train_folder.is_dir() and _subfolders(train_folder)):
        listing, class_names = _list_classes(root)
        return *_hold_out(listing, test_fraction), class_names
    train, class_names = _list_classes(train_folder)
    candidates = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    # ImageNet's test/ has no labels, hence no folders: then val/ is the labelled one
    test_folder = next((folder for folder in candidates if _subfolders(folder)), None)
    if test_folder is None:
        return *_hold_out(train, test_fraction), class_names
    test, test_names = _list_classes(test_folder)
    _check_same_classes(train_folder, class_names, test_folder, test_names)
    return train, test, class_names


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._"
    )


def _list_classes(folder: Path) -> tuple[Listing, tuple[str, ...]]:
    names = _subfolders(folder)
    if not names:
        raise DataError(f"{folder} has no class folders: it must hold {_LAYOUT}")
    positions = {name: position for position, name in enumerate(names)}
    found = make_dataset(str(folder), positions, EXTENSIONS, allow_empty=True)
    found = [item for item in found if not Path(item[0]).name.startswith(".")]
    present = sorted({label for _, label in found})
    if empty := [name for name in names if positions[name] not in present]:
        logger.warning("%s: %d folders without images ignored: %s", folder, len(empty), empty[:3])
    if len(present) < 2:
        raise DataError(f"{folder} has {len(present)} classes with images, needs 2: see {_LAYOUT}")
    labels = torch.searchsorted(torch.tensor(present), torch.tensor([item[1] for item in found]))
    return Listing(tuple(item[0] for item in found), labels), tuple(names[at] for at in present)


def _hold_out(listing: Listing, fraction: float) -> tuple[Listing, Listing]:
    num_test = round(fraction * len(listing.paths))
    if not 0 < num_test < len(listing.paths):
        raise DataError(
            f"data.test_fraction {fraction} of {len(listing.paths)} images leaves a part empty: "
            "use more images or another fraction"
        )
    in_train = stratified_choice(listing.labels, len(listing.paths) - num_test, SPLIT_SEED)
    return listing.where(in_train), listing.where(~in_train)


def _check_same_classes(
    train_folder: Path, train: tuple[str, ...], test_folder: Path, test: tuple[str, ...]
) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        raise DataError(
            f"classes of {train_folder} and {test_folder} differ: only in the first {only_train}, "
            f"only in the second {only_test}: give both the same folders"
        )


def _read_parts(
    parts: list[Listing], config: DataConfig
) -> tuple[tuple[ImageSet, ImageSet], list[str]]:
    scanned = [scan(part, max(1, config.workers)) for part in parts]
    readable, headers, unreadable = zip(*scanned, strict=True)
    skipped = [path for bad in unreadable for path in bad]
    _check_readable(parts, readable)
    size = config.image_size or choose_image_size([header.short_side for header in headers[0]])
    paths = [path for part in readable for path in part.paths]
    grey = [header.grey for part in headers for header in part]
    first = paths[grey.index(True)] if any(grey) else ""
    channels = choose_channels(config, sum(grey), len(grey), first)
    train, test = (
        FileImages(part.paths, part.labels, image_size=size, channels=channels) for part in readable
    )
    test = cropped(test, CentreCrop(config.test_crop))
    # random crops are cut out of the whole image, so it is decoded anew each time
    if config.augment == "crop" or len(paths) * channels * size**2 > sources.MEMORY_LIMIT:
        return (train, test), skipped
    (train_images, bad_train), (test_images, bad_test) = (
        part.load(max(1, config.workers)) for part in (train, test)
    )
    return (train_images, test_images), [*skipped, *bad_train, *bad_test]


def scan(
    listing: Listing, num_threads: int, complete: bool = False
) -> tuple[Listing, list[ImageHeader], list[str]]:
    """Read the heads of image files: the readable ones, their headers, and the others' paths.

    With ``complete`` the pixels are decoded too, which finds truncated files.
    """

    def header_or_none(path: str) -> ImageHeader | None:
        try:
            if complete:
                decode(path, 32, 3)
            return read_header(path)
        except UnreadableImageError:
            return None

    with ThreadPoolExecutor(num_threads) as pool:
        headers = list(pool.map(header_or_none, listing.paths))
    readable = torch.tensor([header is not None for header in headers])
    return (
        listing.where(readable),
        [header for header in headers if header is not None],
        list(listing.where(~readable).paths),
    )


def _check_readable(parts: Sequence[Listing], readable: Sequence[Listing]) -> None:
    for part, good, name in zip(parts, readable, ("training", "test"), strict=True):
        if not good.paths:
            raise DataError(
                f"none of the {len(part.paths)} {name} images can be read, the first is "
                f"{part.paths[0]}: check that these files are complete images"
            )


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
