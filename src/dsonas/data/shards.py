"""Write shards: tar files of images (webdataset's layout) and an index that says what they hold."""

from __future__ import annotations

import json
import logging
import math
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dsonas._utils import ImageSize, PositiveInt, derive_seed, write_atomically

from .data_config import DataConfig, DataError
from .decoding import read_header, shrink_image
from .folder_images import choose_image_size, scan
from .folder_layout import first
from .folders import Contents, list_contents
from .images import FileImages
from .normalisation import channel_statistics
from .sources import SPLIT_SEED, Statistics
from .splitting import Listing

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
FORMAT = {"format": "dsonas-shards", "version": 1}
COLORS = {1: "grey", 3: "rgb"}
_ENDLESS = (OverflowError, RecursionError)  # numbers or nesting
SHARDS_OF_SMALL_SETS = 16  # so that a split by shard comes near the fraction asked for


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, its size in bytes, the class of each image in it."""

    file: str
    num_bytes: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class ShardIndex:
    """What the shards of one part of a data set hold; statistics as ``grey`` and as ``rgb``."""

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    short_side: int  # median, in pixels
    num_grey: int
    statistics: dict[str, Statistics]
    skipped: tuple[str, ...]  # files that were damaged

    def __post_init__(self) -> None:
        num_classes = len(self.class_names)
        for shard in self.shards:
            if not re.fullmatch(r"\w[\w.-]*", shard.file, re.ASCII):  # a part of paths and URLs
                raise ValueError(f"{shard.file!r} must be a name of letters, digits, dots, dashes")
            if {type(value) for value in (shard.num_bytes, *shard.labels)} != {int}:
                raise ValueError(f"{shard.file} must have a size and labels in whole numbers")
            if not shard.labels or not 0 <= min(shard.labels) <= max(shard.labels) < num_classes:
                raise ValueError(f"{shard.file} must have labels from 0, below {num_classes}")
        if not 0 < len({shard.file for shard in self.shards}) == len(self.shards):
            raise ValueError("there must be at least one shard, and none twice")
        for channels, color in COLORS.items():
            mean, std = self.statistics[color]
            finite = all(map(math.isfinite, mean + std))
            if not finite or not len(mean) == len(std) == channels or min(std) <= 0:
                raise ValueError(
                    f"statistics of {color} must be {channels} means and {channels} deviations "
                    f"above 0, got {mean} and {std}"
                )

    @classmethod
    def from_json(cls, text: str | bytes, place: str) -> ShardIndex:
        """Read the text of an index file; a DataError if it is not one or contradicts itself."""
        try:
            value: Any = json.loads(text)
            if found := {key: value[key] for key in FORMAT if value[key] != FORMAT[key]}:
                raise ValueError(f"this dsonas reads {FORMAT}, got {found}")
            shards = value["shards"]
            return cls(
                class_names=tuple(map(str, value["class_names"])),
                shards=tuple(Shard(s["file"], s["num_bytes"], tuple(s["labels"])) for s in shards),
                short_side=int(value["short_side"]),
                num_grey=int(value["num_grey"]),
                statistics={k: (tuple(m), tuple(s)) for k, (m, s) in value["statistics"].items()},
                skipped=tuple(value["skipped"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, *_ENDLESS) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else error
            raise DataError(
                f"{place} is not an index of shards ({reason}): write them again by `dsonas shards`"
            ) from None


def write_shards(
    folder: Path,
    out: Path,
    *,
    images_per_shard: PositiveInt = 256,
    size: ImageSize | None = None,
    test_fraction: float = 0.2,
    workers: PositiveInt = 1,
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> dict[str, ShardIndex]:
    """Write an image folder as shards: ``out/train`` and ``out/val``, each with an index.

    The images of a part are shuffled by a fixed seed, so that every shard is a fair sample. The
    index is the last file of a part to be written. Files that cannot be read are left out.

    Args:
        folder: one folder per class, or ``train/`` and ``val/`` (or ``test/``) with such inside.
        out: a new folder, or an empty one.
        images_per_shard: at most so many images in a file, >= 1; fewer in small sets, so that
            there are 16 files. A reader holds about 32 shards in memory.
        size: resize larger images to so many pixels of the shorter side, >= 4. None: copy the
            files as they are.
        test_fraction: share held out for testing, in (0, 1), where the folder has no test part.
        workers: decoding threads, >= 1.
        progress: called with part, shards written, and shards of the part.

    Raises:
        ValueError: if the share is out of range, the folder is unsuitable or ``out`` not empty.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}: 0.2 is a fifth")
    contents = _contents(folder, out, test_fraction)
    written = {}
    for part, listing in (("val", contents.parts["test"]), ("train", contents.parts["train"])):
        (out / part).mkdir(parents=True)
        found, damaged = scan(listing, workers, complete=True)
        kept, headers = listing.without(damaged), list(found.values())
        skipped = tuple(map(contents.name, damaged))
        if not headers:
            raise DataError(f"no image can be read, as {skipped[0]}: check that they are complete")
        if skipped:
            told = "%d unreadable image files skipped: %s"
            logger.warning(told, len(skipped), first(skipped))
        groups = _groups(len(headers), images_per_shard)
        shards: list[Shard] = []
        with ThreadPoolExecutor(workers) as pool:
            write = partial(_write_tar, out / part, kept, size)
            for shard in pool.map(write, range(len(groups)), groups):
                shards.append(shard)
                progress(part, len(shards), len(groups))
        sides = [min(header.short_side, size or header.short_side) for header in headers]
        image_size = choose_image_size(sides)
        read = partial(FileImages, kept.paths, kept.labels, image_size=image_size)
        index = ShardIndex(
            class_names=contents.class_names,
            shards=tuple(shards),
            short_side=int(median(sides)),
            num_grey=sum(header.grey for header in headers),
            statistics={name: channel_statistics(read(channels=n)) for n, name in COLORS.items()},
            skipped=skipped,
        )
        write_atomically(out / part / INDEX_NAME, json.dumps(FORMAT | asdict(index)).encode())
        written[part] = index
    return written


