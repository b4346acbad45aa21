"""Images to predict: files and folders to normalised batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .data_config import DataError
from .decoding import EXTENSIONS, UnreadableImageError, decode, read_header
from .normalisation import normalise

logger = logging.getLogger(__name__)


def load_images(
    paths: Sequence[str | PathLike[str]],
    *,
    image_size: int,
    input_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 64,
) -> Iterator[tuple[Tensor, list[str]]]:
    """Read images as a trained network expects them, a batch at a time.

    Missing paths are found before the first image is read. Files that cannot be read are skipped
    and counted in the log.

    Args:
        paths: image files, and folders that are searched for images, also inside subfolders.
        image_size: side in pixels of the network's input.
        input_channels: 1 or 3. For 1, colour images become grey; for 3, grey images are refused.
        mean: one number per channel, in units of 0..1.
        std: one number per channel, in units of 0..1, > 0.
        batch_size: images in a batch, >= 1.

    Returns:
        Iterator over float32 tensors ``(batch, input_channels, image_size, image_size)`` in
        channels_last format, each with the names of its files.

    Raises:
        DataError: if a path does not exist, a folder has no images, no file can be read, or a
            grey image is met where RGB is needed.

    Example:
        >>> from PIL import Image
        >>> file = getfixture("tmp_path") / "red.png"
        >>> Image.new("RGB", (40, 30), "red").save(file)
        >>> rgb = dict(mean=[0.5] * 3, std=[0.5] * 3)
        >>> for images, names in load_images([file], image_size=8, input_channels=3, **rgb):
        ...     print(images[0, :, 0, 0], [Path(name).name for name in names])
        tensor([ 1., -1., -1.]) ['red.png']
    """
    files = [file for path in paths for file in _list_files(Path(path))]
    if not files:
        raise DataError("no images given: name image files or folders")
    decoded = _decode_files(files, image_size, input_channels)
    return _collect(decoded, mean, std, batch_size)


def _list_files(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise DataError(f"{path} not found: name an image file or a folder of images")
    files = [
        str(file)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise DataError(f"{path} has no images: their names must end in {', '.join(EXTENSIONS)}")
    return files


def _decode_files(
    files: Sequence[str], image_size: int, channels: int
) -> Iterator[tuple[Tensor, str]]:
    skipped: list[str] = []
    for file in files:
        try:
            _check_color(file, channels)
            yield torch.from_numpy(decode(file, image_size, channels)), file
        except UnreadableImageError:
            skipped.append(file)
    if len(skipped) == len(files):
        raise DataError(f"none of the {len(files)} files is a readable image: {files[0]}, ...")
    if skipped:
        first = ", ".join(skipped[:3])
        logger.warning("%d unreadable image files skipped: %s", len(skipped), first)


def _check_color(file: str, channels: int) -> None:
    if channels == 3 and read_header(file).grey:
        raise DataError(f"{file} is grey but the network was trained on RGB images: save it as RGB")


def _collect(
    decoded: Iterator[tuple[Tensor, str]],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
) -> Iterator[tuple[Tensor, list[str]]]:
    images: list[Tensor] = []
    names: list[str] = []
    for image, name in decoded:
        images.append(image)
        names.append(name)
        if len(images) == batch_size:
            yield normalise(torch.stack(images), mean, std), names
            images, names = [], []
    if images:
        yield normalise(torch.stack(images), mean, std), names
