"""A folder of the user's own images: its classes, which file is for what, and the file of that."""

from __future__ import annotations

import csv
import io
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .data_config import DataConfig, DataError, plain_name
from .folder_layout import (
    LAYOUT,
    PARTS,
    Layout,
    find_layout,
    first,
    is_image,
    is_readable,
    is_visible,
    subfolders,
    walk_files,
)
from .splitting import Listing, Row, Split, digests, hold_out, num_bytes

logger = logging.getLogger(__name__)

HINTS = {".heic": " (pip install 'dsonas[formats]')", ".heif": " (pip install 'dsonas[formats]')"}
ORDER = ("test", "val", "train")  # whose a file is that is in several parts
COLUMNS = {  # of a file of labels, by their usual names
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "name"),
    "label": ("label", "class", "class_name", "category", "target", "species", "y"),
    "part": ("part", "split", "set", "subset"),
}
Classes = dict[str, list[tuple[str, str]]]  # by class its files, and their real paths


@dataclass(frozen=True)
class Contents:
    """The image files of a folder.

    Args:
        root: the folder as given.
        layout: what its folders mean.
        class_names: in the order of the labels.
        parts: files for ``train``, ``val`` (perhaps none) and ``test``; none is in two of them.
        digests: by path, of the content of each file.
        copies: by path, files left out as they are exact copies of others in a part that matters
            more: the other file, and the label.
    """

    root: Path
    layout: Layout
    class_names: tuple[str, ...]
    parts: dict[str, Listing]
    digests: dict[str, str] = field(repr=False)
    copies: dict[str, tuple[str, int]] = field(default_factory=dict)

    def name(self, path: str) -> str:
        """The path of a file in the folder, with slashes, in one line."""
        return plain_name(os.path.relpath(path, self.root).replace(os.sep, "/"))

    def split(self, unreadable: Mapping[str, str]) -> Split:
        """Which file is for what, given why some are unreadable."""
        rows = {}
        files = [
            (path, label, "unreadable" if path in unreadable else part, unreadable.get(path, ""))
            for part, listing in self.parts.items()
            for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
        ]
        files += [
            (path, label, "copy", f"= {self.name(other)}")
            for path, (other, label) in self.copies.items()
        ]
        for path, label, part, reason in files:
            what = self.class_names[label], part, num_bytes(path), reason
            rows[self.name(path)] = Row(*what, self.digests.get(path, ""))
        return Split(rows)

    def describe(self, config: DataConfig) -> str:
        """Say in one line how the folder was understood."""
        place = self.layout.parts["train"]
        inside = place.is_relative_to(self.layout.root) and place != self.layout.root
        train = place.relative_to(self.layout.root) if inside else place.name
        end = "" if place.is_file() else "/"
        said = [
            f"{train}{end} {len(self.class_names)} classes {len(self.parts['train'].paths)} images"
        ]
        for part, share in (("test", config.test), ("val", config.val)):
            use = "test" if part == "test" else "validation"
            if (place := self.layout.parts.get(part)) is not None:
                inside = place.is_relative_to(self.layout.root)
                place = place.relative_to(self.layout.root) if inside else place
                said.append(f"{place}{'' if place.suffix else '/'} used as {use}")
            elif self.parts[part].paths:
                share = f"{100 * share:g} % of the files" if isinstance(share, float) else "files"
                said.append(f"{share} held out as {use}")
        if self.copies:
            said.append(f"{len(self.copies)} copies left out")
        return ", ".join((*said, *self.layout.unused))


def list_contents(config: DataConfig, *, trains: bool = True) -> Contents:
    """List the image files of a folder; what is left out is said in the log.

    Hidden and system folders are skipped. Links are followed; a file that several links lead to is
    taken once. Of a file in two parts, or of exact copies in two parts, the one in the test part
    is taken, then that for validation.

    Args:
        config: its ``root`` is the folder; see ``labels``, ``test`` and ``val``.
        trains: whether the images are to be learned: there must be two classes with images, the
            test part has no others, and where there is no test part one is held out.

    Raises:
        DataError: if the folder is missing or unsuitable, or if it is not clear what its folders
            mean.
    """
    root = config.root
    assert root is not None, "DataConfig demands a path for folders"
    if not root.is_dir():
        raise DataError(f"image folder {root} not found: give the path of {LAYOUT}")
    layout, found = _list_parts(root, config)
    found = {part: found.get(part, {}) for part in ORDER}
    _take_once(found, root)
    present = {part: {name for name in found[part] if found[part][name]} for part in ORDER}
    if trains:
        _check_classes(layout, present)
    names = tuple(sorted(set().union(*present.values())))
    parts = {part: _to_listing(classes, names) for part, classes in found.items()}
    known = _known([path for listing in parts.values() for path in listing.paths])
    begin = layout.parts["train"] if layout.parts["train"].is_dir() else root
    if trains:
        for part, share in (("test", config.test), ("val", config.val)):
            if not parts[part].paths and isinstance(share, float | int) and share:
                held = hold_out(parts["train"], begin, share, part, known)
                parts["train"], parts[part] = held
    return without_copies(Contents(root, layout, names, parts, known))


