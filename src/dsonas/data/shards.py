"""Writing webdataset shards from an image folder, with an index that makes lengths exact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsonas._utils import derive_seed, write_atomically

from .data_config import DataError
from .decoding import UnreadableImageError, decode, read_header, shrink_image
from .folders import Listing, choose_image_size, list_parts, scan
from .normalisation import histogram_statistics
from .shard_files import webdataset
from .shard_index import INDEX_NAME, Shard, ShardIndex
from .sources import SPLIT_SEED

logger = logging.getLogger(__name__)

MOST_IN_A_SHARD = 1000
SHARDS_OF_SMALL_SETS = 16  # so that a split by shard comes near the fraction asked for
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How to write shards.

    Args:
        images_per_shard: at most so many images in a file, >= 1. None: 1000, or fewer, so that
            there are 16 files.
        size: resize larger images to so many pixels of the shorter side, >= 4. None: copy the
            files as they are.
        test_fraction: share held out for testing, in (0, 1), where the folder has no test part.
        workers: decoding threads, >= 1.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> ShardConfig(size=256).images_per_shard is None
        True
    """

    images_per_shard: int | None = None
    size: int | None = None
    test_fraction: float = 0.2
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("images_per_shard", 1), ("size", 4), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(
                f"test_fraction must be above 0 and below 1, got {self.test_fraction}: "
                "0.2 holds out a fifth"
            )


def write_shards(
    folder: Path, out: Path, config: ShardConfig | None = None, progress: Progress | None = None
) -> dict[str, ShardIndex]:
    """Write an image folder as shards: ``out/train`` and ``out/val``, each with an index.

    The images of a part are shuffled by a fixed seed, so that every shard is a fair sample. The
    index is the last file of a part to be written. Files that cannot be read are left out.

    Args:
        folder: one folder per class, or ``train/`` and ``val/`` (or ``test/``) with such inside.
        out: a new folder, or an empty one.
        config: sizes.
        progress: called with part, shards written, and shards of the part.

    Returns:
        The index of each part.

    Raises:
        DataError: if the folder is unsuitable, ``out`` is not empty, or webdataset is missing.
    """
    config = config or ShardConfig()
    webdataset("writer")  # before any work
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty: give a new folder for the shards, or delete it")
    train, test, class_names = list_parts(folder, config.test_fraction)
    written = {}
    for part, listing in (("val", test), ("train", train)):
        writer = _PartWriter(folder, out / part, class_names, config)
        written[part] = writer.write(listing, partial(progress or _silent, part))
    return written


def _silent(part: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class _Sample:
    """An image ready to be written, and what the index needs to know about it."""

    label: int
    content: bytes
    ending: str
    grey: bool
    histogram: Tensor


@dataclass
class _PartWriter:
    """Writes the shards and the index of one part."""

    folder: Path
    out: Path
    class_names: tuple[str, ...]
    config: ShardConfig
    skipped: list[str] = field(default_factory=list)
    num_grey: int = 0

    def __post_init__(self) -> None:
        self.histogram = torch.zeros(4, 256, dtype=torch.int64)  # red, green, blue; grey

    def write(self, listing: Listing, progress: Callable[[int, int], None]) -> ShardIndex:
        readable, headers, bad = scan(listing, self.config.workers)
        self._skip(bad)
        limit = self.config.size
        sides = [min(header.short_side, limit or header.short_side) for header in headers]
        self.out.mkdir(parents=True, exist_ok=True)
        groups = _groups(len(sides), self.config.images_per_shard)
        shards: list[Shard] = []
        with ThreadPoolExecutor(self.config.workers) as pool:
            for done, group in enumerate(groups, 1):
                size = choose_image_size(sides)
                samples = list(self._samples(readable, group, size, pool))
                if samples:
                    shards.append(self._write_tar(f"{len(shards):06d}.tar", samples))
                progress(done, len(groups))
        return self._write_index(shards, sides)

    def _samples(
        self, listing: Listing, group: Sequence[int], size: int, pool: ThreadPoolExecutor
    ) -> Iterator[_Sample]:
        def prepare(position: int) -> _Sample | str:
            path = listing.paths[position]
            try:
                return _prepare(path, int(listing.labels[position]), size, self.config.size)
            except UnreadableImageError:
                return path

        for prepared in pool.map(prepare, group):
            if isinstance(prepared, str):
                self._skip([prepared])
                continue
            self.histogram += prepared.histogram
            self.num_grey += prepared.grey
            yield prepared

    def _skip(self, paths: Sequence[str]) -> None:
        self.skipped += [str(Path(path).relative_to(self.folder)) for path in paths]

    def _write_tar(self, name: str, samples: Sequence[_Sample]) -> Shard:
        path, stem = self.out / name, name.removesuffix(".tar")
        with (
            open(path, "wb") as file,
            # a fixed time: the same folder gives the same bytes
            webdataset("writer").TarWriter(file, encoder=False, mtime=0, compress=False) as tar,
        ):
            for number, sample in enumerate(samples):
                key, label = f"{stem}_{number:06d}", str(sample.label).encode()
                tar.write({"__key__": key, "cls": label, sample.ending: sample.content})
        labels = tuple(sample.label for sample in samples)
        return Shard(file=name, num_bytes=path.stat().st_size, labels=labels)

    def _write_index(self, shards: Sequence[Shard], sides: Sequence[int]) -> ShardIndex:
        if not shards:
            raise DataError(
                f"none of the images for {self.out} can be read, the first is {self.skipped[0]}: "
                "check that these files are complete images"
            )
        if self.skipped:
            first = ", ".join(self.skipped[:3])
            logger.warning("%d unreadable image files skipped: %s", len(self.skipped), first)
        index = ShardIndex(
            class_names=self.class_names,
            shards=tuple(shards),
            short_side=int(median(sides)),
            num_grey=self.num_grey,
            statistics={
                "grey": histogram_statistics(self.histogram[3:]),
                "rgb": histogram_statistics(self.histogram[:3]),
            },
            skipped=tuple(self.skipped),
        )
        write_atomically(self.out / INDEX_NAME, index.to_json().encode())
        return index


def _groups(num_images: int, most: int | None) -> list[list[int]]:
    """Positions of the images of each shard: shuffled, and equally many but for one."""
    num_shards = -(-num_images // (most or MOST_IN_A_SHARD))
    if most is None:
        num_shards = max(num_shards, min(SHARDS_OF_SMALL_SETS, num_images))
    generator = torch.Generator().manual_seed(derive_seed(SPLIT_SEED, "shards"))
    order = torch.randperm(num_images, generator=generator)
    return [group.tolist() for group in order.tensor_split(num_shards)] if num_shards else []


def _prepare(path: str, label: int, size: int, side: int | None) -> _Sample:
    """Read an image, shrink it if asked for, and decode it: what is written can be read."""
    try:
        content, ending = Path(path).read_bytes(), Path(path).suffix[1:].lower()
    except OSError as error:
        raise UnreadableImageError(f"cannot read image {path}: {error}") from error
    header = read_header(content, path)
    if side is not None and header.short_side > side:
        content, ending = shrink_image(content, side, path)
    pixels = decode(content, size, 3, path)
    grey = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
    channels = torch.from_numpy(np.concatenate([pixels, grey[None]]))
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in channels]
    return _Sample(label, content, ending, header.grey, torch.stack(counts))
