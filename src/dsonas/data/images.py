"""Labelled images behind one small interface, in memory or decoded on demand; their statistics."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Self

import torch
from torch import Tensor

from dsonas._utils import send

from .augmentation import RandomCrop, cut_pixels
from .data_config import DataError
from .decoding import UnreadableImageError, decode
from .splitting import stratified_choice

logger = logging.getLogger(__name__)

_said: set[str] = set()
_CHUNK = 256  # images that are fetched at a time for statistics
_NUM_STREAMED = 2048  # images of a stream from which statistics are taken


def say_once(message: str, kind: str = "") -> None:
    """Warn of something, once of each kind, that would be found again in every epoch."""
    if (kind or message) not in _said:
        _said.add(kind or message)
        logger.warning("%s", message)


class KeptWarnings(logging.Handler):
    """Keeps warnings for somebody else to say."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning, and what it is about: its own text or that of its kind."""
        text = record.getMessage()
        self.kept.append((text if record.msg == "%s" else record.msg, text))

    def taken(self) -> list[tuple[str, str]]:
        """Those since the last call."""
        kept, self.kept = self.kept, []
        return kept


class ImageSet(ABC):
    """A sequence of labelled images of one shape."""

    labels: Tensor  # int64 tensor of shape ``(num_images,)``, class of each image
    image_shape: tuple[int, int, int]  # channels, height, width
    in_memory: bool  # whether ``gather`` is an index into memory rather than a read from disk
    crop: RandomCrop | None = None  # what is cut out of each image when it is fetched
    rows: Tensor  # int64 tensor, the place of each image among those stored
    # what to call those, paths in a folder for instance; None: they have no names
    stored_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Self:
        """Choose images by an int64 tensor of positions or a bool tensor; pixels are shared."""
        found = copy(self)
        found.rows, found.labels = self.rows[indices], self.labels[indices]
        return found

    def cropped(self, crop: RandomCrop | None) -> Self:
        """Cut each image by another rule when it is fetched; pixels are shared."""
        found = copy(self)
        found.crop = crop
        return found

    @abstractmethod
    def gather(self, indices: Tensor) -> Tensor:
        """Fetch the pixels at some positions, uint8 ``(batch, channels, height, width)``."""

    def read(self, chunks: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Fetch pixels and labels of groups of positions one after the other."""
        for chunk in chunks:
            yield self.gather(chunk), self.labels[chunk]

    def name(self, position: int) -> str:
        """What to call an image; nothing if it has no name."""
        return self.stored_names[int(self.rows[position])] if self.stored_names else ""

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each image; none if they have no names."""
        stored = self.stored_names or ()
        return tuple(stored[row] for row in self.rows.tolist()) if stored else ()

    def order(self, seed: int, batch_size: int) -> Tensor:
        """Draw the order of an epoch, every position once, from a seed.

        The batch size matters for streams only.
        """
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide in two, stratified by class; the second has ``fraction`` of the images, in (0, 1).

        A ValueError if it is so near its ends that a part is empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction}: try 0.5")
        num_second = round(fraction * len(self))
        if not 0 < num_second < len(self):
            raise DataError(
                f"a fraction of {fraction} of {len(self)} images leaves one part empty: "
                "use more images or another fraction"
            )
        first = stratified_choice(self.labels, len(self) - num_second, seed)
        return self.subset(first), self.subset(~first)

    def sample(self, num_images: int | None, seed: int) -> Self:
        """Choose a stratified subset of at most so many images; None for all."""
        if num_images is None or num_images >= len(self):
            return self
        return self.subset(stratified_choice(self.labels, num_images, seed))


class TensorImages(ImageSet):
    """Images in memory.

    Args:
        images: uint8 tensor of shape ``(num_stored, channels, height, width)``.
        labels: int64 tensor, class of each image.
        rows: int64 tensor, the row of ``images`` of each image; None for all in order.
        names: of ``images``; None: they have none.
    """

    in_memory = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        rows: Tensor | None = None,
        names: tuple[str, ...] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                "images must be a uint8 tensor (images, channels, height, width), "
                f"got {images.dtype} of shape {tuple(images.shape)}: convert them first"
            )
        self.rows = torch.arange(len(images)) if rows is None else rows
        if len(labels) != len(self.rows):
            raise ValueError(
                f"labels must be as many as images, got {len(labels)} for {len(self.rows)}: "
                "give one label for each image"
            )
        self._images, self.stored_names = images, names
        self.labels = labels.to(torch.int64)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])

    def gather(self, indices: Tensor) -> Tensor:
        """Fetch pixels; see ``ImageSet.gather``."""
        pixels = self._images.index_select(0, self.rows[indices])
        return cut_pixels(pixels, self.crop, indices)


