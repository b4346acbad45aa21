"""Random crops, flips and cutout of a whole batch at once, different for every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dsonas._utils import send


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    Args:
        crop_padding: crop the image out of itself padded by so many zero pixels, >= 0.
        flip: mirror half of the images left to right.
        cutout: side in pixels of a square at a random place that is set to zero, >= 0.
        crop_area: least share of the image's area, in (0, 1], that is cut out at random and resized
            when an image is fetched, see ``RandomCrop``; None takes the middle.
        jitter: brightness, contrast and saturation are each multiplied by a factor in
            ``[1 - jitter, 1 + jitter]``; in [0, 1].

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> Augmentation(crop_padding=4, flip=True, cutout=16).jitter
        0.0
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    crop_area: float | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}: 0 switches it off")
        if self.crop_area is not None and not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area must be in (0, 1], got {self.crop_area}: 0.08, say")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be in [0, 1], got {self.jitter}: 0 switches it off")


@dataclass(frozen=True)
class Offsets:
    """The random choices for one batch, each a tensor of shape ``(batch,)``.

    Args:
        top: int64, first row of the crop in the padded image, in ``[0, 2 * crop_padding]``.
        left: int64, first column of the crop in the padded image.
        flipped: bool, whether the crop is mirrored.
        centre_row: int64, row of the centre of the cut-out square, in ``[0, height)``.
        centre_column: int64, column of the centre of the cut-out square.
    """

    top: Tensor
    left: Tensor
    flipped: Tensor
    centre_row: Tensor
    centre_column: Tensor

    def of(self, places: Tensor) -> Offsets:
        """The choices for some images of the batch, by their places in it."""
        return self._each(lambda choices: choices[places])

    def on(self, device: torch.device) -> Offsets:
        """The choices, drawn on the CPU, where the images are: there the pixels are indexed."""
        return self._each(lambda choices: send(choices, device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Offsets:
        return Offsets(*(change(getattr(self, choice.name)) for choice in fields(self)))


def draw_offsets(
    shape: torch.Size, augmentation: Augmentation, generator: torch.Generator
) -> Offsets:
    """Draw the random choices for a batch.

    The generator moves on equally far whatever is switched on, so that adding cutout leaves the
    crops as they were.

    Args:
        shape: of the batch ``(batch, channels, height, width)``.
        augmentation: what to vary.
        generator: source of randomness; its device is the device of the result.

    Returns:
        One choice of each kind for each image.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> draw_offsets(torch.Size([2, 3, 8, 8]), Augmentation(), generator).top
        tensor([0, 0])
    """
    batch, _, height, width = shape
    # float64: times a size it stays below the size, where float32 could round up to it
    uniform = torch.rand(
        5, batch, generator=generator, device=generator.device, dtype=torch.float64
    )
    num_places = 2 * augmentation.crop_padding + 1
    top, left = (uniform[:2] * num_places).long().unbind()
    flipped = (uniform[2] < 0.5) & augmentation.flip
    return Offsets(top, left, flipped, (uniform[3] * height).long(), (uniform[4] * width).long())


def crop_and_flip(images: Tensor, offsets: Offsets, augmentation: Augmentation) -> Tensor:
    """Crop every image of a batch at its own place and mirror those that are to be.

    Args:
        images: tensor ``(batch, channels, height, width)``, any type, any device.
        offsets: the choices, on any device.
        augmentation: its ``crop_padding`` and ``flip``.

    Returns:
        A tensor of the same shape and type.

    Example:
        >>> one, no = torch.tensor([1]), torch.tensor([False])
        >>> images = torch.tensor([[[[1, 2], [3, 4]]]])
        >>> lower_right = Offsets(one + 1, one + 1, no, one, one)
        >>> crop_and_flip(images, lower_right, Augmentation(crop_padding=1)).tolist()
        [[[[4, 0], [0, 0]]]]
    """
    padding = augmentation.crop_padding
    if padding == 0 and not augmentation.flip:
        return images
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    flat_positions = _crop_positions(offsets, height, width, padded.shape[3]).to(images.device)
    # one gather over flattened pixels is several times faster than indexing four dimensions
    index = flat_positions.view(batch, 1, -1).expand(batch, channels, -1)
    return padded.reshape(batch, channels, -1).gather(2, index).view(images.shape)


def _crop_positions(offsets: Offsets, height: int, width: int, padded_width: int) -> Tensor:
    device = offsets.top.device
    rows = torch.arange(height, device=device) + offsets.top[:, None]
    columns = torch.arange(width, device=device)
    columns = torch.where(offsets.flipped[:, None], width - 1 - columns, columns)
    return rows[:, :, None] * padded_width + (columns + offsets.left[:, None])[:, None, :]


def cut_out(images: Tensor, offsets: Offsets, augmentation: Augmentation) -> Tensor:
    """Set a square of every image to zero; at the border only its inside part is cut.

    Args:
        images: tensor ``(batch, channels, height, width)``; on normalised images zero is the mean.
        offsets: the choices, on any device.
        augmentation: its ``cutout``.

    Returns:
        A tensor of the same shape, type and memory format.

    Example:
        >>> one, no = torch.tensor([1]), torch.tensor([False])
        >>> cut_out(torch.ones(1, 1, 2, 2), Offsets(one, one, no, one, one), Augmentation(cutout=1))
        tensor([[[[1., 1.],
                  [1., 0.]]]])

    Source: DeVries and Taylor, arXiv 1708.04552.
    """
    if augmentation.cutout == 0:
        return images
    height, width = images.shape[2:]
    rows = _inside(offsets.centre_row, height, augmentation.cutout)
    columns = _inside(offsets.centre_column, width, augmentation.cutout)
    square = rows[:, None, :, None] & columns[:, None, None, :]
    # masked_fill without underscore would return a channels_last batch in NCHW strides
    return images.clone().masked_fill_(square.to(images.device), 0)


def _inside(centres: Tensor, length: int, side: int) -> Tensor:
    distance = torch.arange(length, device=centres.device) - (centres[:, None] - side // 2)
    return (distance >= 0) & (distance < side)


LUMA = 0.299, 0.587, 0.114  # weights of red, green and blue in the brightness of a pixel


def jitter_colors(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    places: Tensor | None = None,
    num_images: int | None = None,
) -> Tensor:
    """Vary brightness, contrast and saturation of every image, in this order.

    Contrast is the distance of a pixel from the image's mean brightness, saturation that from its
    own. Grey images have no saturation.

    Args:
        images: tensor ``(batch, channels, height, width)`` of pixels from 0 to 255, of 1 or 3
            channels, any device.
        augmentation: its ``jitter``; at 0 nothing is drawn.
        generator: source of randomness, on the CPU.
        places: of these images in their batch; None: they are all of it.
        num_images: in that batch.

    Returns:
        float32 pixels from 0 to 255; the images themselves if ``jitter`` is 0.

    Example:
        >>> images = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> varied = jitter_colors(images, Augmentation(jitter=0.4), generator)
        >>> bool((varied >= 60).all() and (varied <= 140).all())
        True
    """
    if augmentation.jitter == 0:
        return images
    draws = torch.rand(3, num_images or len(images), 1, 1, 1, generator=generator)
    draws = draws if places is None else draws[:, places]
    factors = 1 + augmentation.jitter * (2 * send(draws, images.device) - 1)
    pixels = (images.float() * factors[0]).clamp_(0, 255)
    mean = _brightness(pixels).mean((2, 3), keepdim=True)
    pixels = torch.lerp(mean, pixels, factors[1]).clamp_(0, 255)
    return torch.lerp(_brightness(pixels), pixels, factors[2]).clamp_(0, 255)


def _brightness(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    weights = send(torch.tensor(LUMA), pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop, flip and cut out every image of a batch differently, without a loop over images.

    Args:
        images: tensor ``(batch, channels, height, width)``, uint8 or float, any device.
        augmentation: what to vary.
        generator: source of randomness, on any device.

    Returns:
        A tensor of the same shape, type and device.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> augment(images, Augmentation(crop_padding=1, flip=True), generator).shape
        torch.Size([2, 3, 8, 8])
    """
    offsets = draw_offsets(images.shape, augmentation, generator)
    return cut_out(crop_and_flip(images, offsets, augmentation), offsets, augmentation)
