"""Batches of an image set, each a pure function of seed, epoch and place in the epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dsonas._utils import derive_seed, send

from .augmentation import (
    LEAST_AREA,
    Augmentation,
    Offsets,
    RandomCrop,
    crop_and_flip,
    cut_out,
    draw_offsets,
    jitter_colors,
    load_function,
    transform_each,
)
from .data_config import DataError
from .images import ImageSet, KeptWarnings, normalise, say_once
from .loading import ImageData

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
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}: use 64, say")
        if len(images) < 1:
            raise DataError("images must be at least 1, got 0: use a data set that is not empty")
        if drop_last and len(images) < batch_size:
            raise DataError(
                "fewer images than a batch: batch_size must be at most the number of images in "
                f"this part, {len(images)}, got {batch_size}: lower batch_size, or use more images"
            )
        if drop_last and batch_size % share[1]:
            raise DataError(
                f"batch_size must be a multiple of the {share[1]} processes that share a batch, "
                f"got {batch_size}"
            )
        if augmentation and augmentation.transform:
            load_function(augmentation.transform)  # what is wrong with it is said now
        self._mean, self._std, self._augmentation = data.mean, data.std, augmentation
        self._device, self._share = torch.device(device), share
        self._workers = 0 if images.in_memory else workers
        self._idle: list[_Readers] = []
        self.labels = images.labels  # the class of each image, in the order of the images
        self.num_batches = (len(images) + (0 if drop_last else batch_size - 1)) // batch_size
        varied = augmentation or Augmentation()
        self._plan = _Plan(
            images, batch_size, self.num_batches, shuffle, data.balanced, varied, seed
        )

    def __len__(self) -> int:
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from number ``start`` on; others are not touched.

        Returns:
            Iterator over float32 images ``(batch, channels, height, width)`` in channels_last
            format and int64 labels ``(batch,)``, both on the device.

        Raises:
            ValueError: if ``start`` is not from 0 to ``num_batches``.
        """
        if not 0 <= start <= self.num_batches:
            raise ValueError(
                f"start must be from 0 to {self.num_batches}, the batches of an epoch, got "
                f"{start}: was the batch size or the data set changed since?"
            )
        return self._iterate(epoch, start)

    def places(self, epoch: int) -> list[Tensor]:
        """For each batch of an epoch which images it has: this process's part of them."""
        return [part_of(batch, *self._share) for batch in self._plan.batches(epoch)]

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        size, num_images = self._plan.batch_size, len(self._plan.images)
        for position, (pixels, labels) in enumerate(self._fetch(epoch, start), start):
            whole = min(size, num_images - position * size)  # of all processes
            normal = self._augment_and_normalise(send(pixels, self._device), epoch, position, whole)
            yield normal, send(labels, self._device)

    def _fetch(self, epoch: int, start: int) -> Iterator[Batch]:
        if self._workers == 0:
            yield from self._plan.read(epoch, start, *self._share)
            return
        # readers of an epoch that is not read to its end end with it, at once
        idle = self._idle
        readers = idle.pop() if idle else _Readers(self._plan, self._share, self._workers)
        yield from readers.read(epoch, start)
        self._idle.append(readers)

    def _augment_and_normalise(
        self, pixels: Tensor, epoch: int, position: int, num_images: int
    ) -> Tensor:
        if self._augmentation is None:
            return normalise(pixels, self._mean, self._std)
        # drawn for the whole batch and on the CPU, so that every process and device sees the same
        seed = derive_seed(self._plan.seed, "augmentation", epoch, position)
        generator = torch.Generator().manual_seed(seed)
        shape = torch.Size((num_images, *pixels.shape[1:]))
        places = part_of(torch.arange(num_images), *self._share)
        drawn = draw_offsets(shape, self._augmentation, generator)
        offsets = Offsets(*(send(choices[places], pixels.device) for choices in drawn))
        varied = crop_and_flip(pixels, offsets, self._augmentation)
        if self._augmentation.random_crop:
            draws = torch.rand(3, num_images, 1, 1, 1, generator=generator)[:, places]
            varied = jitter_colors(varied, send(draws, pixels.device))
        return cut_out(normalise(varied, self._mean, self._std), offsets, self._augmentation)


