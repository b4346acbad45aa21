"""Data sets as webdataset shards: images that are read in the order of their files, and shuffled.

The order of an epoch is a pure function of index, seed and batch size, and known before anything
is read. Readers only follow it: in one process or many, from the first batch or from a later one,
they deliver the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from dsonas._utils import derive_seed

from .augmentation import CentreCrop, cropped
from .data_config import DataConfig, DataError
from .decoding import UnreadableImageError, decode
from .folders import choose_image_size
from .images import DecodedImages
from .shard_files import MissingIndexError, ShardFiles
from .sources import SPLIT_SEED, SourceData

LANES = 32  # so many readers work side by side without reading a shard twice
WINDOW = 8192  # images, of all lanes together, that are held to shuffle them
TEST_PARTS = ("val", "test")


class ShardImages(DecodedImages):
    """Images in shards; see ``DecodedImages`` for those that are damaged.

    Args:
        files: the shards.
        image_size: side of the decoded squares in pixels.
        channels: 1 for grey, 3 for RGB.
        rows: int64 tensor, positions in the shards of the images of this set; None for all.
    """

    def __init__(
        self, files: ShardFiles, *, image_size: int, channels: int, rows: Tensor | None = None
    ) -> None:
        self.files = files
        self.rows = torch.arange(len(files.labels)) if rows is None else rows
        self.labels = files.labels[self.rows]
        self.image_shape = (channels, image_size, image_size)

    def subset(self, indices: Tensor) -> ShardImages:
        """Choose images; see ``ImageSet.subset``."""
        channels, image_size, _ = self.image_shape
        rows = self.rows[indices]
        found = ShardImages(self.files, image_size=image_size, channels=channels, rows=rows)
        return cropped(found, self.crop)

    def split(self, fraction: float, seed: int) -> tuple[ShardImages, ShardImages]:
        """Divide in two by shard, so that each part reads its own shards only.

        Args:
            fraction: share of the second part, in (0, 1), met as nearly as whole shards allow.
            seed: the same seed gives the same parts.

        Returns:
            The part with about ``1 - fraction`` of the images, and the other one.

        Raises:
            ValueError: if ``fraction`` is out of range, or if there are fewer than 2 shards.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}: try 0.5")
        shards = self.files.shard_of[self.rows]
        present, counts = torch.unique(shards, return_counts=True)
        if len(present) < 2:
            raise DataError(
                f"a split by shard (data.factor_split) needs at least 2 shards, the set has "
                f"{len(present)}: write it with a smaller --images_per_shard, or set 0 for no split"
            )
        chosen = present[_share(counts, fraction, derive_seed(seed, "shards"))]
        second = torch.isin(shards, chosen)
        return self.subset(~second), self.subset(second)

    def order(self, seed: int, batch_size: int) -> Tensor:
        """A random order that reads shard after shard; see ``stream_order``."""
        return stream_order(self.files.shard_of[self.rows], batch_size, seed)

    def gather(self, indices: Tensor) -> Tensor:
        """Fetch pixels; see ``ImageSet.gather``. The shards are read from their beginning.

        Raises:
            DataError: if a shard cannot be read, or no image of a class.
        """
        return next(self.read([indices]))[0]

    def read(self, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch pixels and labels in one pass over the shards; see ``ImageSet.read``."""
        if not chunks:
            return
        with closing(self.files.contents(self.rows[torch.cat(list(chunks))])) as contents:
            for chunk in chunks:
                pixels = torch.empty(len(chunk), *self.image_shape, dtype=torch.uint8)
                for place, position in enumerate(chunk.tolist()):
                    pixels[place] = self._decode_or_replace(position, next(contents))
                yield pixels, self.labels[chunk]

    def name(self, position: int) -> str:
        """Its shard and place."""
        return self.files.name(int(self.rows[position]))

    def decode(self, position: int) -> Tensor:
        """Fetch and decode one image; see ``DecodedImages.decode``."""
        with closing(self.files.contents(self.rows[[position]])) as contents:
            return self._decode(position, next(contents))

    def _decode(self, position: int, content: bytes) -> Tensor:
        channels, image_size, _ = self.image_shape
        name = self.name(position)
        return torch.from_numpy(decode(content, image_size, channels, name, self.crop, position))

    def _decode_or_replace(self, position: int, content: bytes) -> Tensor:
        try:
            return self._decode(position, content)
        except UnreadableImageError as error:
            return self._replacement(position, error)


def _share(counts: Tensor, fraction: float, seed: int) -> Tensor:
    """Shards, at least one and not all, that hold about a fraction of the images."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(counts), generator=generator)
    sums = counts[shuffled][:-1].cumsum(0)
    num_chosen = int((sums - fraction * counts.sum()).abs().argmin()) + 1
    return shuffled[:num_chosen].sort().values


def stream_order(shard_of: Tensor, batch_size: int, seed: int) -> Tensor:
    """A random order in which shards are read one after the other.

    The shards are shuffled and laid end to end; the line is cut into ``LANES`` sections, or as many
    as there are shards. A batch takes its k-th part from section k, in the order of the line but
    for a shuffle within a window. So readers that each take a part of every batch read their
    own shards only (except that two share a shard which a cut goes through), and the order is the
    same however many readers there are.

    Args:
        shard_of: int64 tensor of shape ``(num_images,)``, the shard of each image.
        batch_size: images of a batch, >= 1.
        seed: of both shuffles.

    Returns:
        int64 tensor of shape ``(num_images,)``, every position once. What is left over after the
        last full batch comes last.

    Example:
        >>> stream_order(torch.tensor([0, 0, 0, 1, 1, 1]), batch_size=2, seed=0).sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    generator = torch.Generator().manual_seed(seed)
    num_shards = int(shard_of.max()) + 1 if len(shard_of) else 0
    place_of_shard = torch.randperm(num_shards, generator=generator)
    line = torch.argsort(place_of_shard[shard_of], stable=True)
    num_lanes = max(1, min(LANES, len(torch.unique(shard_of)), batch_size))
    num_batches = len(line) // batch_size
    cuts = torch.arange(num_lanes + 1) * batch_size // num_lanes
    window = WINDOW // num_lanes
    columns = []
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        section = line[num_batches * start : num_batches * end]
        columns.append(_jitter(section, window, generator).view(num_batches, end - start))
    rest = _jitter(line[num_batches * batch_size :], window, generator)
    return torch.cat([torch.cat(columns, 1).flatten(), rest])


def _jitter(line: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Shuffle so that nothing moves further than ``window``: what has to be held is bounded."""
    moved = torch.rand(len(line), generator=generator, dtype=torch.float64) * window
    return line[torch.argsort(torch.arange(len(line)) + moved, stable=True)]


def read_shards(config: DataConfig, seed: int) -> SourceData:
    """Open the shards that ``dsonas shards`` wrote; images are read when they are used.

    Args:
        config: its ``location`` holds ``train`` and ``val`` (or ``test``), each with an index.
        seed: of the subset that ``config.max_train_images`` asks for.

    Returns:
        The parts; statistics are those of the index.

    Raises:
        DataError: if an index is missing or wrong, local shards are missing or truncated, classes
            differ, or colours are not as ``config.color`` demands.
    """
    root = config.location
    assert root is not None, "DataConfig demands a place for shards"
    train, test = ShardFiles(root, "train"), _test_files(root)
    if train.index.class_names != test.index.class_names:
        raise DataError(f"train and test shards of {root} have different classes: write both anew")
    size = config.image_size or choose_image_size([train.index.short_side])
    channels = _choose_channels([train, test], config)
    train_images, test_images = (
        ShardImages(files, image_size=size, channels=channels) for files in (train, test)
    )
    return SourceData(
        train=train_images.sample(config.max_train_images, derive_seed(seed, "max_train_images")),
        test=cropped(test_images, CentreCrop(config.test_crop)).sample(
            config.max_test_images, SPLIT_SEED
        ),
        class_names=train.index.class_names,
        statistics=train.index.statistics["grey" if channels == 1 else "rgb"],
        skipped=(*train.index.skipped, *test.index.skipped),
    )


def _test_files(root: str) -> ShardFiles:
    """The test part, by either of its names."""
    try:
        return ShardFiles(root, TEST_PARTS[0])
    except MissingIndexError as error:
        try:
            return ShardFiles(root, TEST_PARTS[1])
        except MissingIndexError:
            raise error from None


def _choose_channels(parts: Sequence[ShardFiles], config: DataConfig) -> int:
    num_images = sum(part.index.num_images for part in parts)
    num_grey = sum(part.index.num_grey for part in parts)
    if config.color == "grey" or (config.color == "auto" and num_grey == num_images):
        return 1
    if config.color == "rgb" and num_grey:
        raise DataError(
            f"{num_grey} of {num_images} images are grey but data.color is rgb: "
            "use --data.color auto, or write shards of RGB images"
        )
    return 3
