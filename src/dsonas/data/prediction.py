"""Images to predict: files and folders to normalised batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .data_config import DataError, with_share
from .decoding import UnreadableImageError, decode
from .folders import list_images
from .normalisation import normalise

logger = logging.getLogger(__name__)


def load_images(
    paths: Sequence[str | PathLike[str]],
    *,
    image_size: int,
    input_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float = 1.0,
    fit: str = "crop",
    batch_size: int = 64,
    skipped: dict[str, str] | None = None,
) -> Iterator[tuple[Tensor, list[str]]]:
    """Read images as a trained network expects them (see ``read_pixels``), a batch at a time.

    Missing paths are found before the first image is read. Files that cannot be read are skipped,
    each with its reason in the log.

    Args:
        paths: image files, and folders that are searched for images, also inside subfolders.
        image_size, input_channels, crop, fit: see ``read_pixels``.
        mean, std: see ``normalise``.
        batch_size: images in a batch, >= 1.
        skipped: takes the name of each file that cannot be read, and why, before the batch in which
            it would have been is given.

    Returns:
        Normalised tensors, each with the names of its files.

    Raises:
        DataError: if a path does not exist, a folder has no images, or no file can be read.
    """
    files, bad = list_files(paths), {} if skipped is None else skipped
    decoded = _decode_files(files, image_size, input_channels, with_share(fit, crop), bad)

    def batches() -> Iterator[tuple[Tensor, list[str]]]:
        while batch := list(islice(decoded, batch_size)):
            images, names = zip(*batch, strict=True)
            yield normalise(torch.stack(images), mean, std), list(names)

    return batches()


def list_files(paths: Sequence[str | PathLike[str]]) -> list[str]:
    """The image files that paths of files and folders stand for, in order.

    Raises:
        DataError: if a path does not exist, a folder has no images, or there are none.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            if not (found := list_images(path)):
                raise DataError(f"{path} has no images that Pillow can read: name another folder")
            files += [str(Path(file)) for file in found]  # of "." without its dot, as if named
        elif path.is_file() or (path.is_symlink() and not path.exists()):
            files.append(str(path))  # a broken link, too, is a file: one that cannot be read
        else:
            raise DataError(f"{path} not found: name an image file or a folder of images")
    if not files:
        raise DataError("no images given: name image files or folders")
    return files


def _decode_files(
    files: Sequence[str], image_size: int, channels: int, fit: str, bad: dict[str, str]
) -> Iterator[tuple[Tensor, str]]:
    num_bad = 0
    for file in files:
        try:
            yield torch.from_numpy(decode(file, image_size, channels, fit=fit)), file
        except UnreadableImageError as error:
            num_bad += 1
            bad[file] = error.reason
            if num_bad == len(files):
                raise DataError(
                    f"none of the {num_bad} files is a readable image: {error}"
                ) from None
            logger.warning("%s: skipped", error)
    if num_bad:
        logger.warning("%d unreadable image files skipped of %d", num_bad, len(files))
