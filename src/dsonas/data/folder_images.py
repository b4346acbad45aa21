"""Images in folders: read for a run, to measure a finished network on them, or to predict them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from statistics import median

import PIL
import torch
from torch import Tensor

from dsonas._utils import derive_seed

from . import sources
from .data_config import DataConfig, DataError, with_share
from .decoding import ImageHeader, UnreadableImageError, decode, read_header
from .file_facts import told_by_files
from .folder_layout import first, say
from .folders import Contents, list_contents, list_images
from .images import FileImages, ImageSet, normalise
from .sources import SPLIT_SEED, SourceData
from .splitting import Listing, Row, Split, num_bytes

logger = logging.getLogger(__name__)
_LEARNED = "images were in training and are not measured"


def read_folder(config: DataConfig, seed: int) -> SourceData:
    """Read the folder of images ``config.root``: see ``list_contents`` for what is read.

    Files that cannot be read are left out. Sets beyond ``MEMORY_LIMIT`` are not decoded now but
    when they are used. The seed is that of the subset ``config.max_train_images``.
    """
    contents = list_contents(config)
    headers, reasons = {}, {}
    for part, listing in contents.parts.items():
        found, bad = scan(listing, max(1, config.workers))
        if listing.paths and not found:
            path = listing.paths[0]
            raise DataError(
                f"none of the {len(listing.paths)} {part} images can be read, the first is "
                f"{contents.name(path)} ({bad[path]}): check that they are complete images"
            )
        headers |= found
        reasons |= bad
    if not contents.parts["train"].paths:
        raise DataError(
            f"all training images of {config.root} are exact copies of test or validation images: "
            "put others into one of them"
        )
    good = {part: listing.without(reasons) for part, listing in contents.parts.items()}
    for part in ("test", "val"):
        kept = set(good[part].labels.tolist())
        lost = sorted(set(contents.parts[part].labels.tolist()) - kept)
        names = [contents.class_names[label] for label in lost]
        say("no %s image of %d classes can be read: %s", names, part)
    heads = [headers[path] for path in good["train"].paths]
    size = config.image_size or choose_image_size([head.short_side for head in heads])
    several = sorted(contents.name(path) for path, head in headers.items() if head.several)
    say("%d files hold several images, of which the first is used: %s", several)
    grey = [path for path, head in headers.items() if head.grey]
    channels = choose_channels(config, len(grey), len(headers), "".join(grey[:1]))
    seeds = {"train": derive_seed(seed, "max_train_images"), "test": SPLIT_SEED}
    most = {"train": config.max_train_images, "test": config.max_test_images}
    images: dict[str, ImageSet] = {
        part: _file_images(
            contents, listing.sample(most.get(part), seeds.get(part, 0)), size, channels,
            config.fit.partition(":")[0] if part == "train" else config.fit,
        )
        for part, listing in good.items() if listing.paths
    }  # fmt: skip
    # random crops are cut out of the whole image, so it is decoded anew each time
    if config.augment != "crop":
        images = _load(images, config.workers, reasons)
    return SourceData(
        train=images["train"],
        test=images["test"],
        val=images.get("val"),
        class_names=contents.class_names,
        layout=contents.describe(config),
        split=contents.split(reasons),
        skipped=tuple(map(contents.name, reasons)),
    )


def scan(
    listing: Listing, num_threads: int, complete: bool = False
) -> tuple[dict[str, ImageHeader], dict[str, str]]:
    """Read the heads of image files; if ``complete``, decode them too, which finds truncated ones.

    Returns, by path, the headers of the readable files, and why the others are unreadable.
    """
    bad: dict[str, str] = {}

    def header(path: str) -> ImageHeader | None:
        try:
            if complete:
                decode(path, 32, 3)
            return read_header(path)
        except UnreadableImageError as error:
            bad[path] = error.reason
            return None

    kind = f"{'pixels' if complete else 'header'} by Pillow {PIL.__version__}"
    found = told_by_files(kind, listing.paths, header, num_threads)
    return (
        {path: ImageHeader(*head) for path, head in found.items()},
        {path: bad[path] for path in listing.paths if path in bad},
    )


def choose_image_size(short_sides: Sequence[int]) -> int:
    """Choose 32 pixels if the median of the shorter sides is below 48, 64 below 160, or 224.

    Example:
        >>> choose_image_size([28, 28, 500]), choose_image_size([640, 480])
        (32, 224)
    """
    middle = median(short_sides)
    if middle < 48:
        return 32
    return 64 if middle < 160 else 224


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


def _file_images(
    contents: Contents, listing: Listing, size: int, channels: int, fit: str
) -> FileImages:
    names = tuple(map(contents.name, listing.paths))
    shape = {"image_size": size, "channels": channels}
    return FileImages(listing.paths, listing.labels, **shape, names=names, fit=fit)


def _load(parts: dict[str, ImageSet], workers: int, reasons: dict[str, str]) -> dict[str, ImageSet]:
    """The images decoded into memory, if they fit; adds why some could not be read."""
    needed = sum(len(part) * math.prod(part.image_shape) for part in parts.values())
    if needed > sources.MEMORY_LIMIT:
        return parts
    loaded = {}
    for name, part in parts.items():
        assert isinstance(part, FileImages)
        loaded[name], bad = part.load(max(1, workers))
        reasons |= bad
    return loaded


def read_test_images(
    config: DataConfig, class_names: Sequence[str], channels: int, split: Split | None
) -> ImageSet:
    """Read the images of a folder on which a finished network is to be measured.

    Of the folder that the network was trained on these are the test images of its run, by its
    ``split``, whatever has been added since, unless ``config.test`` names a part of others; of any
    other folder its test part, or all images where it has none, but never one that was in training.
    What is left out is said in the log. ``class_names``, ``channels`` and the size of images are
    the network's; the folder may lack classes.

    Raises:
        DataError: if the folder is unsuitable, has other classes, or no image is left.
    """
    assert config.image_size is not None, "that of the network"
    contents = list_contents(config, trains=False)
    listing = _measured(contents, split, isinstance(config.test, str))
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
    listing = Listing(listing.paths, labels)
    _, reasons = scan(listing, max(1, config.workers))
    good = listing.without(reasons).sample(config.max_test_images, SPLIT_SEED)
    images = _file_images(contents, good, config.image_size, channels, config.fit)
    loaded = _load({"test": images}, config.workers, reasons)["test"]
    bad = [f"{contents.name(path)} ({reason})" for path, reason in reasons.items()]
    say("%d unreadable image files skipped: %s", bad)
    if not len(loaded):
        raise DataError(f"{config.root} has no image to measure: give a folder of test images")
    return loaded


def _measured(contents: Contents, split: Split | None, named: bool) -> Listing:
    """The files of a folder that may be measured, see ``read_test_images``.

    ``named`` is whether the settings name the test part.
    """
    test = contents.parts["test"]
    both = [test, *(contents.parts[part] for part in ("val", "train"))]
    paths = [path for part in both for path in part.paths]
    everything = Listing(tuple(paths), torch.cat([part.labels for part in both]))
    if split is None:
        if not test.paths:
            told = "%s: which images were in training is not known, as the run has no split.csv: "
            logger.warning(told + "all are measured", contents.root)
        return test if test.paths else everything
    names = dict(zip(paths, map(contents.name, paths), strict=True))
    known = {path for path, name in names.items() if _is_same(contents, path, split.rows.get(name))}
    held_out, tests = split.part("test"), {names[path] for path in test.paths}
    used = {name: row for name, row in split.rows.items() if row.part in ("train", "val")}
    others = named and tests and tests.isdisjoint(split.rows)
    # the folder of the run, here or moved
    if 2 * len(known) > min(len(names), len(split.rows)) and not others:
        found = set(names.values())
        changed = {name for path, name in names.items() if name in held_out and path not in known}
        labels = (contents.class_names[label] for label in everything.labels.tolist())
        relabelled = {
            names[path] for path, label in zip(paths, labels, strict=True)
            if names[path] in held_out and split.rows[names[path]].label != label
        }  # fmt: skip
        noticed = {
            "test images of the run are gone": held_out - found,
            "test images of the run are of another class now": relabelled,
            "test images of the run have other content now": changed,
            "images are new and not measured": found - set(split.rows),
            _LEARNED: tests & set(used),
        }
        for what, some in noticed.items():
            say(f"%s: %d {what}: %s", sorted(some), contents.root)
        return everything.where(torch.tensor([names[path] in held_out for path in paths]).bool())
    contents_used = {row.digest for row in used.values()} - {""}
    chosen = test if test.paths else everything
    seen = {
        path for path in chosen.paths
        if contents.digests[path] in contents_used or (path in known and names[path] in used)
    }  # fmt: skip
    say(f"%s: %d {_LEARNED}: %s", sorted(names[path] for path in seen), contents.root)
    return chosen.without(seen)


def _is_same(contents: Contents, path: str, row: Row | None) -> bool:
    """Whether a file is the one that a run had under this name."""
    if row is None or not row.digest:  # older runs know the sizes alone
        return row is not None and row.num_bytes == num_bytes(path)
    return row.digest == contents.digests[path]


def load_images(
    paths: Sequence[str | PathLike[str]],
    *,
    image_size: int,
    input_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
    fit: str = "crop",
    batch_size: int = 64,
    skipped: dict[str, str] | None = None,
) -> Iterator[tuple[Tensor, list[str]]]:
    """Read images as a trained network expects them (see ``read_pixels``), a batch at a time.

    Missing paths are found before the first image is read. Files that cannot be read are skipped,
    each with its reason in the log.

    Args:
        paths: image files, and folders that are searched for images, also inside subfolders.
        image_size, input_channels, crop, fit: see ``read_pixels``.
        mean, std: see ``normalise``.
        batch_size: images in a batch, >= 1.
        skipped: takes the name of each file that cannot be read, and why, before the batch in which
            it would have been is given.

    Returns normalised tensors, each with the names of its files; a DataError if a path does not
    exist, a folder has no images, or no file can be read.
    """
    files, bad = list_files(paths), {} if skipped is None else skipped
    decoded = _decode_files(files, image_size, input_channels, with_share(fit, crop), bad)

    def batches() -> Iterator[tuple[Tensor, list[str]]]:
        while batch := list(islice(decoded, batch_size)):
            images, names = zip(*batch, strict=True)
            yield normalise(torch.stack(images), mean, std), list(names)

    return batches()


def list_files(paths: Sequence[str | PathLike[str]]) -> list[str]:
    """The image files that paths of files and folders stand for, in order; a DataError if none."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            if not (found := list_images(path)):
                raise DataError(f"{path} has no images that Pillow can read: name another folder")
            files += [str(Path(file)) for file in found]  # of "." without its dot, as if named
        elif path.is_file() or (path.is_symlink() and not path.exists()):
            files.append(str(path))  # a broken link, too, is a file: one that cannot be read
        else:
            raise DataError(f"{path} not found: name an image file or a folder of images")
    if not files:
        raise DataError("no images given: name image files or folders")
    return files


def _decode_files(
    files: Sequence[str], image_size: int, channels: int, fit: str, bad: dict[str, str]
) -> Iterator[tuple[Tensor, str]]:
    num_bad = 0
    for file in files:
        try:
            yield torch.from_numpy(decode(file, image_size, channels, fit=fit)), file
        except UnreadableImageError as error:
            num_bad += 1
            bad[file] = error.reason
            if num_bad == len(files):
                raise DataError(
                    f"none of the {num_bad} files is a readable image: {error}"
                ) from None
            logger.warning("%s: skipped", error)
    if num_bad:
        logger.warning("%d unreadable image files skipped of %d", num_bad, len(files))
