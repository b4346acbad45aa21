"""From an image file to pixels: one rule for training, ``predict`` and every exported network.

It needs Pillow and numpy alone: ``dsonas export`` writes a copy of this file beside a network.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from os import PathLike
from typing import IO

import numpy as np
from PIL import Image, ImageOps

RESIZE = "bicubic"
WIDEST = 65535
_FULL_RANGE = ("PNG", "PPM")  # formats whose integers use all of 16 bits, whatever Pillow's mode
_told: list[str] = []


def read_pixels(
    file: str | PathLike[str] | IO[bytes],
    image_size: int,
    input_channels: int,
    crop: float = 1.0,
    box: Callable[[int, int], tuple[float, float, float, float]] | None = None,
    fit: str = "crop",
) -> np.ndarray:
    """Read an image file as the square of pixels that a network gets.

    It is turned upright, made 8 bits a channel and laid on white (see ``to_8bit``), converted to
    grey or RGB, made square and resized (bicubic).

    Args:
        file: path of an image file, or an open one; of several frames the first is taken.
        image_size: side of the result in pixels.
        input_channels: 1 for grey, 3 for RGB.
        crop: side of the square in the middle over the shorter side of the image, in (0, 1].
        box: another rectangle than that square: a function from width and height to left, top,
            right and bottom; ``crop`` is then the least side of it that matters.
        fit: ``crop`` takes that square; ``pad`` all of the image, with black beside it; ``stretch``
            all of it, distorted.

    Returns:
        Array uint8 of shape ``(input_channels, image_size, image_size)``.

    Raises:
        OSError: if the file is not an image, is damaged or truncated.
        ValueError: if the range of its pixels is unknown.

    Example:
        >>> file = getfixture("tmp_path") / "half.png"
        >>> Image.new("RGBA", (40, 30), (255, 0, 0, 128)).save(file)
        >>> read_pixels(file, 8, 3)[:, 0, 0]
        array([255, 127, 127], dtype=uint8)
    """
    with Image.open(file) as image:
        # JPEG decodes several times faster at a reduced scale; twice the size keeps quality
        side = math.ceil(2 * image_size / crop)
        image.draft(None, (side, side))
        plain = to_8bit(image).convert("L" if input_channels == 1 else "RGB")
    if fit == "pad":  # with room for a box inside; no more, or thin images would fill the memory
        plain = _padded(plain, min(max(plain.size), side) if box else image_size)
    width, height = plain.size
    square = min(width, height)
    if fit == "stretch":
        left, top, right, bottom = box(square, square) if box else (0, 0, square, square)
        across, down = width / square, height / square
        part = left * across, top * down, right * across, bottom * down
    else:
        part = box(width, height) if box else _middle(width, height, crop)
    resized = plain.resize((image_size, image_size), Image.Resampling[RESIZE.upper()], part)
    pixels = np.array(resized).reshape(image_size, image_size, input_channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _padded(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    square = Image.new(image.mode, (side, side))
    small = image.resize((width, height), Image.Resampling[RESIZE.upper()])
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return square


def _middle(width: int, height: int, crop: float) -> tuple[float, float, float, float]:
    side = crop * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def to_8bit(image: Image.Image) -> Image.Image:
    """Turn an image upright, make it 8 bits a channel, and lay transparent parts on white.

    | pixels | become |
    |---|---|
    | 16 bits | 0 for 0, 255 for 65535 |
    | 32-bit integers | as they are if all lie in 0..255, like 16 bits if all lie in 0..65535 |
    | 32-bit integers outside, floating point | refused: no file says what is black and white |

    Raises:
        ValueError: if the range of its pixels is unknown.
    """
    check_range(image)
    wide = image.mode.startswith("I;") or image.format in _FULL_RANGE
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.int64)
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = WIDEST
        name = getattr(image, "filename", "") or "an image"
        return Image.fromarray(_narrow(values, wide, name).astype(np.uint8))
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        white.alpha_composite(upright.convert("RGBA"))
        return white
    return upright


def check_range(image: Image.Image) -> None:
    """Refuse an image of which the header says that its pixels cannot be used.

    Raises:
        ValueError: if it has floating-point pixels, or those of the LAB colour space.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "LAB":
        raise ValueError("pixels in LAB are not converted; save it as RGB")


def _narrow(values: np.ndarray, wide: bool, name: str) -> np.ndarray:
    """Integers to 8 bits; ``wide``: the file says that they have 16."""
    low, high = values.min(), values.max()
    if low < 0 or high > WIDEST:
        raise ValueError(f"pixels from {low} to {high} have no known range; save it with 16 bits")
    if high <= 255 and not wide:
        return values
    if 0 < high < 4096 and not _told:
        _told.append(name)
        logging.getLogger(__name__).warning(
            "%s: its 16-bit pixels are at most %d of %d, nearly black; scale those of a 12-bit "
            "camera to 16 bits (said once)", name, high, WIDEST,
        )  # fmt: skip
    return (values + 128) // 257