@dataclass(frozen=True)
class _Plan:
    """Which images each batch of an epoch has, and how each is varied while it is fetched."""

    images: ImageSet
    batch_size: int
    num_batches: int
    shuffle: bool
    balanced: bool
    augmentation: Augmentation
    seed: int

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """The places of the images of each batch, of all processes."""
        return self._order(epoch).split(self.batch_size)[: self.num_batches]

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.images))
        seed = derive_seed(self.seed, "order", epoch)
        if self.balanced:
            labels, generator = self.images.labels, torch.Generator().manual_seed(seed)
            weights = 1 / torch.bincount(labels)[labels]
            return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
        return self.images.order(seed, self.batch_size)

    def read(self, epoch: int, start: int, part: int, num_parts: int) -> Iterator[Batch]:
        """Fetch a part of each batch from ``start`` on, as ``ImageSet.read`` does."""
        images, transform = self.images, self.augmentation.transform
        if self.augmentation.random_crop:
            seed = derive_seed(self.seed, "crop", epoch)
            images = images.cropped(RandomCrop(LEAST_AREA, seed))
        chunks = [part_of(batch, part, num_parts) for batch in self.batches(epoch)[start:]]
        of_function = derive_seed(self.seed, "transform", epoch)
        for chunk, (pixels, labels) in zip(chunks, images.read(chunks), strict=True):
            if transform:
                seeds = (derive_seed(of_function, position) for position in chunk.tolist())
                pixels = transform_each(pixels, transform, seeds)
            yield pixels, labels


class _Readers:
    """Processes that each fetch a part of the share of every batch; they stay for all epochs."""

    def __init__(self, plan: _Plan, share: tuple[int, int], number: int) -> None:
        self._number, self._plan = number, plan
        self._at = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch and start, for all
        self._loader = DataLoader(
            _Parts(plan, self._at, share, number),
            batch_size=None,
            num_workers=number,
            persistent_workers=True,
            # its own generator: by default a loader draws from, and so changes, the global one
            generator=torch.Generator().manual_seed(0),
        )

    def read(self, epoch: int, start: int) -> Iterator[Batch]:
        """Fetch batches as ``_Plan.read`` does; a DataError of a process is raised here."""
        self._at.copy_(torch.tensor([epoch, start]))
        arriving = iter(self._loader)  # in turn from each process
        try:
            for _ in range(start, self._plan.num_batches):
                parts = [_received(next(arriving)) for _ in range(self._number)]
                pixels, labels = zip(*parts, strict=True)
                yield torch.cat(pixels), torch.cat(labels)
        except BaseException:  # the rest is not wanted: ends them now, not with the last traceback
            del self._loader, arriving
            raise


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
    """What a process delivers: its part of every batch, and what it has to warn of."""

    def __init__(self, plan: _Plan, at: Tensor, share: tuple[int, int], number: int) -> None:
        self._plan, self._at, self._share, self._number = plan, at, share, number

    def __iter__(self) -> Iterator[_Part | DataError]:
        worker, warnings = get_worker_info(), KeptWarnings()
        of_data = logging.getLogger(__package__)
        of_data.handlers, of_data.propagate = [warnings], False  # in this process alone
        part, num_parts = self._share
        part = part * self._number + (worker.id if worker else 0)
        epoch, start = self._at.tolist()
        try:
            for pixels, labels in self._plan.read(epoch, start, part, num_parts * self._number):
                yield pixels, labels, warnings.taken()
        except DataError as error:  # raised, it would reach the user with the process's traceback
            yield error


def _received(item: _Part | DataError) -> Batch:
    if isinstance(item, DataError):
        raise item
    pixels, labels, warnings = item
    for kind, text in warnings:
        say_once(text, kind)
    return pixels, labels
