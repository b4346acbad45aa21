"""What the folders in an image folder mean, by their names; which files in them are images."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from . import decoding as decoding  # which makes Pillow read what is installed
from .data_config import DataError, plain_name

logger = logging.getLogger(__name__)

SYSTEM_NAMES = frozenset((
    "@eadir", "__macosx", "__pycache__", "#recycle", "#snapshot", "@recycle", "$recycle.bin",
    "@recently-snapshot", "lost+found", "system volume information", "thumbs.db", "desktop.ini",
))  # fmt: skip
PARTS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "tests", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
    "val": ("val", "valid", "validate", "validation", "dev", "development"),
}
NEUTRAL = frozenset((  # words beside a part's name, and names of folders that only wrap others
    "data", "dataset", "set", "split", "part", "seg", "image", "images", "img", "imgs", "photos",
    "pictures", "files", "folder", "archive",
))  # fmt: skip
LAYOUT = (
    "one folder of images per class, or train/ and test/ with such folders inside; "
    "--data.labels takes a file of classes instead"
)


@dataclass(frozen=True)
class Layout:
    """What the folders in an image folder mean."""

    root: Path  # the folder, without what only wraps it
    # by ``train``, ``val`` and ``test`` the folder that holds the class folders of a part
    parts: dict[str, Path]
    unused: tuple[str, ...] = ()  # what is left aside and why, such as ``extra/ ignored``


def first(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, for a message."""
    return ", ".join(map(plain_name, names[:most])) + (", ..." if len(names) > most else "")


def say(told: str, names: Collection[str], *about: object) -> None:
    """Warn of some files or classes, if there are any: what about, how many, the first few."""
    if names:
        logger.warning(told, *about, len(names), first(list(names)))


def class_name(name: str) -> str:
    """A class by the name of its folder: in one line, and the same on every system.

    Example:
        >>> len(class_name("cafe" + chr(0x301)))
        4
    """
    return plain_name(unicodedata.normalize("NFC", name))


def walk_files(folder: str | Path, seen: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """Files below a folder in order, each with its real path; see ``list_contents``.

    Folders whose real paths have been ``seen`` are left out.
    """
    seen, real = set() if seen is None else seen, os.path.realpath(folder)
    if real in seen:  # two links to the same folder
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if is_visible(e.name)), key=lambda e: e.name)
    for entry in visible:
        linked = entry.is_symlink()
        if os.path.isdir(entry.path) if linked else entry.is_dir():
            if not linked or not _is_above(entry.path, real):
                yield from walk_files(entry.path, seen)
        elif linked:  # a broken one is a file that is unreadable
            yield entry.path, os.path.realpath(entry.path)
        elif entry.is_file():
            yield entry.path, f"{real}/{entry.name}"


def _is_above(link: str, folder: str) -> bool:
    """Whether a link leads to a folder, by its real path, or to one that it lies in: a loop."""
    return Path(folder).is_relative_to(os.path.realpath(link))


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
    # TGA files have no mark of their own: without their ending anything could be one
    return is_readable(path, [kind for kind in Image.OPEN if kind != "TGA"])


def is_readable(path: str, formats: list[str] | None = None) -> bool:
    """Whether the head of a file is that of an image of some formats, or any."""
    try:
        with Image.open(path, formats=formats):
            return True
    except Exception:  # a decoder can raise almost anything
        return False


