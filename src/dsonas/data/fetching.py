"""Images that are decoded when they are used, by worker processes, in a given order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .data_config import DataError
from .images import ImageSet

Batch = tuple[Tensor, Tensor]


def fetch(images: ImageSet, chunks: Sequence[Tensor], workers: int) -> Iterator[Batch]:
    """Fetch batches by worker processes, each of which decodes a part of every batch.

    Args:
        images: where the images come from.
        chunks: int64 tensors of positions, one for each batch.
        workers: processes, >= 0; 0 decodes in this one.

    Returns:
        Iterator over uint8 pixels ``(batch, channels, height, width)`` and labels ``(batch,)``.

    Raises:
        DataError: if images cannot be had; also when that is found in a worker.
    """
    num_parts = max(1, workers)
    loader = DataLoader(
        _Parts(images, chunks, num_parts),
        batch_size=None,
        num_workers=workers,
        # its own generator: by default a loader draws from, and so changes, the global one
        generator=torch.Generator().manual_seed(0),
    )
    arriving = iter(loader)  # in turn from each worker
    try:
        for _ in chunks:
            parts = [_received(next(arriving)) for _ in range(num_parts)]
            pixels, labels = zip(*parts, strict=True)
            yield (torch.cat(pixels), torch.cat(labels)) if num_parts > 1 else parts[0]
    finally:
        del arriving  # ends the workers now, not when the traceback of an error is forgotten


def part_of(chunk: Tensor, part: int, num_parts: int) -> Tensor:
    """A consecutive part of a batch.

    Parts of parts are parts: the second half of 8 parts are the parts of the second half.

    Example:
        >>> [part_of(torch.arange(5), part, 2).tolist() for part in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    start, end = (at * len(chunk) // num_parts for at in (part, part + 1))
    return chunk[start:end]


class _Parts(IterableDataset[Batch | DataError]):
    """What a worker delivers: its part of every batch."""

    def __init__(self, images: ImageSet, chunks: Sequence[Tensor], num_parts: int) -> None:
        self._images, self._chunks, self._num_parts = images, chunks, num_parts

    def __iter__(self) -> Iterator[Batch | DataError]:
        worker = get_worker_info()
        part = worker.id if worker else 0
        try:
            yield from self._images.read(
                [part_of(chunk, part, self._num_parts) for chunk in self._chunks]
            )
        except DataError as error:  # raised, it would reach the user with the worker's traceback
            yield error


def _received(item: Batch | DataError) -> Batch:
    if isinstance(item, DataError):
        raise item
    return item
