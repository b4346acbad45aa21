"""One image file to pixels: orientation, 16 bits, palettes, transparency, size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from .config import DataError

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")


class UnreadableImageError(DataError):
    """A file that is not an image, or is damaged, truncated or of an unsupported kind."""


@dataclass(frozen=True)
class ImageHeader:
    """What the head of an image file says: shorter side in pixels; whether it is grey."""

    short_side: int
    grey: bool


def read_header(path: str) -> ImageHeader:
    """Read size and kind of an image without decoding its pixels.

    Args:
        path: an image file.

    Returns:
        The header. Palette images are grey if all colours of the palette are.

    Raises:
        UnreadableImageError: if the file is not a supported image.
    """
    try:
        with Image.open(path) as image:
            _check_supported(image)
            return ImageHeader(min(image.size), _is_grey(image))
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise UnreadableImageError(f"cannot read image {path}: {error}") from error


def decode(path: str, image_size: int, channels: int) -> np.ndarray:
    """Decode an image file to a square of a given size.

    The EXIF orientation is honoured, 16-bit values are scaled to 8 bits, transparent parts are
    laid on white, the shorter side is resized to ``image_size`` and the centre is cut out.

    Args:
        path: an image file; of several frames the first is taken.
        image_size: side in pixels.
        channels: 1 for grey, 3 for RGB; the image is converted.

    Returns:
        Array uint8 of shape ``(channels, image_size, image_size)``.

    Raises:
        UnreadableImageError: if the file is not an image, is damaged, truncated or unsupported.
    """
    try:
        with Image.open(path) as image:
            _check_supported(image)
            # JPEG decodes several times faster at a reduced scale; twice the size keeps quality.
            image.draft(None, (2 * image_size, 2 * image_size))
            upright = ImageOps.exif_transpose(image)
            plain = _as_8bit(upright).convert("L" if channels == 1 else "RGB")
            square = ImageOps.fit(plain, (image_size, image_size), Image.Resampling.BICUBIC)
            pixels = np.array(square).reshape(image_size, image_size, channels)
            return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise UnreadableImageError(f"cannot read image {path}: {error}") from error


def _check_supported(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")


def _as_8bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white
    return image