def _list_parts(root: Path, config: DataConfig) -> tuple[Layout, dict[str, Classes]]:
    """The classes of each part that a folder, its file of labels and the settings name."""
    found: dict[str, Classes] = {}
    if config.labels is None:
        layout = find_layout(root)
    else:
        file = Path(config.labels).expanduser()
        found = _read_labels(file, root)
        layout = Layout(root, dict.fromkeys(found, file))
    parts, unused = dict(layout.parts), list(layout.unused)

    def leave_out(part: str) -> None:
        if found.pop(part, None) is None:
            unused.append(f"{parts[part].relative_to(layout.root)}/ unused")

    if "test" not in parts and "val" in parts and not isinstance(config.test, str):
        parts["test"] = parts.pop("val")
        if "val" in found:
            found["test"] = found.pop("val")
    for part, given in (("test", config.test), ("val", config.val)):
        if part in parts and (given == 0 or isinstance(given, str)):
            leave_out(part)
            del parts[part]
        if isinstance(given, str):
            parts[part], found[part] = _given_part(part, Path(given).expanduser(), root)
    found |= {part: _list_classes(place) for part, place in parts.items() if part not in found}
    return replace(layout, parts=parts, unused=tuple(unused)), found


def _given_part(part: str, place: Path, root: Path) -> tuple[Path, Classes]:
    """A part that the settings name: where its classes are, and what they hold."""
    if place.is_file():
        return place, _merged(_read_labels(place, root))
    if not place.is_dir():
        raise DataError(f"data.{part} {place} not found: give a folder or a file of labels")
    inner = find_layout(place).parts
    folder = inner.get("test", inner["train"])
    return folder, _list_classes(folder)


def list_images(folder: Path) -> list[str]:
    """The image files below a folder, each once; says which other files are left out."""
    reals: dict[str, str] = {}
    others: Counter[str] = Counter()
    for path, real in _image_files(folder, others):
        reals.setdefault(real, path)
    _say_others(folder, others)
    return list(reals.values())


def _image_files(folder: Path, others: Counter[str]) -> Iterator[tuple[str, str]]:
    """The image files below a folder with their real paths; the endings of others are counted."""
    for path, real in walk_files(folder):
        if is_image(path):
            yield path, real
        else:
            others[os.path.splitext(path)[1].lower() or "without an ending"] += 1


def _say_others(folder: Path, others: Counter[str]) -> None:
    if others:
        kinds = [f"{count} {kind}{HINTS.get(kind, '')}" for kind, count in others.most_common()]
        logger.warning("%s: files left out that are no images: %s", folder, first(kinds, 9))


def class_name(name: str) -> str:
    """A class by the name of its folder: in one line, and the same on every system.

    Example:
        >>> len(class_name("cafe" + chr(0x301)))
        4
    """
    return plain_name(unicodedata.normalize("NFC", name))


def _list_classes(folder: Path) -> Classes:
    """The image files of each class folder; says which files are left out."""
    classes: Classes = defaultdict(list)
    others: Counter[str] = Counter()
    for name in subfolders(folder):
        classes[class_name(name)] += _image_files(folder / name, others)
    _say_others(folder, others)
    loose = [entry.name for entry in os.scandir(folder) if entry.is_file() and is_image(entry.path)]
    if loose := sorted(filter(is_visible, loose)):
        told = "%s: %d images beside the class folders left out: %s"
        logger.warning(told, folder, len(loose), first(loose))
    if empty := [name for name, files in classes.items() if not files]:
        told = "%s: %d folders without images ignored: %s"
        logger.warning(told, folder, len(empty), first(empty))
    return dict(classes)


def _merged(parts: Mapping[str, Classes]) -> Classes:
    found: Classes = defaultdict(list)
    for classes in parts.values():
        for name, files in classes.items():
            found[name] += files
    return dict(found)


def _read_labels(file: Path, root: Path) -> dict[str, Classes]:
    """The classes of each part by a file of paths, classes and perhaps parts, with commas or tabs.

    Raises:
        DataError: if it cannot be read, or contradicts itself.
    """
    header, rows = _read_table(file)
    parts: dict[str, Classes] = {}
    seen: dict[str, tuple[str, str]] = {}
    variants = {variant: part for part, names in PARTS.items() for variant in (part, *names)}
    columns = header[:2]
    whole = [row for row in rows if len(row) > max(columns) and all(row[c] for c in columns)]
    if empty := len(rows) - len(whole):
        logger.warning("%s: %d lines without a path or class left out", file, empty)
    for row in whole:
        name, label = row[header[0]], class_name(row[header[1]])
        given = row[header[2]].lower() if len(header) > 2 and len(row) > header[2] else "train"
        if (part := variants.get(given or "train")) is None:
            raise DataError(f"{file}: part must be train, val or test, got {given!r} for {name}")
        path = str(root / name)
        if not os.path.exists(path) and os.path.exists(slashed := path.replace("\\", "/")):
            path = slashed
        real = os.path.realpath(path)
        if seen.setdefault(real, (label, part)) != (label, part):
            raise DataError(f"{file}: {name} has two classes or parts: leave it one of each")
        parts.setdefault(part, defaultdict(list))[label].append((path, real))
    if not parts:
        raise DataError(f"{file} names no image: it must hold lines of path and class")
    unknown = [path for path, real in walk_files(root) if real not in seen and is_image(path)]
    if unknown:
        names = [os.path.relpath(path, root) for path in unknown]
        told = "%s: %d images without a class in %s left out: %s"
        logger.warning(told, root, len(unknown), file.name, first(names))
    return {"train": {}, **parts}


