"""What the folders in an image folder mean, by their names; which files in them are images."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from . import decoding as decoding  # which makes Pillow read what is installed
from .data_config import DataError, plain_name

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
LAYOUT = "one folder of images per class, or train/ and test/ with such folders inside"


@dataclass(frozen=True)
class Layout:
    """What the folders in an image folder mean.

    Args:
        root: the folder, without what only wraps it.
        parts: by ``train``, ``val`` and ``test`` the folder that holds the class folders of a part.
        unused: what is left aside and why, such as ``extra/ ignored``.
    """

    root: Path
    parts: dict[str, Path]
    unused: tuple[str, ...] = ()


def first(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, for a message."""
    return ", ".join(map(plain_name, names[:most])) + (", ..." if len(names) > most else "")


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
    # TGA files have no mark of their own: without their ending anything could be one
    return is_readable(path, [kind for kind in Image.OPEN if kind != "TGA"])


def is_readable(path: str, formats: list[str] | None = None) -> bool:
    """Whether the head of a file is that of an image of some formats, or any."""
    try:
        with Image.open(path, formats=formats):
            return True
    except Exception:  # a decoder can raise almost anything
        return False


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
        _check_inside(root, names)
        return Layout(root, {"train": root})
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
    used = {
        part: names[0] for part, names in zip(PARTS, (trains, tests, vals), strict=True) if names
    }
    unused = [f"{name}/ unused" for name in parts if name not in used.values() and whole[name]]
    unused += [f"{name}/ unused (no class folders)" for name in parts if not whole[name]]
    unused += [f"{name}/ ignored" for name in others]
    return Layout(root, {part: inner[name] for part, name in used.items()}, tuple(unused))


def _check_inside(root: Path, names: Sequence[str]) -> None:
    """Refuse class folders that are each divided, as in ``cat/train``, ``cat/test``."""
    for name in names:
        parts = _parts(subfolders(root / name))
        if {"train"} < set(parts.values()):
            raise DataError(
                f"{first([f'{name}/{part}' for part in parts])} in {root} look like parts of a "
                "split inside of a class: put the parts outside, train/CLASS and test/CLASS, or "
                "rename them"
            )


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
