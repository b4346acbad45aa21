"""A folder of the user's own images: what its folders mean, which files are read, and for what."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from . import decoding as decoding  # which makes Pillow read what is installed
from .data_config import DataError
from .splitting import stratified_choice

logger = logging.getLogger(__name__)

SYSTEM_NAMES = frozenset((
    "@eadir", "__macosx", "__pycache__", "#recycle", "#snapshot", "@recycle", "$recycle.bin",
    "@recently-snapshot", "lost+found", "system volume information", "thumbs.db", "desktop.ini",
))  # fmt: skip
PARTS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
    "val": ("val", "valid", "validation", "dev"),
}
NEUTRAL = frozenset((  # words beside a part's name, and names of folders that only wrap others
    "data", "dataset", "set", "split", "part", "seg", "image", "images", "img", "imgs", "photos",
    "pictures", "files", "folder", "archive",
))  # fmt: skip
HINTS = {".heic": " (pip install 'dsonas[formats]')", ".heif": " (pip install 'dsonas[formats]')"}
Classes = dict[
    str, list[tuple[str, str]]
]  # by the name of each class its files, and their real paths
_LAYOUT = "one folder of images per class, or train/ and test/ with such folders inside"


@dataclass(frozen=True)
class Listing:
    """Image files and their classes, before anything is known about the images.

    Args:
        paths: of the files.
        labels: int64 tensor, class of each file.
    """

    paths: tuple[str, ...]
    labels: Tensor

    def where(self, chosen: Tensor) -> Listing:
        """Those for which a bool tensor is true."""
        paths = zip(self.paths, chosen.tolist(), strict=True)
        return Listing(tuple(path for path, keep in paths if keep), self.labels[chosen])

    def sample(self, num_images: int | None, seed: int) -> Listing:
        """A stratified subset; see ``ImageSet.sample``."""
        if num_images is None or num_images >= len(self.paths):
            return self
        return self.where(stratified_choice(self.labels, num_images, seed))


@dataclass(frozen=True)
class Layout:
    """What the folders in an image folder mean.

    Args:
        root: the folder, without what only wraps it.
        train: the folder that holds the class folders of the training images.
        test: the same for the test images; None: a part of ``train`` is held out.
        unused: what is left aside and why, such as ``val/ unused``.
    """

    root: Path
    train: Path
    test: Path | None = None
    unused: tuple[str, ...] = ()

    def describe(self, num_classes: int, num_train: int, test_fraction: float) -> str:
        """Say in one line how the folder was understood."""
        train = self.train.relative_to(self.root) if self.train != self.root else self.root.name
        rest = f"{100 * test_fraction:g} % of the files held out as test"
        if self.test is not None:
            rest = f"{self.test.relative_to(self.root)}/ used as test"
        return ", ".join((f"{train}/ {num_classes} classes {num_train} images", rest, *self.unused))


class Row(NamedTuple):
    """What ``split.csv`` says of a file: class, part, size, and why it is unreadable if it is."""

    label: str
    part: str  # train, test or unreadable
    num_bytes: int
    reason: str = ""


@dataclass(frozen=True)
class Split:
    """Which files of an image folder are for what; a run keeps it as ``split.csv``.

    Args:
        rows: by the path of each file in the folder.
    """

    rows: dict[str, Row] = field(repr=False)

    def to_csv(self) -> str:
        """Write the split as text."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("path", "class", "part", "bytes", "reason"))
        writer.writerows((path, *row) for path, row in sorted(self.rows.items()))
        return buffer.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> Split:
        """Read what ``to_csv`` wrote; a DataError if it is anything else."""
        try:
            found = list(csv.reader(io.StringIO(text)))[1:]
            rows = {path: Row(a, b, int(size), why) for path, a, b, size, why in found}
            return cls(rows)
        except (ValueError, csv.Error) as error:
            raise DataError(f"split.csv is damaged ({error}): train the run again") from None

    def changes(self, now: Split) -> str:
        """Say in one line what differs in another split of the folder; nothing if they are equal.

        Example:
            >>> before = Split({"cat/1.png": Row("cat", "train", 9)})
            >>> before.changes(Split({"dog/1.png": Row("dog", "train", 9)}))
            'classes gone: cat; classes new: dog; 1 files gone: cat/1.png; 1 files new: dog/1.png'
        """
        classes, others = ({row.label for row in split.rows.values()} for split in (self, now))
        kept = [path for path in self.rows if path in now.rows]
        files = {
            "gone": [path for path in self.rows if path not in now.rows],
            "new": [path for path in now.rows if path not in self.rows],
            "changed": [path for path in kept if self.rows[path] != now.rows[path]],
        }
        said = [
            f"classes {word}: {', '.join(sorted(names))}"
            for word, names in (("gone", classes - others), ("new", others - classes))
            if names
        ]
        said += [f"{len(them)} files {word}: {first(them)}" for word, them in files.items() if them]
        return "; ".join(said)


