"""Read shards: the order of an epoch is known before anything is read, readers only follow it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Self

import numpy as np
import torch
from fsspec.core import url_to_fs
from torch import Tensor

from dsonas._utils import derive_seed

from .data_config import DataConfig, DataError
from .folder_images import choose_channels, choose_image_size
from .images import DecodedImages
from .shards import COLORS, INDEX_NAME, ShardIndex
from .sources import SPLIT_SEED, SourceData
from .splitting import num_bytes

LANES = 32  # so many readers work side by side without reading a shard twice


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
                    images.append(data) if not member.name.endswith(".cls") else labels.append(data)
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

    def __init__(self, files: ShardFiles, image_shape: tuple[int, int, int], rows: Tensor) -> None:
        self.files, self.image_shape, self.rows = files, image_shape, rows
        self.labels = files.labels[rows]

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
            pixels = torch.empty(len(chunk), *self.image_shape, dtype=torch.uint8)
            for place, position in enumerate(chunk.tolist()):
                pixels[place] = self._decode_or_replace(position, next(contents))
            yield pixels, self.labels[chunk]

    def name(self, position: int) -> str:
        """Its place in its shard."""
        row = int(self.rows[position])
        shard = int(self.files.shard_of[row])
        return f"number {row - self.files.first[shard]} of {self.files.urls[shard]}"

    def decode(self, position: int) -> Tensor:
        """Fetch and decode one image; see ``DecodedImages.decode``."""
        return self._decode(position, next(self.files.contents(self.rows[[position]])))


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
    train_images, test_images = (
        ShardImages(files, (channels, size, size), torch.arange(len(files.labels)))
        for files in (train, test)
    )
    train_images.fit, test_images.fit = config.fit.partition(":")[0], config.fit
    return SourceData(
        train=train_images.sample(config.max_train_images, derive_seed(seed, "max_train_images")),
        test=test_images.sample(config.max_test_images, SPLIT_SEED),
        class_names=class_names,
        statistics=train.index.statistics[COLORS[channels]],
        skipped=skipped,
    )
