"""Batches of an image set, each a pure function of seed, epoch and place in the epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dsonas._utils import derive_seed, send

from .augmentation import (
    Augmentation,
    RandomCrop,
    crop_and_flip,
    cropped,
    cut_out,
    draw_offsets,
    jitter_colors,
    load_function,
    transform_each,
)
from .data_config import DataError
from .images import ImageSet, KeptWarnings, say_once
from .loading import ImageData
from .normalisation import normalise

Batch = tuple[Tensor, Tensor]
_Part = tuple[Tensor, Tensor, list[tuple[str, str]]]  # with the warnings: their kind, their text


class Batches:
    """Normalised, augmented batches without hidden state.

    Order, crops, flips and cutout depend on ``(seed, epoch, batch index)`` only, so an epoch
    resumed at batch ``start`` continues exactly as the uninterrupted one. Cutout is applied after
    normalisation: what it blanks out has the mean colour.

    Args:
        images: what to iterate over.
        data: the data set it belongs to, for the channel statistics.
        batch_size: images in a batch, >= 1.
        augmentation: how to vary the images; None for evaluation.
        shuffle: whether every epoch has its own random order; of ``data.balanced`` data, its own
            draws, with replacement, of all classes equally often.
        drop_last: whether to leave out an incomplete last batch.
        seed: of order and augmentation.
        device: where the batches go.
        workers: decoding processes for images that are streamed, >= 0; images in memory
            need none.
        share: number of this process and of all processes that each take an equal, consecutive part
            of every batch; together they see what one process would.

    Raises:
        ValueError: if the batch size is below 1 or cannot be shared equally, or there are too few
            images for one batch.

    Example:
        >>> from dsonas.data import DataConfig, load_data
        >>> data = load_data(DataConfig(name="digits"))
        >>> batches = Batches(
        ...     data.train, data, batch_size=64, augmentation=data.search_augmentation,
        ...     shuffle=True, drop_last=True, seed=0,
        ... )
        >>> images, labels = next(batches.epoch(0))
        >>> len(batches), images.shape, labels.shape
        (22, torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    def __init__(
        self,
        images: ImageSet,
        data: ImageData,
        *,
        batch_size: int,
        augmentation: Augmentation | None,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _check_sizes(len(images), batch_size, drop_last)
        if drop_last and batch_size % share[1]:
            raise DataError(
                f"batch_size must be a multiple of the {share[1]} processes that share a batch, "
                f"got {batch_size}"
            )
        self._images, self._mean, self._std = images, data.mean, data.std
        self._batch_size, self._augmentation = batch_size, augmentation
        self._shuffle, self._seed = shuffle, seed
        self._balanced = data.balanced
        self._device, self._workers = torch.device(device), workers
        self._share = share
        if augmentation and augmentation.transform:
            load_function(augmentation.transform)  # what is wrong with it is said now
        rounding = 0 if drop_last else batch_size - 1
        self.num_batches = (len(images) + rounding) // batch_size

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over one epoch, or over the rest of it.

        Args:
            epoch: number of the epoch, >= 0.
            start: batches to leave out at the front, from 0 to ``num_batches``; their images are
                not touched.

        Returns:
            Iterator over float32 images ``(batch, channels, height, width)`` in channels_last
            format and int64 labels ``(batch,)``, both on the device.

        Raises:
            ValueError: if ``start`` is out of range.
        """
        if not 0 <= start <= self.num_batches:
            raise ValueError(
                f"start must be from 0 to {self.num_batches}, the batches of an epoch, got "
                f"{start}: was the batch size or the data set changed since?"
            )
        return self._iterate(epoch, start)

    @property
    def labels(self) -> Tensor:
        """The class of each image, in the order of the images."""
        return self._images.labels

    def places(self, epoch: int) -> list[Tensor]:
        """For each batch of an epoch which images it has: this process's part of them."""
        batches = self._order(epoch).split(self._batch_size)[: self.num_batches]
        return [part_of(batch, *self._share) for batch in batches]

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        batches = self._order(epoch).split(self._batch_size)[start : self.num_batches]
        chunks = [part_of(batch, *self._share) for batch in batches]
        source = self._source(epoch)
        workers = 0 if self._images.in_memory else self._workers
        for position, (pixels, labels) in enumerate(fetch(source, chunks, workers), start):
            normal = self._augment_and_normalise(
                send(pixels, self._device), epoch, position, len(batches[position - start])
            )
            yield normal, send(labels, self._device)

    def _source(self, epoch: int) -> Source:
        """The images, each varied while it is fetched if that is asked for."""
        augmentation = self._augmentation or Augmentation()
        images, seed = self._images, self._seed
        if augmentation.crop_area is not None:
            crop = RandomCrop(augmentation.crop_area, derive_seed(seed, "crop", epoch))
            images = cropped(images, crop)
        return Source(images, augmentation.transform, derive_seed(seed, "transform", epoch))

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._images))
        seed = derive_seed(self._seed, "order", epoch)
        if self._balanced:
            labels, generator = self._images.labels, torch.Generator().manual_seed(seed)
            weights = 1 / torch.bincount(labels)[labels]
            return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
        return self._images.order(seed, self._batch_size)

    def _augment_and_normalise(
        self, pixels: Tensor, epoch: int, position: int, num_images: int
    ) -> Tensor:
        if self._augmentation is None:
            return normalise(pixels, self._mean, self._std)
        # drawn for the whole batch and on the CPU, so that every process and device sees the same
        seed = derive_seed(self._seed, "augmentation", epoch, position)
        generator = torch.Generator().manual_seed(seed)
        shape = torch.Size((num_images, *pixels.shape[1:]))
        places = part_of(torch.arange(num_images), *self._share)
        offsets = draw_offsets(shape, self._augmentation, generator).of(places).on(pixels.device)
        varied = crop_and_flip(pixels, offsets, self._augmentation)
        varied = jitter_colors(varied, self._augmentation, generator, places, num_images)
        return cut_out(normalise(varied, self._mean, self._std), offsets, self._augmentation)