@dataclass(frozen=True)
class Contents:
    """The image files of a folder.

    Args:
        root: the folder as given.
        layout: what its folders mean.
        class_names: in the order of the labels.
        train: files for training; those held out are not among them.
        test: files for the test.
    """

    root: Path
    layout: Layout
    class_names: tuple[str, ...]
    train: Listing
    test: Listing

    def name(self, path: str) -> str:
        """The path of a file in the folder, with slashes, in one line."""
        return plain_name(os.path.relpath(path, self.root).replace(os.sep, "/"))

    def split(self, unreadable: Mapping[str, str]) -> Split:
        """Which file is for what, given why some are unreadable."""
        rows = {}
        for part, listing in (("train", self.train), ("test", self.test)):
            for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
                kind = "unreadable" if path in unreadable else part
                what = self.class_names[label], kind, num_bytes(path)
                rows[self.name(path)] = Row(*what, unreadable.get(path, ""))
        return Split(rows)


def num_bytes(path: str) -> int:
    """The size of a file; 0 if it cannot be seen, as behind a broken link."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def plain_name(name: str) -> str:
    """Write a file's name in one line of text: what cannot be printed is escaped.

    Example:
        >>> print(plain_name("a" + chr(9) + "cat.png").replace(chr(92), "/"))
        a/tcat.png
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def first(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, for a message."""
    return ", ".join(map(plain_name, names[:most])) + (", ..." if len(names) > most else "")


def list_contents(root: Path, test_fraction: float | None) -> Contents:
    """List the image files of a folder; what is left out is said in the log.

    Hidden and system folders are skipped. Links are followed; a file that several links lead to is
    taken once, and counts as a test image if any of them does.

    Args:
        root: the folder.
        test_fraction: share held out for testing, in (0, 1), where there is no test part; None
            holds nothing out, and takes any classes.

    Raises:
        DataError: if the folder is missing or does not hold at least two classes of images, if
            train and test classes differ, or if it is not clear what its folders mean.
    """
    if not root.is_dir():
        raise DataError(f"image folder {root} not found: give the path of {_LAYOUT}")
    layout = find_layout(root)
    found: dict[str, Classes] = {"test": {}, "train": _list_classes(layout.train)}
    if layout.test is not None:
        found["test"] = _list_classes(layout.test)
    _take_once(found, root)
    present = [{name for name in part if part[name]} for part in found.values()]
    if test_fraction is not None:
        _check_classes(layout, *present)
    names = tuple(sorted(set().union(*present)))
    test, train = (_to_listing(part, names) for part in found.values())
    if test_fraction is not None and layout.test is None:
        train, test = _hold_out(train, layout.train, test_fraction)
    return Contents(root, layout, names, train, test)


def walk_files(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Files below a folder in order, each with its real path; see ``list_contents``."""
    yield from _walk(str(folder), set())


def _walk(folder: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    real = os.path.realpath(folder)
    if real in seen:  # a link into itself, or two links to the same folder
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if is_visible(e.name)), key=lambda e: e.name)
    for entry in visible:
        linked = entry.is_symlink()
        if os.path.isdir(entry.path) if linked else entry.is_dir():
            yield from _walk(entry.path, seen)
        elif linked:  # a broken one is a file that is unreadable
            yield entry.path, os.path.realpath(entry.path)
        elif entry.is_file():
            yield entry.path, f"{real}/{entry.name}"


