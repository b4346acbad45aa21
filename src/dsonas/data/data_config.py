"""What data to use: the configuration, without torch, so that the command line starts fast."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dsonas._utils import (
    HalfOpenUnit,
    ImageSize,
    NonNegativeInt,
    PositiveInt,
    absolute_path,
    absolute_place,
    check_settings,
)

SOURCE_NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "folder", "shards")
PLACED = ("folder", "shards")  # sources that need a place
AUGMENTS = ("shift", "crop", "none")
FITS = ("crop", "pad", "stretch")


class DataError(ValueError):
    """A problem with the user's data; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, its parts and its augmentation.

    Args:
        name: ``folder:PATH`` for a folder of your own images, ``digits``, ``fashion-mnist``,
            ``cifar10`` or ``cifar100`` (``cifar10:PATH`` where its files lie elsewhere), or
            ``shards:PATH_OR_URL`` for what ``dsonas shards`` wrote.
        image_size: side of the square images in pixels, >= 4. None: the data set's own; for
            folders 32, 64 or 224 where the median short side is below 48, below 160 or larger.
        color: ``auto`` is the data set's own; a folder is grey if all its images are, otherwise
            its grey images become RGB. ``grey`` converts everything. ``rgb`` refuses grey images.
        labels: a CSV file of paths in the folder and their classes (and parts, if it has a third
            column), instead of class folders.
        test: share held out for testing, in (0, 1), where there is no test part; or the place of
            one, a folder like that of ``name``, or a file like ``labels``.
        val: the same for validation, which chooses the epoch whose network step 3 keeps. None: a
            ``val/`` beside ``test/``, if there is one; 0: nothing.
        factor_split: share of the training set that updates the scaling factors, in [0, 1).
            0 means no split: both updates use all of it.
        augment: how training images are varied. ``shift``: a random crop of the image padded by
            an eighth of its side (digits 1 pixel, Fashion-MNIST 2, CIFAR 4). ``crop``: the
            ImageNet recipe, a random part of at least 8 % of the area and of aspect 3:4 to 4:3,
            cut out of the whole file when it is read, and brightness, contrast and saturation
            times 0.6 to 1.4. ``none``. ``FILE.py:FUNCTION``: a function of yours, called with
            each image, a uint8 tensor (channels, image_size, image_size), returning the same.
        flip: mirror half of the training images. None: True with ``shift`` and ``crop``, except
            for digits; otherwise False.
        cutout: side in pixels of the square that step 3 blanks out in training, >= 0.
        fit: how images become squares, also in ``predict`` and exports: ``crop`` cuts out the
            largest in the middle, ``pad`` adds black, ``stretch`` distorts. ``crop:0.875`` cuts
            out less of test images, as "resize to 256, cut out 224" does. Folders, shards.
        balance: draw training images so that all classes come equally often. Not with shards.
        workers: decoding processes (streamed data) or threads (data read into memory), >= 0.
        max_train_images: use a stratified subset of so many training images, >= 1.
        max_test_images: the same for the test images.

    Raises:
        ValueError: if a value is out of range; the message gives the rule and the remedy.

    Example:
        >>> DataConfig(name="folder:my_images").source
        'folder'
    """

    name: str = "digits"
    image_size: ImageSize | None = None
    color: Literal["auto", "grey", "rgb"] = "auto"
    labels: str | None = None
    test: float | str = 0.2
    val: float | str | None = None
    factor_split: HalfOpenUnit = 0.5
    augment: str = "shift"
    flip: bool | None = None
    cutout: NonNegativeInt = 0
    fit: str = "crop"
    balance: bool = False
    workers: NonNegativeInt = 0
    max_train_images: PositiveInt | None = None
    max_test_images: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_settings(self, "data")
        self._check_name()
        user = self.augment.rpartition(":")[0].endswith(".py")
        rules = (
            ("labels", self.labels is None or (self.labels != "" and self.source == "folder"),
             "a file, for folder:PATH alone", "give data.name folder:PATH, where its paths begin"),
            ("test", self._is_part(self.test) and self.test != 0,
             "above 0 and below 1, or a path with folder:PATH", "0.2 holds out a fifth"),
            ("val", self.val is None or self._is_part(self.val),
             "at least 0 and below 1, or a path with folder:PATH", "0.1 holds out a tenth"),
            ("augment", user or self.augment in AUGMENTS,
             f"{', '.join(AUGMENTS)} or FILE.py:FUNCTION", "choose one"),
            ("fit", valid_fit(self.fit), "crop, pad, stretch or crop:SHARE, a share in (0, 1]",
             "crop:0.875 uses the inner seven eighths"),
            ("balance", not self.balance or self.source != "shards", "false with shards",
             "they are read in their own order"),
        )  # fmt: skip
        for name, valid, rule, remedy in rules:
            self._check(valid, name, rule, remedy)

    @property
    def source(self) -> str:
        """The kind of data set, one of ``SOURCE_NAMES``."""
        return self.name.partition(":")[0]

    @property
    def location(self) -> str | None:
        """The folder or URL that ``name`` gives, if any."""
        return os.path.expanduser(self.name.partition(":")[2]) or None

    @property
    def root(self) -> Path | None:
        """``location`` as a path."""
        return Path(self.location) if self.location else None

    @property
    def paths(self) -> dict[str, str]:
        """The settings that name a file or folder, with their values."""
        found = {"labels": self.labels, "test": self.test, "val": self.val}
        return {name: value for name, value in found.items() if isinstance(value, str)}

    def absolute(self) -> DataConfig:
        """The same with paths that are found from every folder."""
        changed = {name: absolute_path(path) for name, path in self.paths.items()}
        if self.location and "://" not in self.location:
            changed["name"] = f"{self.source}:{os.path.abspath(self.location)}"
        return replace(self, **changed, augment=absolute_place(self.augment))

    def _is_part(self, value: object) -> bool:
        if isinstance(value, str):
            return bool(value) and self.source == "folder"
        return isinstance(value, float) and 0 <= value < 1

    def _check_name(self) -> None:
        known = (*SOURCE_NAMES[:-2], "folder:PATH", "shards:PATH_OR_URL")
        hint = "choose one"
        if os.path.isdir(self.name) or "/" in self.source:
            hint = f"did you mean folder:{self.name}?"
        self._check(self.source in SOURCE_NAMES, "name", f"one of {', '.join(known)}", hint)
        rules = (
            (self.source not in PLACED or self.location is not None,
             f"{self.source} with a path", f"give {self.source}:PATH"),
            (self.source != "digits" or self.name == "digits", "digits without a place",
             "they come with scikit-learn, leave the place out"),
            (self.source != "shards" or not str(self.location).startswith("pipe:"),
             "a path or a URL", "shards:s3://bucket/folder, say"),
        )  # fmt: skip
        for valid, rule, remedy in rules:
            self._check(valid, "name", rule, remedy)

    def _check(self, valid: bool, name: str, rule: str, remedy: str) -> None:
        if not valid:
            value = getattr(self, name)
            raise ValueError(f"data.{name} must be {rule}, got {value!r}: {remedy}")


def valid_fit(fit: str) -> bool:
    """Whether a text says how images become squares."""
    kind, colon, _ = fit.partition(":")
    try:
        return kind in FITS and (not colon or (kind == "crop" and 0 < crop_share(fit) <= 1))
    except ValueError:
        return False


def crop_share(fit: str) -> float:
    """Side of the square that is cut out of the middle over the shorter side, in (0, 1].

    Example:
        >>> crop_share("crop:0.875"), crop_share("crop"), crop_share("pad")
        (0.875, 1.0, 1.0)
    """
    return float(fit.partition(":")[2] or 1)


def with_share(kind: str, share: float) -> str:
    """Write how images become squares: the inverse of ``crop_share``.

    Example:
        >>> with_share("crop", 0.875), with_share("pad", 1.0)
        ('crop:0.875', 'pad')
    """
    return kind if share == 1 else f"{kind}:{share}"


def plain_name(name: str) -> str:
    """Write a file's name in one line of text: what cannot be printed is escaped.

    Example:
        >>> print(plain_name("a" + chr(9) + "cat.png").replace(chr(92), "/"))
        a/tcat.png
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def short_name(name: str) -> str:
    """Say briefly what ``data.name`` gives: the last part of its place, if it has one.

    Example:
        >>> short_name("digits"), short_name("folder:my/cats")
        ('digits', 'cats')
        >>> short_name("shards:s3://bucket/imagenet")
        'imagenet'
    """
    source, _, place = name.partition(":")
    if source not in PLACED:
        return source
    return Path(place).resolve().name or "images"