def _check_sizes(num_images: int, batch_size: int, drop_last: bool) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}: use 64, say")
    if num_images < 1:
        raise DataError("images must be at least 1, got 0: use a data set that is not empty")
    if drop_last and num_images < batch_size:
        raise DataError(
            f"fewer images than a batch: batch_size must be at most the number of images in this "
            f"part, {num_images}, got {batch_size}: lower batch_size, or use more images"
        )


@dataclass(frozen=True)
class Source:
    """Images that are fetched, and the user's function that varies each, by a seed."""

    images: ImageSet
    transform: str | None
    seed: int

    def read(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        """Fetch pixels and labels as ``ImageSet.read`` does."""
        for chunk, (pixels, labels) in zip(chunks, self.images.read(chunks), strict=True):
            if self.transform:
                seeds = (derive_seed(self.seed, position) for position in chunk.tolist())
                pixels = transform_each(pixels, self.transform, seeds)
            yield pixels, labels


def fetch(source: Source, chunks: Sequence[Tensor], workers: int) -> Iterator[Batch]:
    """Fetch batches by worker processes, each of which decodes a part of every batch.

    Args:
        source: where the images come from.
        chunks: int64 tensors of positions, one for each batch.
        workers: processes, >= 0; 0 decodes in this one.

    Returns:
        Iterator over uint8 pixels ``(batch, channels, height, width)`` and labels ``(batch,)``.

    Raises:
        DataError: if images cannot be had; also when that is found in a worker.
    """
    if workers == 0:
        yield from source.read(chunks)
        return
    loader = DataLoader(
        _Parts(source, chunks, workers),
        batch_size=None,
        num_workers=workers,
        # its own generator: by default a loader draws from, and so changes, the global one
        generator=torch.Generator().manual_seed(0),
    )
    arriving = iter(loader)  # in turn from each worker
    try:
        for _ in chunks:
            parts = [_received(next(arriving)) for _ in range(workers)]
            pixels, labels = zip(*parts, strict=True)
            yield torch.cat(pixels), torch.cat(labels)
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


class _Parts(IterableDataset[_Part | DataError]):
    """What a worker delivers: its part of every batch, and what it has to warn of."""

    def __init__(self, source: Source, chunks: Sequence[Tensor], num_parts: int) -> None:
        self._source, self._chunks, self._num_parts = source, chunks, num_parts

    def __iter__(self) -> Iterator[_Part | DataError]:
        worker, warnings = get_worker_info(), KeptWarnings()
        part = worker.id if worker else 0
        of_data = logging.getLogger(__package__)
        of_data.handlers, of_data.propagate = [warnings], False  # in this process alone
        chunks = [part_of(chunk, part, self._num_parts) for chunk in self._chunks]
        try:
            for pixels, labels in self._source.read(chunks):
                yield pixels, labels, warnings.taken()
        except DataError as error:  # raised, it would reach the user with the worker's traceback
            yield error


def _received(item: _Part | DataError) -> Batch:
    if isinstance(item, DataError):
        raise item
    pixels, labels, warnings = item
    for kind, text in warnings:
        say_once(text, kind)
    return pixels, labels