def is_visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor the system's own."""
    return not name.startswith(".") and name.lower() not in SYSTEM_NAMES


@lru_cache
def image_extensions() -> frozenset[str]:
    """Endings of the names of all files that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN)


def is_image(path: str) -> bool:
    """Whether a file is one by its name, or else by its content."""
    if os.path.splitext(path)[1].lower() in image_extensions():
        return True
    try:
        # TGA files have no mark of their own: without their ending anything could be one
        with Image.open(path, formats=[kind for kind in Image.OPEN if kind != "TGA"]):
            return True
    except Exception:  # a decoder can raise almost anything
        return False


def list_images(folder: Path) -> list[str]:
    """The image files below a folder, each once; says which other files are left out."""
    reals: dict[str, str] = {}
    others: Counter[str] = Counter()
    for path, real in walk_files(folder):
        if is_image(path):
            reals.setdefault(real, path)
        else:
            others[os.path.splitext(path)[1].lower() or "without an ending"] += 1
    _say_others(folder, others)
    return list(reals.values())


def _say_others(folder: Path, others: Counter[str]) -> None:
    if others:
        kinds = [f"{count} {kind}{HINTS.get(kind, '')}" for kind, count in others.most_common()]
        logger.warning("%s: files left out that are no images: %s", folder, first(kinds, 9))


def find_layout(root: Path) -> Layout:
    """Find out what the folders in an image folder mean, by their names.

    Raises:
        DataError: if folders look like parts of a split, but cannot all be used as such.
    """
    root = _unwrapped(root)
    names = subfolders(root)
    parts = {name: part for name, part in _parts(names).items() if _has_files(root / name)}
    inner = {name: _unwrapped(root / name) for name in parts}
    whole = {name: bool(subfolders(inner[name])) for name in parts}
    trains, tests, vals = (
        [name for name in parts if parts[name] == part and whole[name]] for part in PARTS
    )
    others = [name for name in names if name not in parts and _has_files(root / name)]
    only_class = len(parts) == 1 and next(iter(parts)).lower() in ("train", "trains")
    if not parts or (only_class and not trains and others):
        return Layout(root, root)
    shown = first([f"{name}/" for name in parts], 9)
    if not trains:
        raise DataError(
            f"{shown} in {root} must be parts of a split with class folders inside, but would be "
            f"classes: put the training images into {root}/train/CLASS/, or rename the folders"
        )
    if len(trains) > 1:
        raise DataError(f"{root} must have one training part, got {shown}: move the others away")
    if others and not (tests or vals):
        raise DataError(
            f"{trains[0]}/ in {root} must stand alone or beside a test part, but stands beside "
            f"{first(others)}: move these away, or rename {trains[0]}/ if it is a class"
        )
    used = (tests or vals or [None])[0]
    unused = [f"{name}/ unused" for name in parts if name not in (trains[0], used) and whole[name]]
    unused += [f"{name}/ unused (no class folders)" for name in parts if not whole[name]]
    unused += [f"{name}/ ignored" for name in others]
    return Layout(root, inner[trains[0]], inner[used] if used else None, tuple(unused))


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in a folder, in order."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and is_visible(entry.name)
    )


def _has_files(folder: Path) -> bool:
    return next(walk_files(folder), None) is not None


def _unwrapped(folder: Path) -> Path:
    """The only folder inside, if it merely repeats the name, as in ``seg_train/seg_train``."""
    names = subfolders(folder)
    if len(names) != 1 or not subfolders(folder / names[0]):
        return folder
    inner, outer = names[0].lower(), folder.name.lower()
    part = _part(inner)
    same = inner == outer or inner in NEUTRAL or (part is not None and part == _part(outer))
    return folder / names[0] if same else folder


def _part(name: str) -> tuple[str, str] | None:
    """The part of a split that a folder's name stands for, and what else the name says."""
    words = re.findall(r"[a-z]+", name.lower())
    words = [re.sub(r"(?<=.)(set|data|images|imgs)$", "", word) for word in words]
    known = [part for word in words for part, variants in PARTS.items() if word in variants]
    variants = {variant for variants in PARTS.values() for variant in variants}
    rest = " ".join(word for word in words if word not in variants | NEUTRAL)
    return (known[0], rest) if len(known) == 1 else None


