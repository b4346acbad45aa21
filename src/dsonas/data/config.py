"""What data to use: the configuration, without torch, so that the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE_NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "folder")
DEFAULT_NAME = "digits"
FOLDER_PREFIX = "folder:"


class DataError(ValueError):
    """A problem with the user's data; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its size on disk and in memory, its parts and its augmentation.

    Args:
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, or ``folder:PATH`` for a
            folder of your own images.
        path: where the files of a named data set lie; with ``name`` ``folder``, or with ``name``
            left at its default, the image folder itself.
        image_size: side of the square images in pixels, >= 4. None: the data set's own; for
            folders 32, 64 or 224 where the median short side is below 48, below 160 or larger.
        color: ``auto`` is the data set's own; a folder is grey if all its images are, otherwise
            its grey images become RGB. ``grey`` converts everything. ``rgb`` refuses grey images.
        test_fraction: share held out for testing, in (0, 1), where there is no test part.
        lambda_fraction: share of the training set that updates the scaling factors, in [0, 1).
            0 means no split: both updates use all of it.
        crop_padding: random crops from the image padded by so many pixels, >= 0. None: digits 1,
            Fashion-MNIST 2, CIFAR 4, otherwise ``image_size // 8``.
        flip: mirror half of the training images. None: digits False, otherwise True.
        cutout: side in pixels of the square that step 3 blanks out in training, >= 0.
        workers: decoding processes (streamed data) or threads (data read into memory), >= 0.
        memory_limit: bytes. A folder larger than that when decoded is streamed from disk.
        max_train_images: use a stratified subset of so many training images, >= 1.
        max_test_images: the same for the test images.

    Raises:
        ValueError: if a value is out of range; the message gives the rule and the remedy.

    Example:
        >>> DataConfig(name="folder", path="my_images").source
        'folder'
        >>> DataConfig(name="folder:my_images").root == DataConfig(path="my_images").root
        True
    """

    name: str = DEFAULT_NAME
    path: str | None = None
    image_size: int | None = None
    color: Literal["auto", "grey", "rgb"] = "auto"
    test_fraction: float = 0.2
    lambda_fraction: float = 0.5
    crop_padding: int | None = None
    flip: bool | None = None
    cutout: int = 0
    workers: int = 0
    memory_limit: int = 2 * 1024**3
    max_train_images: int | None = None
    max_test_images: int | None = None

    def __post_init__(self) -> None:
        self._check_source()
        self._check_choices()
        for name, minimum, remedy in _INTEGER_RULES:
            _check_integer(name, getattr(self, name), minimum, remedy)

    @property
    def source(self) -> str:
        """The kind of data set, one of ``SOURCE_NAMES``; a path alone means a folder."""
        path_alone = self.path is not None and self.name == DEFAULT_NAME
        return "folder" if path_alone or self.name.startswith(FOLDER_PREFIX) else self.name

    @property
    def root(self) -> Path | None:
        """The folder named by ``folder:PATH`` or by ``path``, if either is."""
        inside_name = self.name.startswith(FOLDER_PREFIX)
        text = self.name.removeprefix(FOLDER_PREFIX) if inside_name else self.path
        return Path(text).expanduser() if text else None

    def _check_source(self) -> None:
        known = ", ".join((*SOURCE_NAMES[:-1], "folder:PATH"))
        _check(self.source in SOURCE_NAMES, "name", f"one of {known}", self.name, "choose one")
        if self.source == "folder":
            remedy = "give folder:PATH or data.path"
            _check(self.root is not None, "name", "a folder with a path", self.name, remedy)
        if self.name.startswith(FOLDER_PREFIX) and self.path is not None:
            same = self.root == Path(self.path).expanduser()
            _check(same, "path", f"the folder of data.name {self.name}", self.path, "leave it out")

    def _check_choices(self) -> None:
        colors = ("auto", "grey", "rgb")
        _check(self.color in colors, "color", "auto, grey or rgb", self.color, "choose one")
        _check(0 < self.test_fraction < 1, "test_fraction", "above 0 and below 1",
               self.test_fraction, "0.2 holds out a fifth")  # fmt: skip
        _check(0 <= self.lambda_fraction < 1, "lambda_fraction", "at least 0 and below 1",
               self.lambda_fraction, "0.5 splits 1:1, 0 does not split")  # fmt: skip


_INTEGER_RULES = (
    ("image_size", 4, "leave it out for the data set's own size"),
    ("crop_padding", 0, "0 switches random crops off"),
    ("cutout", 0, "0 switches cutout off"),
    ("workers", 0, "0 decodes in the main process"),
    ("memory_limit", 0, "0 streams every folder"),
    ("max_train_images", 1, "leave it out to use all images"),
    ("max_test_images", 1, "leave it out to use all images"),
)


def _check_integer(name: str, value: int | None, minimum: int, remedy: str) -> None:
    if value is None and name not in ("cutout", "workers", "memory_limit"):
        return
    valid = isinstance(value, int) and value >= minimum
    _check(valid, name, f"an integer of at least {minimum}", value, remedy)


def _check(valid: bool, name: str, rule: str, value: object, remedy: str) -> None:
    if not valid:
        raise ValueError(f"data.{name} must be {rule}, got {value!r}: {remedy}")
