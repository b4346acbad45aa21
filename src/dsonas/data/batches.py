"""Batches of an image set, each a pure function of seed, epoch and place in the epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dsonas._utils import derive_seed, send

from .augmentation import Augmentation, crop_and_flip, cut_out, draw_offsets, jitter_colors
from .cropping import RandomCrop, cropped
from .data_config import DataError
from .fetching import Batch, fetch, part_of
from .images import ImageSet
from .loading import ImageData
from .normalisation import normalise


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
        shuffle: whether every epoch has its own random order.
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
        self._device, self._workers = torch.device(device), workers
        self._share = share
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

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        batches = self._order(epoch).split(self._batch_size)[start : self.num_batches]
        chunks = [part_of(batch, *self._share) for batch in batches]
        images = self._cropped(epoch)
        read = images.read(chunks) if images.in_memory else fetch(images, chunks, self._workers)
        for position, (pixels, labels) in enumerate(read, start):
            normal = self._augment_and_normalise(
                send(pixels, self._device), epoch, position, len(batches[position - start])
            )
            yield normal, send(labels, self._device)

    def _cropped(self, epoch: int) -> ImageSet:
        """The images, each cut at random while it is decoded if that is asked for."""
        area = self._augmentation.crop_area if self._augmentation else None
        if area is None:
            return self._images
        return cropped(self._images, RandomCrop(area, derive_seed(self._seed, "crop", epoch)))

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._images))
        return self._images.order(derive_seed(self._seed, "order", epoch), self._batch_size)

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
