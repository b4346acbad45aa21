"""What data to use: the configuration, without torch, so that the command line starts fast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsonas._utils import require_finite

SOURCE_NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "folder", "shards")
DEFAULT_NAME = "digits"
PREFIXES = {"folder:": "folder", "shards:": "shards"}
PIPE, PLACEHOLDER = "pipe:", "{}"


class DataError(ValueError):
    """A problem with the user's data; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its size on disk and in memory, its parts and its augmentation.

    Args:
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``folder:PATH`` for a
            folder of your own images, or ``shards:PATH_OR_URL`` for what ``dsonas shards`` wrote.
        path: where the files of a named data set lie; with ``name`` ``folder`` or ``shards`` their
            place; with ``name`` left at its default, an image folder.
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
        crop_area: cut a random rectangle of at least this share of the area, in (0, 1], and of
            aspect 3:4 to 4:3 out of each training image when it is read (the paper's ImageNet:
            0.08), in place of ``crop_padding``. Folders are then read anew in every epoch.
        jitter: multiply brightness, contrast and saturation of each training image by factors in
            [1 - jitter, 1 + jitter]; in [0, 1].
        test_crop: side of the square in the middle of a test image that is used, over the shorter
            side, in (0, 1]; 0.875 is "resize to 256, cut out 224". Folders and shards only.
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
    crop_area: float | None = None
    jitter: float = 0.0
    test_crop: float = 1.0
    workers: int = 0
    memory_limit: int = 2 * 1024**3
    max_train_images: int | None = None
    max_test_images: int | None = None

    def __post_init__(self) -> None:
        require_finite(self, "data")
        self._check_source()
        self._check_choices()
        for name, minimum, remedy in _INTEGER_RULES:
            _check_integer(name, getattr(self, name), minimum, remedy)

    @property
    def source(self) -> str:
        """The kind of data set, one of ``SOURCE_NAMES``; a path alone means a folder."""
        if self.path is not None and self.name == DEFAULT_NAME:
            return "folder"
        return PREFIXES.get(_prefix(self.name), self.name)

    @property
    def location(self) -> str | None:
        """The folder, URL or pipe named after a prefix in ``name``, or by ``path``, if any is."""
        prefix = _prefix(self.name)
        text = self.name.removeprefix(prefix) if prefix else self.path
        return os.path.expanduser(text) if text else None

    @property
    def root(self) -> Path | None:
        """``location`` as a path."""
        return Path(self.location) if self.location else None

    def _check_source(self) -> None:
        known = ", ".join((*SOURCE_NAMES[:-2], "folder:PATH", "shards:PATH_OR_URL"))
        _check(self.source in SOURCE_NAMES, "name", f"one of {known}", self.name, "choose one")
        if self.source in PREFIXES.values():
            self._check_location(self.location)

    def _check_location(self, place: str | None) -> None:
        remedy, rule = f"give {self.source}:PATH or data.path", f"{self.source} with a path"
        _check(place is not None, "name", rule, self.name, remedy)
        if ":" in self.name and self.path is not None:
            same = self.root == Path(self.path).expanduser()
            rule = f"the place in data.name {self.name}"
            _check(same, "path", rule, self.path, "leave it out")
        if self.source == "shards" and place and place.startswith(PIPE):
            remedy = f"shards:pipe:aws s3 cp s3://bucket/set/{PLACEHOLDER} -, say"
            rule = f"a command with {PLACEHOLDER} where the path of a file belongs"
            _check(PLACEHOLDER in place, "name", rule, self.name, remedy)

    def _check_choices(self) -> None:
        colors = ("auto", "grey", "rgb")
        _check(self.color in colors, "color", "auto, grey or rgb", self.color, "choose one")
        _check(0 < self.test_fraction < 1, "test_fraction", "above 0 and below 1",
               self.test_fraction, "0.2 holds out a fifth")  # fmt: skip
        _check(0 <= self.lambda_fraction < 1, "lambda_fraction", "at least 0 and below 1",
               self.lambda_fraction, "0.5 splits 1:1, 0 does not split")  # fmt: skip
        share = "above 0 and at most 1"
        area = self.crop_area
        _check(area is None or 0 < area <= 1, "crop_area", share, area, "leave it out for no crop")
        _check(0 <= self.jitter <= 1, "jitter", "from 0 to 1", self.jitter, "0 switches it off")
        _check(0 < self.test_crop <= 1, "test_crop", share, self.test_crop, "1 uses all of it")


def _prefix(name: str) -> str:
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def short_name(name: str, path: str | None = None) -> str:
    """What to call a data set that is given by ``data.name`` and ``data.path``.

    Example:
        >>> short_name("digits"), short_name("folder:my/cats"), short_name("digits", "my/dogs")
        ('digits', 'cats', 'dogs')
        >>> short_name("shards:pipe:aws s3 cp s3://bucket/imagenet/{} -")
        'imagenet'
    """
    place = (path or name.removeprefix(_prefix(name))).split(PLACEHOLDER)[0]
    return Path(place).resolve().name or "images"


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
