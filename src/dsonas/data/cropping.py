"""Which rectangle of an image is used: a random one in training, the middle of it in tests."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dsonas._utils import derive_seed

Box = tuple[float, float, float, float]
Images = TypeVar("Images")
ASPECTS = 3 / 4, 4 / 3  # width over height of a random crop, least and largest
TRIALS = 10


class Crop(Protocol):
    """A rule that gives every image of a set the rectangle that is resized to its square."""

    @property
    def least_side(self) -> float:
        """The least length of a side that matters, as a share of the image's shorter side."""
        ...

    def box(self, position: int, width: int, height: int) -> Box:
        """The rectangle in pixels.

        Args:
            position: of the image in its set.
            width: of the image, >= 1.
            height: of the image, >= 1.

        Returns:
            Left, top, right and bottom; inside the image, not empty.
        """
        ...


@dataclass(frozen=True)
class CentreCrop:
    """The square in the middle: ``share`` 0.875 is "resize to 256, cut out 224".

    Args:
        share: its side over the shorter side of the image, in (0, 1].

    Example:
        >>> CentreCrop(0.875).box(0, 320, 256)
        (48.0, 16.0, 272.0, 240.0)
    """

    share: float

    @property
    def least_side(self) -> float:
        """The share."""
        return self.share

    def box(self, position: int, width: int, height: int) -> Box:
        """See ``Crop``; the same for every position."""
        side = self.share * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


@dataclass(frozen=True)
class RandomCrop:
    """A random rectangle: its area and the logarithm of its aspect ratio are uniform.

    A pure function of the seed and the position of the image, so that a run that is resumed sees
    the same. If ten trials do not fit into a long image, the largest middle part of allowed aspect
    is used.

    Args:
        least_area: smallest share of the area of the image, in (0, 1]; the largest is 1.
        seed: of all choices, one for each epoch.

    Example:
        >>> crop = RandomCrop(0.08, seed=1)
        >>> crop.box(0, 500, 375) == crop.box(0, 500, 375), crop.box(0, 500, 375) == crop.box(
        ...     1, 500, 375
        ... )
        (True, False)

    Source: Szegedy et al., arXiv 1409.4842, section 6.
    """

    least_area: float
    seed: int

    @property
    def least_side(self) -> float:
        """The side of the smallest square."""
        return math.sqrt(self.least_area)

    def box(self, position: int, width: int, height: int) -> Box:
        """See ``Crop``."""
        random = Random(derive_seed(self.seed, position))
        low, high = map(math.log, ASPECTS)
        for _ in range(TRIALS):
            area = random.uniform(self.least_area, 1) * width * height
            aspect = math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < across <= width and 0 < down <= height:
                left, top = random.randint(0, width - across), random.randint(0, height - down)
                return left, top, left + across, top + down
        return _middle(width, height)


def _middle(width: int, height: int) -> Box:
    """The largest centred part whose aspect ratio is allowed."""
    across = min(width, max(1, round(height * ASPECTS[1])))
    down = min(height, max(1, round(width / ASPECTS[0])))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def cropped(images: Images, crop: Crop | None) -> Images:
    """The same image set, which cuts every image by a rule when it is fetched.

    Args:
        images: an ``ImageSet``; it is left alone and shares its pixels with the result.
        crop: the rule; None takes images as they are.
    """
    found: Any = copy(images)
    found.crop = crop
    return found


def cut_pixels(pixels: Tensor, crop: Crop | None, positions: Tensor) -> Tensor:
    """Cut and resize images that are in memory, each to the size that it has.

    Args:
        pixels: uint8 tensor ``(batch, channels, height, width)``.
        crop: the rule; None returns the pixels as they are.
        positions: int64 tensor ``(batch,)``, positions of the images in their set.

    Returns:
        A tensor of the same shape and type.
    """
    if crop is None:
        return pixels
    from torchvision.transforms.v2 import functional as transforms  # seconds, for this only

    height, width = pixels.shape[2:]
    cut = []
    for image, position in zip(pixels, positions.tolist(), strict=True):
        left, top, right, bottom = map(round, crop.box(position, width, height))
        part = image[:, top:bottom, left:right]
        cut.append(transforms.resize(part, [height, width], antialias=True))
    return torch.stack(cut)
