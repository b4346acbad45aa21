"""Batches of an image set, each a pure function of seed, epoch and place in the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dsonas.seeding import derive_seed

from .augmentation import Augmentation, crop_and_flip, cut_out, draw_offsets
from .config import DataError
from .images import ImageSet
from .loading import ImageData
from .normalisation import normalise

Batch = tuple[Tensor, Tensor]


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
        workers: decoding processes for images that are streamed from disk, >= 0; images in memory
            need none.

    Raises:
        ValueError: if the batch size is below 1, or there are too few images for one batch.

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
    ) -> None:
        _check_sizes(len(images), batch_size, drop_last)
        self._images, self._mean, self._std = images, data.mean, data.std
        self._batch_size, self._augmentation = batch_size, augmentation
        self._shuffle, self._seed = shuffle, seed
        self._device, self._workers = torch.device(device), workers
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
        chunks = self._order(epoch).split(self._batch_size)[start : self.num_batches]
        fetched = self._gather(chunks) if self._images.in_memory else self._stream(chunks)
        for position, (pixels, labels) in enumerate(fetched, start):
            on_device = pixels.to(self._device, non_blocking=True)
            images = self._augment_and_normalise(on_device, epoch, position)
            yield images, labels.to(self._device, non_blocking=True)

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(len(self._images))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        return torch.randperm(len(self._images), generator=generator)

    def _gather(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        for chunk in chunks:
            pixels, labels = self._images.gather(chunk), self._images.labels[chunk]
            yield (pixels.pin_memory(), labels.pin_memory()) if self._pins else (pixels, labels)

    def _stream(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        # its own generator: by default a loader draws from, and so changes, the global one
        return iter(
            DataLoader(
                _BatchReader(self._images),
                batch_size=None,
                sampler=chunks,
                num_workers=self._workers,
                pin_memory=self._pins,
                generator=torch.Generator().manual_seed(0),
            )
        )

    @property
    def _pins(self) -> bool:
        return self._device.type == "cuda"

    def _augment_and_normalise(self, pixels: Tensor, epoch: int, position: int) -> Tensor:
        if self._augmentation is None:
            return normalise(pixels, self._mean, self._std)
        # drawn on the CPU, so that every device sees the same crops
        seed = derive_seed(self._seed, "augmentation", epoch, position)
        generator = torch.Generator().manual_seed(seed)
        offsets = draw_offsets(pixels.shape, self._augmentation, generator)
        cropped = crop_and_flip(pixels, offsets, self._augmentation)
        return cut_out(normalise(cropped, self._mean, self._std), offsets, self._augmentation)


class _BatchReader(Dataset[Batch]):
    """Reads whole batches: its index is the tensor of the positions of a batch."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __getitem__(self, index: Tensor) -> Batch:
        return self._images.gather(index), self._images.labels[index]


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