def _read_table(file: Path) -> tuple[list[int], list[list[str]]]:
    """The places of path, class and perhaps part in a line; the lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        mark = max(",;\t", key=text.partition("\n")[0].count)
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=mark)
        ]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"data.labels {file} cannot be read: {reason}") from None
    rows = [row for row in rows if any(row)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    found = [next((head.index(n) for n in names if n in head), None) for names in COLUMNS.values()]
    if found[0] is not None and found[1] is not None:
        return [place for place in found if place is not None], rows[1:]
    if max(map(len, rows), default=0) < 2:
        raise DataError(f"{file} must hold lines of path and class with a comma between them")
    return list(range(min(3, len(head)))), rows


def _take_once(found: dict[str, Classes], root: Path) -> None:
    """Keep one of the paths that lead to a file: the one without links, or in the first part."""
    start, real_root = len(str(root / "x")) - 1, os.path.realpath(root)
    files = [item for part in found.values() for files in part.values() for item in files]
    if len({real for _, real in files}) == len(files):
        return

    def plain(path: str, real: str) -> bool:
        return real == f"{real_root}/{path[start:]}"

    taken: set[str] = set()
    repeated: list[str] = []
    linked_in = {real for path, real in files if plain(path, real)}
    for part in found.values():
        for name, items in part.items():
            kept = []
            for path, real in items:
                if real not in taken and (plain(path, real) or real not in linked_in):
                    kept.append((path, real))
                    taken.add(real)
                else:
                    repeated.append(os.path.relpath(path, root))
            part[name] = kept
    told = "%s: %d files are reached more than once by links and taken once: %s"
    logger.warning(told, root, len(repeated), first(repeated))


def _check_classes(layout: Layout, present: Mapping[str, set[str]]) -> None:
    place, train = layout.parts["train"], present["train"]
    if place.is_dir() and not subfolders(place):
        raise DataError(f"{place} has no class folders: it must hold {LAYOUT}")
    if len(train) < 2:
        raise DataError(f"{place} has {len(train)} classes with images, needs 2: see {LAYOUT}")
    for part in ("test", "val"):
        lacking, unknown = train - present[part], present[part] - train
        other = layout.parts.get(part)
        if unknown or (other is not None and not present[part]):
            raise DataError(
                f"classes of {place} and {other} differ: only in the first "
                f"{sorted(lacking)}, only in the second {sorted(unknown)}: give both the "
                "same folders"
            )
        if lacking and present[part]:
            told = "%s has no images of %d of the %d classes: %s"
            logger.warning(told, other, len(lacking), len(train), first(sorted(lacking)))


def _to_listing(classes: Classes, names: Sequence[str]) -> Listing:
    paths = [[path for path, _ in classes.get(name, ())] for name in names]
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor(list(map(len, paths))).long())
    return Listing(tuple(path for files in paths for path in files), labels)


def _known(paths: Sequence[str]) -> dict[str, str]:
    """The digests of files; nothing for what is repeated, but no image: that is no copy."""
    found = digests(paths)
    counts = Counter(found.values())
    repeated = {digest: path for path, digest in found.items() if counts[digest] > 1}
    no_images = {digest for digest, path in repeated.items() if not is_readable(path)}
    return {path: "" if digest in no_images else digest for path, digest in found.items()}


def without_copies(contents: Contents) -> Contents:
    """Take exact copies of files out of the parts that matter less: no test image is learned.

    Copies within a part stay; those of another class are said.
    """
    labels, kept, copies, contradictions = {}, {}, {}, []
    seen: dict[str, str] = {}
    for part in ORDER:
        listing = contents.parts[part]
        before = dict(seen)
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            labels[path], digest = label, contents.digests[path]
            if not digest:  # a file that cannot be read
                continue
            if digest in before:
                copies[path] = before[digest], label
            other = seen.setdefault(digest, path)
            if labels[other] != label:
                contradictions.append((path, other))
        kept[part] = listing.without(copies)
    told = "%d images are left out of training, as exact copies of test or validation images: %s"
    _say_copies(contents.name, told, [(path, other) for path, (other, _) in copies.items()])
    told = "%d images are exact copies of images of another class: %s"
    _say_copies(contents.name, told, contradictions)
    return replace(contents, parts=kept, copies=copies)


def _say_copies(name: Callable[[str], str], told: str, pairs: Iterable[tuple[str, str]]) -> None:
    if names := [f"{name(path)} = {name(other)}" for path, other in pairs]:
        logger.warning(told, len(names), first(names))
