"""Variation of training images: of whole batches, of files, and by functions of the user's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsonas._utils import derive_seed, import_file, send

from .data_config import DataError

Box = tuple[float, float, float, float]
LEAST_AREA, JITTER = 0.08, 0.4  # of ``data.augment crop``: the ImageNet recipe
ASPECTS = 3 / 4, 4 / 3  # width over height of a random crop, least and largest
LUMA = 0.299, 0.587, 0.114  # weights of red, green and blue in the brightness of a pixel


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied, see ``DataConfig.augment``."""

    crop_padding: int = 0  # crop the image out of itself padded by so many zero pixels, >= 0
    flip: bool = False  # mirror half of the images left to right
    cutout: int = 0  # side in pixels of a square at a random place that is set to zero, >= 0
    # the ImageNet recipe: a random part of an image is fetched, see ``RandomCrop``, and brightness,
    # contrast and saturation are each multiplied by a factor in ``[1 - JITTER, 1 + JITTER]``
    random_crop: bool = False
    # ``FILE.py:FUNCTION`` of the user's, called with every image first; see ``transform_each``
    transform: str | None = None


class Offsets(NamedTuple):
    """The random choices for one batch, each a tensor of shape ``(batch,)``."""

    top: Tensor  # int64, first row of the crop in the padded image, in ``[0, 2 * crop_padding]``
    left: Tensor  # int64, first column of the crop in the padded image
    flipped: Tensor  # bool, whether the crop is mirrored
    centre_row: Tensor  # int64, row of the centre of the cut-out square, in ``[0, height)``
    centre_column: Tensor  # int64, column of the centre of the cut-out square


def draw_offsets(
    shape: torch.Size, augmentation: Augmentation, generator: torch.Generator
) -> Offsets:
    """Draw the random choices for a batch of shape ``(batch, channels, height, width)``.

    The generator moves on equally far whatever is switched on, so that adding cutout leaves the
    crops as they were.
    """
    batch, _, height, width = shape
    # float64: times a size it stays below the size, where float32 could round up to it
    uniform = torch.rand(5, batch, generator=generator, dtype=torch.float64)
    num_places = 2 * augmentation.crop_padding + 1
    top, left = (uniform[:2] * num_places).long().unbind()
    flipped = (uniform[2] < 0.5) & augmentation.flip
    return Offsets(top, left, flipped, (uniform[3] * height).long(), (uniform[4] * width).long())


def crop_and_flip(images: Tensor, offsets: Offsets, augmentation: Augmentation) -> Tensor:
    """Crop every image of a batch at its own place and mirror those that are to be."""
    padding = augmentation.crop_padding
    if padding == 0 and not augmentation.flip:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = torch.arange(height, device=images.device) + offsets.top[:, None]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(offsets.flipped[:, None], width - 1 - columns, columns)
    columns = columns + offsets.left[:, None]
    # one gather over flattened pixels is several times faster than indexing four dimensions
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(batch, 1, -1)
    index = index.expand(batch, channels, -1)
    return padded.reshape(batch, channels, -1).gather(2, index).view(images.shape)


def cut_out(images: Tensor, offsets: Offsets, augmentation: Augmentation) -> Tensor:
    """Set a square of every image to zero; at the border only its inside part is cut.

    On normalised images zero is the mean. The memory format stays.

    Source: DeVries and Taylor, arXiv 1708.04552.
    """
    if augmentation.cutout == 0:
        return images
    height, width = images.shape[2:]
    rows = _inside(offsets.centre_row, height, augmentation.cutout)
    columns = _inside(offsets.centre_column, width, augmentation.cutout)
    square = rows[:, None, :, None] & columns[:, None, None, :]
    # masked_fill without underscore would return a channels_last batch in NCHW strides
    return images.clone().masked_fill_(square, 0)