def find_layout(root: Path, aside: Collection[str] = ()) -> Layout:
    """Find out what the folders in an image folder mean, by their names.

    A folder in it that is the only one is seen through; those whose real paths are in ``aside`` are
    parts by other means.

    Raises:
        DataError: if folders look like parts of a split, but cannot all be used as such.
    """
    given, root = root, _seen_through(root)
    names = subfolders(root, aside)
    named = _parts(names)
    parts = {name: part for name, part in named.items() if any(walk_files(root / name))}
    inner = {name: _unwrapped(root / name) for name in parts}
    whole = {name: bool(subfolders(inner[name])) for name in parts}
    trains, tests, vals = (
        [name for name in parts if parts[name] == part and whole[name]] for part in PARTS
    )
    unused = [f"{name}/ unused (empty)" for name in named if name not in parts]
    others = [name for name in names if name not in named and has_images(root / name)]
    only_class = len(parts) == 1 and next(iter(parts)).lower() in ("train", "trains")
    if not parts or (only_class and not trains and others):
        _check_inside(root, aside)
        if root == given:
            unused += [f"{name}/ beside it unused" for name in _parts_beside(root, aside)]
        return Layout(root, {"train": root}, tuple(unused))
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
    _check_inside(inner[trains[0]], part=True)
    used = {
        part: names[0] for part, names in zip(PARTS, (trains, tests, vals), strict=True) if names
    }
    unused += [f"{name}/ unused" for name in parts if name not in used.values() and whole[name]]
    unused += [f"{name}/ unused (no class folders)" for name in parts if not whole[name]]
    unused += [f"{name}/ ignored" for name in others]
    return Layout(root, {part: inner[name] for part, name in used.items()}, tuple(unused))


def _seen_through(root: Path) -> Path:
    """The first folder inside that has several folders with images, images itself, or parts."""
    seen: set[str] = set()
    while (real := os.path.realpath(root)) not in seen:
        seen.add(real)
        names = subfolders(root)
        inside = [root / name for name in names if has_images(root / name)]
        if len(inside) != 1 or _parts(names) or not (deeper := subfolders(inside[0])):
            break
        if loose_images(inside[0]) and not _parts(deeper):
            break
        root = inside[0]
    return root


def _parts_beside(root: Path, aside: Collection[str]) -> list[str]:
    """The other parts beside a folder that is a training part by its name."""
    own = _part(root.name)
    if own is None or own[0] != "train" or not os.access(root.parent, os.R_OK):
        return []
    return [
        name for name in subfolders(root.parent, aside)
        if (found := _part(name)) and found[0] != "train" and found[1] == own[1]
    ]  # fmt: skip


def _check_inside(root: Path, aside: Collection[str] = (), *, part: bool = False) -> None:
    """Refuse class folders that are divided alike, as a split is, or that hold the others again.

    What is inside of a ``part`` of a split is no other split.
    """
    inner = {
        name: set(subfolders(root / name))
        for name in subfolders(root, aside)
        if has_images(root / name)
    }
    for name, folders in inner.items():
        parts = _parts(sorted(folders))
        if {"train"} < set(parts.values()) and not part:
            raise DataError(
                f"{first([f'{name}/{part}' for part in parts])} in {root} look like parts of a "
                "split inside of a class: put the parts outside, train/CLASS and test/CLASS, or "
                "rename them"
            )
        if len(again := sorted(folders & inner.keys() - {name})) > 1:
            raise DataError(
                f"{name}/ in {root} would be a class, but holds folders of the names of classes "
                f"beside it ({first(again)}): move it away, or rename them"
            )
    common = sorted(set.intersection(*inner.values())) if len(inner) > 1 and not part else []
    if len(common) > 1 and not any(loose_images(root / name) for name in inner):
        raise DataError(
            f"{first(list(inner))} in {root} would be classes, but look like parts of a split, as "
            f"each holds {first(common)}: name them train/ and test/; or put them all into "
            f"{root}/train/ if they are classes"
        )


def subfolders(folder: Path, aside: Collection[str] = ()) -> list[str]:
    """Names of the visible folders in a folder, in order, without those of some real paths.

    Links to the folder itself, or to one that it lies in, are left out too.
    """
    folders = (path for path in folder.iterdir() if path.is_dir() and is_visible(path.name))
    real = os.path.realpath(folder)
    return sorted(
        path.name for path in folders
        if not (path.is_symlink() and _is_above(str(path), real))
        and os.path.realpath(path) not in aside
    )  # fmt: skip


def has_images(folder: Path) -> bool:
    """Whether there is an image file anywhere below a folder."""
    return any(is_image(path) for path, _ in walk_files(folder))


def loose_images(folder: Path) -> list[str]:
    """The paths of the visible image files that lie in a folder itself, in order."""
    files = (entry for entry in os.scandir(folder) if entry.is_file() and is_visible(entry.name))
    return sorted(entry.path for entry in files if is_image(entry.path))


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
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
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
