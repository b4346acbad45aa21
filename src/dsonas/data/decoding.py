"""Image files read for training: headers, squares, smaller copies; errors that name the file."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import BytesIO

import numpy as np
from PIL import Image

from .augmentation import RandomCrop
from .data_config import DataError, crop_share, plain_name
from .pixels import check_range, read_pixels, to_8bit

with suppress(ImportError):  # extra ``formats``: HEIC, as telephones write it
    import_module("pillow_heif").register_heif_opener()


class UnreadableImageError(DataError):
    """A file that is not an image, or is damaged, truncated or of an unsupported kind.

    Args:
        message: with the file's name.
        reason: what is wrong with it.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageHeader:
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

    Palette images are grey if all colours of the palette are. Errors call the image by ``name``.

    Raises:
        UnreadableImageError: if the file is not a supported image.
    """
    try:
        with _open(file) as image:
            check_range(image)
            return ImageHeader(*image.size, _is_grey(image), _has_frames(image))
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise _unreadable(name or file, error) from error


def decode(
    file: str | bytes,
    image_size: int,
    channels: int,
    name: str | None = None,
    fit: str = "crop",
    crop: RandomCrop | None = None,
    position: int = 0,
) -> np.ndarray:
    """Decode an image file to a square of a given size.

    Args:
        file: path of an image file, or its content.
        image_size, channels: see ``read_pixels``, the rule.
        name: what errors call it; None: its path.
        fit: see ``DataConfig.fit``.
        crop: which rectangle, in training; None: as ``fit`` says.
        position: of the image in its set, for ``crop``.

    Returns:
        Array uint8 of shape ``(channels, image_size, image_size)``.

    Raises:
        UnreadableImageError: if the file is not an image, is damaged, truncated or unsupported.
    """
    source, kind = BytesIO(file) if isinstance(file, bytes) else file, fit.partition(":")[0]
    share, box = crop_share(fit), None
    if crop is not None:
        share, box = crop.least_side, partial(crop.box, position)
    try:
        return read_pixels(source, image_size, channels, share, box, kind)
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise _unreadable(name or file, error) from error


def shrink_image(content: bytes, side: int, name: str) -> tuple[bytes, str]:
    """Encode an image anew with a shorter side of a given length, if it is larger.

    JPEG stays JPEG (quality 95), everything else becomes PNG. The orientation is applied.

    Args:
        content: of an image file.
        side: length of the shorter side in pixels, >= 1.
        name: what errors call it.

    Returns:
        The new content and the ending of its file name, such as ``jpg``.

    Raises:
        UnreadableImageError: if the content is not a supported image.

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
            size = tuple(max(1, round(factor * length)) for length in plain.size)
            buffer = BytesIO()
            resized = plain.resize((size[0], size[1]), Image.Resampling.BICUBIC)
            resized.save(buffer, "JPEG" if is_jpeg else "PNG", quality=95)
            return buffer.getvalue(), "jpg" if is_jpeg else "png"
    except Exception as error:  # a damaged file can raise almost anything in a decoder
        raise _unreadable(name, error) from error


def _open(file: str | bytes) -> Image.Image:
    return Image.open(BytesIO(file) if isinstance(file, bytes) else file)


def _unreadable(name: str | bytes, error: Exception) -> UnreadableImageError:
    # the object in memory, or the name once more, say nothing to a user
    plain = re.sub(r" (<_io\S* .*>|'.*')$", "", str(error))
    reason = getattr(error, "strerror", None) or " ".join(plain.split()) or type(error).__name__
    called = "in memory" if isinstance(name, bytes) else plain_name(str(name))
    return UnreadableImageError(f"cannot read image {called}: {reason}", reason)


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