def _contents(folder: Path, out: Path, test_fraction: float) -> Contents:
    """What is to be written; says what of it is not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: give a new folder for the shards, or delete it")
    if out.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{out} must be outside of the image folder {folder}: choose another")
    contents = list_contents(DataConfig(name=f"folder:{folder}", test=test_fraction, val=0))
    if contents.layout.unused:
        logger.warning("%s: %s", folder, ", ".join(contents.layout.unused))
    return contents


def _groups(num_images: int, most: int) -> list[list[int]]:
    """Positions of the images of each shard: shuffled, and equally many but for one."""
    num_shards = max(-(-num_images // most), min(SHARDS_OF_SMALL_SETS, num_images))
    generator = torch.Generator().manual_seed(derive_seed(SPLIT_SEED, "shards"))
    order = torch.randperm(num_images, generator=generator)
    return [group.tolist() for group in order.tensor_split(num_shards)]


def _write_tar(
    folder: Path, listing: Listing, side: int | None, number: int, group: list[int]
) -> Shard:
    out, labels = folder / f"{number:06d}.tar", listing.labels[group].tolist()
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for at, (position, label) in enumerate(zip(group, labels, strict=True)):
            path = listing.paths[position]
            image, ending = Path(path).read_bytes(), Path(path).suffix[1:].lower()
            if side is not None and read_header(image, path).short_side > side:
                image, ending = shrink_image(image, side, path)
            for kind, content in (("cls", str(label).encode()), (ending, image)):
                # no time, no owner: the same folder gives the same bytes
                member = tarfile.TarInfo(f"{number:06d}_{at:06d}.{kind}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    write_atomically(out, buffer.getvalue())
    return Shard(out.name, len(buffer.getvalue()), tuple(labels))
