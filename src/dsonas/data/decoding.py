"""Image files read for training: headers, squares, smaller copies; errors that name the file."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from .augmentation import RandomCrop
from .data_config import DataError, crop_share, plain_name
from .pixels import check_range, read_pixels, to_8bit

with suppress(ImportError):  # extra ``formats``: HEIC, as telephones write it
    import_module("pillow_heif").register_heif_opener()


class UnreadableImageError(DataError):
    """A file that is not an image, or is damaged, truncated or of an unsupported kind."""

    def __init__(self, name: str | bytes, error: Exception) -> None:
        # the object in memory, or the name once more, say nothing to a user
        plain = " ".join(re.sub(r" (<_io\S* .*>|'.*')$", "", str(error)).split())
        self.reason = getattr(error, "strerror", None) or plain or type(error).__name__
        called = "in memory" if isinstance(name, bytes) else plain_name(name)
        super().__init__(f"cannot read image {called}: {self.reason}")


class ImageHeader(NamedTuple):
    """What the head of an image file says: size in pixels; whether it is grey, one of several."""

    width: int
    height: int
    grey: bool
    several: bool = False

    @property
    def short_side(self) -> int:
        """The shorter of width and height."""
        return min(self.width, self.height)


def read_header(file: str | bytes, name: str | None = None) -> ImageHeader:
    """Read size and kind of an image, by its path or content, without decoding its pixels.

    Palette images are grey if all colours of the palette are. An UnreadableImageError, which calls
    the image by ``name``, if it is not a supported one.
    """
    try:
        with _open(file) as image:
            check_range(image)
            return ImageHeader(*image.size, _is_grey(image), _has_frames(image))
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise UnreadableImageError(name or file, error) from error


def decode(
    file: str | bytes,
    image_size: int,
    channels: int,
    name: str | None = None,
    fit: str = "crop",
    crop: RandomCrop | None = None,
    position: int = 0,
) -> np.ndarray:
    """Decode an image file, given by its path or content, as ``read_pixels`` does.

    ``name`` is what errors call it (None: its path); ``crop`` the rectangle for the image at a
    ``position`` of its set, in training (None: as ``fit`` says, see ``DataConfig.fit``). An
    UnreadableImageError if the file is no image, is damaged, truncated or unsupported.
    """
    source, kind = BytesIO(file) if isinstance(file, bytes) else file, fit.partition(":")[0]
    share, box = crop_share(fit), None
    if crop is not None:
        share, box = crop.least_side, partial(crop.box, position)
    try:
        return read_pixels(source, image_size, channels, share, box, kind)
    except Exception as error:
        raise UnreadableImageError(name or file, error) from error


def shrink_image(content: bytes, side: int, name: str) -> tuple[bytes, str]:
    """Encode an image anew with a shorter side of ``side`` pixels, if it is larger.

    JPEG stays JPEG (quality 95), everything else becomes PNG. The orientation is applied. Returns
    the new content and the ending of its file name. Errors call the image by ``name``.

    Example:
        >>> buffer = BytesIO()
        >>> Image.new("L", (40, 20)).save(buffer, "PNG")
        >>> smaller, ending = shrink_image(buffer.getvalue(), 10, "black.png")
        >>> read_header(smaller).short_side, ending
        (10, 'png')
    """
    try:
        with _open(content) as image:
            is_jpeg = image.format == "JPEG"
            upright = to_8bit(image)
            plain = upright.convert("L" if _is_grey(upright) else "RGB")
            factor = min(1.0, side / min(plain.size))
            width, height = (max(1, round(factor * length)) for length in plain.size)
            buffer = BytesIO()
            resized = plain.resize((width, height), Image.Resampling.BICUBIC)
            resized.save(buffer, "JPEG" if is_jpeg else "PNG", quality=95)
            return buffer.getvalue(), "jpg" if is_jpeg else "png"
    except Exception as error:
        raise UnreadableImageError(name, error) from error


def _open(file: str | bytes) -> Image.Image:
    return Image.open(BytesIO(file) if isinstance(file, bytes) else file)


def _has_frames(image: Image.Image) -> bool:
    """Whether the file holds more than the image that is used: an animation, or pages."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of damaged frames that are not used
        return False


def _is_grey(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