def _parts(names: Sequence[str]) -> dict[str, str]:
    """Which folders are named as parts: alone, or with the same other words as a training part."""
    found = {name: part for name in names if (part := _part(name))}
    by_rest = defaultdict(set)
    for part, rest in found.values():
        by_rest[rest].add(part)
    split = {rest for rest, parts in by_rest.items() if not rest or parts > {"train"}}
    return {name: part for name, (part, rest) in found.items() if rest in split}


def _list_classes(folder: Path) -> Classes:
    """The image files of each class folder; says which files are left out."""
    classes: Classes = {}
    others: Counter[str] = Counter()
    for name in subfolders(folder):
        classes[name] = []
        for path, real in walk_files(folder / name):
            if is_image(path):
                classes[name].append((path, real))
            else:
                others[os.path.splitext(path)[1].lower() or "without an ending"] += 1
    _say_others(folder, others)
    loose = [entry.name for entry in os.scandir(folder) if entry.is_file() and is_image(entry.path)]
    if loose := sorted(filter(is_visible, loose)):
        told = "%s: %d images beside the class folders left out: %s"
        logger.warning(told, folder, len(loose), first(loose))
    if empty := [name for name, files in classes.items() if not files]:
        told = "%s: %d folders without images ignored: %s"
        logger.warning(told, folder, len(empty), first(empty))
    return classes


def _take_once(found: dict[str, Classes], root: Path) -> None:
    """Keep one of the paths that lead to a file: the one without links, or in the test part."""
    start, real_root = len(str(root / "x")) - 1, os.path.realpath(root)
    files = [item for part in found.values() for files in part.values() for item in files]
    taken = {real for path, real in files if real == f"{real_root}/{path[start:]}"}
    if len(taken) == len(files):
        return
    repeated: list[str] = []
    for part in found.values():
        for name, items in part.items():
            kept = []
            for path, real in items:
                if real == f"{real_root}/{path[start:]}" or real not in taken:
                    kept.append((path, real))
                    taken.add(real)
                else:
                    repeated.append(os.path.relpath(path, root))
            part[name] = kept
    if repeated:
        told = "%s: %d files are reached more than once by links and taken once: %s"
        logger.warning(told, root, len(repeated), first(repeated))


def _check_classes(layout: Layout, test: set[str], train: set[str]) -> None:
    if not subfolders(layout.train):
        raise DataError(f"{layout.train} has no class folders: it must hold {_LAYOUT}")
    if len(train) < 2:
        raise DataError(
            f"{layout.train} has {len(train)} classes with images, needs 2: see {_LAYOUT}"
        )
    if layout.test is not None and test != train:
        raise DataError(
            f"classes of {layout.train} and {layout.test} differ: only in the first "
            f"{sorted(train - test)}, only in the second {sorted(test - train)}: give both the "
            "same folders"
        )


def _to_listing(classes: Classes, names: Sequence[str]) -> Listing:
    paths = [[path for path, _ in classes.get(name, ())] for name in names]
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor(list(map(len, paths))).long())
    return Listing(tuple(path for files in paths for path in files), labels)


def _hold_out(listing: Listing, folder: Path, fraction: float) -> tuple[Listing, Listing]:
    """Divide by a hash of each path, so that a file stays where it is when others come and go.

    Of every class with two files at least one is held out and one is not.
    """
    names = [os.path.relpath(path, folder) for path in listing.paths]
    draws = torch.tensor([_draw(name) for name in names], dtype=torch.float64)
    test = draws < fraction
    for label in listing.labels.unique().tolist():
        own = torch.nonzero(listing.labels == label).flatten()
        if len(own) > 1 and not test[own].any():
            test[own[draws[own].argmin()]] = True
        if test[own].all():
            test[own[draws[own].argmax()]] = False
    if not test.any():
        raise DataError(
            f"data.test_fraction {fraction} of {len(test)} images, one in each class, leaves no "
            "test image: use more images"
        )
    return listing.where(~test), listing.where(test)


def _draw(name: str) -> float:
    """A number in [0, 1) that depends on a path alone, the same on every system."""
    text = unicodedata.normalize("NFC", name.replace(os.sep, "/"))
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48
