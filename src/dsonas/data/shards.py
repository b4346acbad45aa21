"""Shards: tar files of images (webdataset's layout) and an index; how they are written and read.

The order of an epoch is known before anything is read: readers only follow it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
import torch
from fsspec.core import url_to_fs
from torch import Tensor

from dsonas._utils import ImageSize, PositiveInt, derive_seed, write_atomically

from .data_config import DataConfig, DataError
from .decoding import read_header, shrink_image
from .folder_images import choose_channels, choose_image_size, scan
from .folder_layout import say
from .folders import list_contents
from .images import DecodedImages, FileImages, channel_statistics
from .sources import SPLIT_SEED, SourceData, Statistics
from .splitting import Listing, num_bytes

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
FORMAT = {"format": "dsonas-shards", "version": 1}
COLORS = {1: "grey", 3: "rgb"}
SHARDS_OF_SMALL_SETS = 16  # so that a split by shard comes near the fraction asked for
LANES = 32  # so many readers work side by side without reading a shard twice


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
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: give a new folder for the shards, or delete it")
    if out.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{out} must be outside of the image folder {folder}: choose another")
    contents = list_contents(DataConfig(name=f"folder:{folder}", test=test_fraction, val=0))
    if contents.layout.unused:
        logger.warning("%s: %s", folder, ", ".join(contents.layout.unused))
    written = {}
    for part, listing in (("val", contents.parts["test"]), ("train", contents.parts["train"])):
        (out / part).mkdir(parents=True)
        found, damaged = scan(listing, workers, complete=True)
        kept, headers = listing.without(damaged), list(found.values())
        skipped = tuple(map(contents.name, damaged))
        if not headers:
            raise DataError(f"no image can be read, as {skipped[0]}: check that they are complete")
        say("%d unreadable image files skipped: %s", skipped)
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


class ShardFiles:
    """The shards of one part of a data set, in a folder or at a URL; each is read as a whole."""

    def __init__(self, place: str) -> None:
        if not (text := _fetch(f"{place}/{INDEX_NAME}")):
            raise DataError(
                f"no index of shards at {place}/{INDEX_NAME}: give the folder or URL that "
                "`dsonas shards` wrote, with train/ and val/ in it"
            )
        self.index = ShardIndex.from_json(text, f"{place}/{INDEX_NAME}")
        self.urls = [f"{place}/{shard.file}" for shard in self.index.shards]
        for url, shard in zip(self.urls, self.index.shards, strict=True):
            if "://" not in url:  # before any work
                _check_size(url, num_bytes(url), shard.num_bytes)
        counts = torch.tensor([len(shard.labels) for shard in self.index.shards])
        self.labels = torch.tensor([at for shard in self.index.shards for at in shard.labels])
        self.shard_of = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self.first = (counts.cumsum(0) - counts).tolist()

    @cached_property
    def told(self) -> bytes:
        """All that the index says, by which a run knows its shards again."""
        return repr(self.index).encode()

    def contents(self, positions: Tensor) -> Iterator[bytes]:
        """The encoded images at some positions, in the order asked for.

        A shard is read when its first image is asked for; its other images are held until they
        are, if they are.
        """
        left = np.bincount(positions.numpy(), minlength=len(self.labels))
        held: dict[int, bytes] = {}
        for position in positions.tolist():
            if position not in held:
                shard = int(self.shard_of[position])
                images = enumerate(self.read(shard), self.first[shard])
                held |= {at: image for at, image in images if left[at]}
            left[position] -= 1
            yield held[position] if left[position] else held.pop(position)

    def read(self, shard: int) -> list[bytes]:
        """All encoded images of one shard; a DataError if they are not what the index says."""
        url, expected = self.urls[shard], self.index.shards[shard]
        content = _fetch(url)
        _check_size(url, len(content), expected.num_bytes)
        labels, images = [], []
        try:
            with tarfile.open(fileobj=BytesIO(content), mode="r:") as tar:
                for member in tar:
                    data = content[member.offset_data : member.offset_data + member.size]
                    (labels if member.name.endswith(".cls") else images).append(data)
            found = tuple(map(int, labels))
        except (tarfile.TarError, ValueError):
            found = ()
        if found != expected.labels or len(images) != len(found):
            raise DataError(
                f"shard {url} does not hold what its index says: it is damaged or of another set, "
                "copy it again, or write the shards again"
            )
        return images


def _check_size(url: str, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"shard {url} is missing or truncated, it has {found} bytes where its index says "
            f"{expected}: copy it again"
        )


def _fetch(url: str) -> bytes:
    """The content of a file; nothing if there is no such file."""
    remedy = "check its place, and try again"
    try:
        files, path = url_to_fs(url)
        return files.cat_file(path)
    except FileNotFoundError:
        return b""
    except ImportError as error:
        reason, remedy = error, 'pip install "dsonas[stream]" for http, or the package it names'
    except Exception as error:  # every kind of store has its own
        reason = error
    told = " ".join(str(reason).split()) or type(reason).__name__
    raise DataError(f"{url} cannot be read ({told}): {remedy}")


class ShardImages(DecodedImages):
    """Those images in shards that are at certain rows; see ``DecodedImages`` for damaged ones."""

    def __init__(self, files: ShardFiles, image_shape: tuple[int, int, int], fit: str) -> None:
        self.files, self.image_shape, self.fit = files, image_shape, fit
        self.rows, self.labels = torch.arange(len(files.labels)), files.labels

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide in two by shard, so that each part reads its own; as nearly as they allow."""
        shards = self.files.shard_of[self.rows]
        present, counts = torch.unique(shards, return_counts=True)
        if not 0 < fraction < 1 or len(present) < 2:
            raise DataError(
                f"a split by shard needs a share above 0 and below 1, got {fraction}, and at least "
                f"2 shards, the set has {len(present)}: lower --images_per_shard when writing "
                "them, or set data.factor_split 0 for no split"
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, "shards"))
        shuffled = torch.randperm(len(present), generator=generator)
        sums = counts[shuffled][:-1].cumsum(0)
        num_second = int((sums - fraction * counts.sum()).abs().argmin()) + 1
        second = torch.isin(shards, present[shuffled[:num_second]])
        return self.subset(~second), self.subset(second)

    def order(self, seed: int, batch_size: int) -> Tensor:
        """A random order that reads shard after shard; see ``stream_order``."""
        return stream_order(self.files.shard_of[self.rows], batch_size, seed)

    def gather(self, indices: Tensor) -> Tensor:
        """Fetch pixels; see ``ImageSet.gather``."""
        return next(self.read([indices]))[0]

    def read(self, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch pixels and labels in one pass over the shards; see ``ImageSet.read``."""
        contents = self.files.contents(self.rows[torch.cat([torch.arange(0), *chunks])])
        for chunk in chunks:
            yield self.fetch(chunk, contents), self.labels[chunk]

    def name(self, position: int) -> str:
        """Its place in its shard."""
        row = int(self.rows[position])
        shard = int(self.files.shard_of[row])
        return f"number {row - self.files.first[shard]} of {self.files.urls[shard]}"

    def file(self, position: int) -> bytes:
        """Fetch the encoded image at a position."""
        return next(self.files.contents(self.rows[[position]]))


def stream_order(shard_of: Tensor, batch_size: int, seed: int) -> Tensor:
    """Choose a random order of images, given their shards, that reads shard after shard.

    The shards are laid end to end at random, the images of each shuffled; the line is cut into
    ``LANES`` sections, or as many as there are shards. A batch takes its k-th part from section k.
    So readers that each take a part of every batch read their own shards only (except that two
    share a shard which a cut goes through), and the order is the same however many readers there
    are. Sections begin anywhere in a shard, so that they do not all turn to their next at a time.
    What is left over after the last full batch comes last.
    """
    generator = torch.Generator().manual_seed(seed)
    present, shard_of = torch.unique(shard_of, return_inverse=True)
    place = torch.randperm(len(present), generator=generator)[shard_of]
    within = torch.rand(len(shard_of), generator=generator, dtype=torch.float64)
    line = torch.argsort(place + within)
    num_batches, lanes = len(line) // batch_size, max(1, min(LANES, len(present), batch_size))
    cuts, slots = torch.arange(lanes + 1) * batch_size // lanes, torch.arange(batch_size)
    lane = torch.searchsorted(cuts, slots, right=True) - 1
    first, width = cuts[lane], cuts.diff()[lane]
    places = num_batches * first + torch.arange(num_batches)[:, None] * width + slots - first
    return torch.cat([line[places.flatten()], line[num_batches * batch_size :]])


def read_shards(config: DataConfig, seed: int) -> SourceData:
    """Open the shards that ``dsonas shards`` wrote; images are read when they are used."""
    root = str(config.location).rstrip("/")
    train, test = ShardFiles(f"{root}/train"), ShardFiles(f"{root}/val")
    class_names, skipped = train.index.class_names, train.index.skipped + test.index.skipped
    if class_names != test.index.class_names:
        raise DataError(f"train and test shards of {root} have different classes: write both anew")
    num_grey = train.index.num_grey + test.index.num_grey
    num_images, example = len(train.labels) + len(test.labels), f"an image of {root}"
    channels = choose_channels(config, num_grey, num_images, example)
    size = config.image_size or choose_image_size([train.index.short_side])
    shape, seeds = (channels, size, size), derive_seed(seed, "max_train_images")
    train_images = ShardImages(train, shape, config.fit.partition(":")[0])
    return SourceData(
        train=train_images.sample(config.max_train_images, seeds),
        test=ShardImages(test, shape, config.fit).sample(config.max_test_images, SPLIT_SEED),
        class_names=class_names,
        statistics=train.index.statistics[COLORS[channels]],
        skipped=skipped,
    )