class DecodedImages(ImageSet):
    """Images that are decoded when asked for.

    One that turns out to be damaged is replaced by the next readable one of its class, so that
    a long run goes on and the labels stay right; the replacement is logged.
    """

    in_memory = False
    fit: str = "crop"  # see ``DataConfig.fit``

    @abstractmethod
    def file(self, position: int) -> str | bytes:
        """The path of an image file, or its content."""

    def decode(self, position: int, file: str | bytes) -> Tensor:
        """Decode one image; an UnreadableImageError if it is damaged."""
        channels, size, _ = self.image_shape
        name = self.name(position)
        return torch.from_numpy(decode(file, size, channels, name, self.fit, self.crop, position))

    def fetch(self, positions: Tensor, files: Iterable[str | bytes]) -> Tensor:
        """Decode the images at some positions, whose files are given; see ``gather``."""
        pixels = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8)
        for place, (position, file) in enumerate(zip(positions.tolist(), files, strict=False)):
            try:
                pixels[place] = self.decode(position, file)
            except UnreadableImageError as error:
                pixels[place] = self._replacement(position, error)
        return pixels

    def _replacement(self, position: int, reason: UnreadableImageError) -> Tensor:
        """What takes the place of a damaged image; a DataError if nothing can."""
        same_class = torch.nonzero(self.labels == self.labels[position]).flatten().tolist()
        place = same_class.index(position)
        for other in same_class[place + 1 :] + same_class[:place]:
            try:
                pixels = self.decode(other, self.file(other))
            except UnreadableImageError:
                continue
            say_once(f"{reason}; {self.name(other)} takes its place")
            return pixels
        raise DataError(f"{reason}, nor any other image of its class: replace these files")


class FileImages(DecodedImages):
    """Images in files as squares of a size; see ``DecodedImages`` for those that are damaged.

    Without ``names`` their paths are. See ``DataConfig.fit``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        *,
        image_size: int,
        channels: int,
        names: tuple[str, ...] | None = None,
        fit: str = "crop",
    ) -> None:
        self._paths = tuple(paths)
        self.stored_names, self.rows = names or self._paths, torch.arange(len(paths))
        self.labels = labels.to(torch.int64)
        self.image_shape, self.fit = (channels, image_size, image_size), fit

    def file(self, position: int) -> str:
        """The path of an image."""
        return self._paths[int(self.rows[position])]

    def gather(self, indices: Tensor) -> Tensor:
        """Fetch pixels; see ``ImageSet.gather``."""
        return self.fetch(indices, map(self.file, indices.tolist()))

    def load(self, num_threads: int) -> tuple[TensorImages, dict[str, str]]:
        """Decode into memory the readable images; returns by path why others are unreadable too."""
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        bad: dict[int, str] = {}

        def decode_into_place(position: int) -> None:
            try:
                images[position] = self.decode(position, self.file(position))
            except UnreadableImageError as error:
                bad[position] = error.reason

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(decode_into_place, range(len(self))))
        loaded = TensorImages(images, self.labels, names=self.names)
        readable = torch.tensor([at not in bad for at in range(len(self))]).bool()
        reasons = {self.file(at): bad[at] for at in sorted(bad)}
        return (loaded.subset(readable) if bad else loaded), reasons


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in units of 0..1.

    Exact for images in memory; from 2048 images spread over the set where they are streamed. A
    deviation is at least 1/255, so that dividing by it is safe.
    """
    used = torch.arange(len(images))
    if not images.in_memory:
        used = used[:: max(1, len(images) // _NUM_STREAMED)]
    histogram = torch.zeros(images.image_shape[0], 256, dtype=torch.int64)
    for chunk in used.split(_CHUNK):
        for channel, pixels in enumerate(images.gather(chunk).unbind(1)):
            histogram[channel] += torch.bincount(pixels.flatten(), minlength=256)
    weights = histogram.double() / histogram.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels from 0 to 255 into floats of mean 0 and deviation 1.

    With numbers for each channel in units of 0..1, ``(images / 255 - mean) / std``: a new float32
    tensor ``(batch, channels, height, width)`` in channels_last.
    """
    deviations = send(torch.tensor(std), images.device).view(1, -1, 1, 1)
    means = send(torch.tensor(mean), images.device).view(1, -1, 1, 1)
    # the arithmetic runs in NCHW, several times faster for three channels, and is then copied:
    # .contiguous() would leave one-channel images in NCHW strides, and convolutions with them
    values = torch.mul(images, 1 / (255 * deviations)).sub_(means / deviations)
    result = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    return result.copy_(values)