def _inside(centres: Tensor, length: int, side: int) -> Tensor:
    distance = torch.arange(length, device=centres.device) - (centres[:, None] - side // 2)
    return (distance >= 0) & (distance < side)


def jitter_colors(images: Tensor, draws: Tensor) -> Tensor:
    """Vary brightness, contrast and saturation of every image, in this order.

    Contrast is the distance of a pixel from the image's mean brightness, saturation that from its
    own. ``draws`` are numbers in [0, 1) of shape ``(3, batch, 1, 1, 1)``. Returns float32 pixels
    from 0 to 255.
    """
    factors = 1 + JITTER * (2 * draws - 1)
    pixels = (images.float() * factors[0]).clamp_(0, 255)
    mean = _brightness(pixels).mean((2, 3), keepdim=True)
    pixels = torch.lerp(mean, pixels, factors[1]).clamp_(0, 255)
    return torch.lerp(_brightness(pixels), pixels, factors[2]).clamp_(0, 255)


def _brightness(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    weights = send(torch.tensor(LUMA), pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


@dataclass(frozen=True)
class RandomCrop:
    """torchvision's ``RandomResizedCrop``, as a pure function of seed and position.

    So a run that is resumed sees the same rectangles.

    Source: Szegedy et al., arXiv 1409.4842, section 6.
    """

    least_area: float  # smallest share of the area of the image, in (0, 1]; the largest is 1
    seed: int  # of all choices, one for each epoch

    @property
    def least_side(self) -> float:
        """The least side of a box that matters, as a share of the image's shorter side."""
        return math.sqrt(self.least_area)

    def box(self, position: int, width: int, height: int) -> Box:
        """Left, top, right and bottom in pixels for the image at a position of its set."""
        from torchvision.transforms import RandomResizedCrop  # seconds, for this only

        image = torch.empty(1, height, width, device="meta")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, position))
            scale, ratio = [self.least_area, 1.0], list(ASPECTS)
            top, left, down, across = RandomResizedCrop.get_params(image, scale, ratio)
        return left, top, left + across, top + down


def cut_pixels(pixels: Tensor, crop: RandomCrop | None, positions: Tensor) -> Tensor:
    """Cut and resize images in memory, each to the size that it has; see ``ImageSet.cropped``."""
    if crop is None:
        return pixels
    from torchvision.transforms.v2 import functional as transforms  # seconds, for this only

    height, width = pixels.shape[2:]
    cut = []
    for image, position in zip(pixels, positions.tolist(), strict=True):
        left, top, right, bottom = map(round, crop.box(position, width, height))
        cut.append(
            transforms.resized_crop(image, top, left, bottom - top, right - left, [height, width])
        )
    return torch.stack(cut)


def transform_each(images: Tensor, place: str, seeds: Iterable[int]) -> Tensor:
    """Call a function of the user's, ``FILE.py:FUNCTION``, with every uint8 image of a batch.

    The random numbers that it draws from torch, NumPy and ``random`` follow from the seeds, one for
    each image, so that a resumed run sees the same images; the global states are left as they were.
    A DataError if there is no such function, it fails, or returns another shape or type.
    """
    function = load_function(place)
    before, numpy_before = random.getstate(), np.random.get_state()
    found = []
    try:
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)
                found.append(_transformed(function, image, place))
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
    return torch.stack(found)


def _transformed(function: Callable[[Tensor], Any], image: Tensor, place: str) -> Tensor:
    try:
        result = function(image)
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"data.augment {place} fails: {type(error).__name__}: {error}") from error
    kind = (getattr(result, "dtype", type(result)), tuple(getattr(result, "shape", ())))
    if kind != (image.dtype, tuple(image.shape)):
        raise DataError(
            f"data.augment {place} must return a uint8 tensor {tuple(image.shape)} like the image "
            f"that it gets, got {kind[0]} {kind[1]}"
        )
    return result


@lru_cache
def load_function(place: str) -> Callable[[Tensor], Any]:
    """Import the function that ``FILE.py:FUNCTION`` names; a DataError if there is none."""
    path, _, name = place.rpartition(":")
    try:
        function = getattr(import_file(Path(path), "data.augment"), name, None)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not callable(function):
        raise DataError(f"data.augment {place} must name a function of that file, got {name!r}")
    return function
