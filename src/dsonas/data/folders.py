"""A folder of the user's own images: its classes, which file is for what, and the file of that."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from .data_config import DataConfig, DataError, plain_name
from .folder_layout import (
    LAYOUT,
    Layout,
    class_name,
    find_layout,
    first,
    is_image,
    is_readable,
    loose_images,
    say,
    subfolders,
    walk_files,
)
from .label_files import Classes, read_labels
from .splitting import Listing, Row, Split, digests, hold_out, num_bytes

logger = logging.getLogger(__name__)

HINTS = {".heic": " (pip install 'dsonas[formats]')", ".heif": " (pip install 'dsonas[formats]')"}
ORDER = ("test", "val", "train")  # whose a file is that is in several parts


@dataclass(frozen=True)
class Contents:
    """The image files of a folder."""

    root: Path  # the folder as given
    layout: Layout  # what its folders mean
    class_names: tuple[str, ...]  # in the order of the labels
    # files for ``train``, ``val`` (perhaps none) and ``test``; none is in two of them
    parts: dict[str, Listing]
    digests: dict[str, str] = field(repr=False)  # by path, of the content of each file
    # by path, files left out as they are exact copies of others in a part that matters more: the
    # other file, and the label
    copies: dict[str, tuple[str, int]] = field(default_factory=dict)
    # by path, files that are not used, and why
    ignored: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _start(self) -> str:
        return os.path.join(os.path.abspath(self.root), "")

    def name(self, path: str) -> str:
        """The path of a file in the folder, with slashes, in one line."""
        whole, start = os.path.abspath(path), self._start
        inside = whole.startswith(start)
        name = whole[len(start) :] if inside else os.path.relpath(whole, start)
        return plain_name(name.replace(os.sep, "/"))

    def named(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """Something about files by their names instead of their paths."""
        return {self.name(path): reason for path, reason in reasons.items()}

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
        return Split(rows, self.named(self.ignored))

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
        return plain_name(", ".join((*said, *self.layout.unused)))


def list_contents(config: DataConfig, *, trains: bool = True) -> Contents:
    """List the image files of a folder; what is left out is said in the log.

    Hidden and system folders are skipped. Links are followed; a file that several links lead to is
    taken once. Of a file in two parts, or of exact copies in two parts, the one in the test part
    is taken, then that for validation.

    If the folder ``trains``, its images are to be learned: there must be two classes with images,
    the test part has no others, and where there is no test part one is held out. A DataError if
    the folder is missing or unsuitable, or it is not clear what its folders mean.
    """
    root = config.root
    assert root is not None, "DataConfig demands a path for folders"
    if not root.is_dir():
        what = "is no folder" if root.exists() else "not found"
        raise DataError(f"image folder {root} {what}: give the path of {LAYOUT}")
    ignored: dict[str, str] = {}
    layout, found = _list_parts(root, config, ignored)
    found = {part: found.get(part, {}) for part in ORDER}
    given = {part for part, classes in found.items() if any(classes.values())}
    _take_once(found, root, ignored)
    present = {part: {name for name in found[part] if found[part][name]} for part in ORDER}
    if trains:
        _check_classes(layout, present, given)
    names = tuple(sorted(set().union(*present.values())))
    _say_alike(names)
    parts = {part: _to_listing(classes, names) for part, classes in found.items()}
    known = _known([path for listing in parts.values() for path in listing.paths])
    begin = layout.parts["train"] if layout.parts["train"].is_dir() else root
    if trains:
        for part, share in (("test", config.test), ("val", config.val)):
            if not parts[part].paths and isinstance(share, float | int) and share:
                held = hold_out(parts["train"], begin, share, part, known)
                parts["train"], parts[part] = held
                _say_not_held_out(part, held, names)
    return without_copies(Contents(root, layout, names, parts, known, ignored=ignored))


def _list_parts(
    root: Path, config: DataConfig, ignored: dict[str, str]
) -> tuple[Layout, dict[str, Classes]]:
    """The classes of each part that a folder, its file of labels and the settings name."""
    found: dict[str, Classes] = {}
    given = {"test": config.test, "val": config.val}
    elsewhere = {
        part: Path(os.path.expanduser(x)) for part, x in given.items() if isinstance(x, str)
    }
    aside = {os.path.realpath(place) for place in elsewhere.values()}
    if config.labels is None:
        layout = find_layout(root, aside)
    else:
        file = Path(os.path.expanduser(config.labels))
        found = read_labels(file, root)
        layout = Layout(root, dict.fromkeys(found, file))
    parts, unused = dict(layout.parts), list(layout.unused)
    if "test" not in parts and "val" in parts and "test" not in elsewhere:
        parts["test"] = parts.pop("val")
        if "val" in found:
            found["test"] = found.pop("val")
    for part in given:
        if part in parts and (given[part] == 0 or part in elsewhere):
            place = parts.pop(part)
            if found.pop(part, None) is None:
                unused.append(f"{place.relative_to(layout.root)}/ unused")
        if part in elsewhere:
            parts[part], found[part] = _given_part(part, elsewhere[part], root, ignored)
    for part, place in parts.items():
        if part not in found:
            found[part] = _list_classes(place, ignored, aside)
    _leave_out_rest(root, config, parts, found, ignored)
    return replace(layout, parts=parts, unused=tuple(unused)), found


def _leave_out_rest(
    root: Path,
    config: DataConfig,
    parts: Mapping[str, Path],
    found: Mapping[str, Classes],
    ignored: dict[str, str],
) -> None:
    """Say which images are in no part: those that a file of labels lacks, or beside the parts."""
    if config.labels is None:
        above = {folder for place in parts.values() for folder in place.parents}
        for folder in sorted(above - {*parts.values()}):
            if folder.is_relative_to(root):
                _leave_out_loose(folder, ignored)
        return
    file = os.path.basename(config.labels)
    known = {real for part in found.values() for files in part.values() for _, real in files}
    unknown = [path for path, real in walk_files(root) if real not in known and is_image(path)]
    names = [os.path.relpath(path, root) for path in unknown]
    if names:
        told = "%s: %d images without a class in %s left out: %s"
        logger.warning(told, root, len(names), file, first(names))
    ignored |= dict.fromkeys(unknown, f"no class in {file}")


def _given_part(
    part: str, place: Path, root: Path, ignored: dict[str, str]
) -> tuple[Path, Classes]:
    """A part that the settings name: where its classes are, and what they hold."""
    if place.is_file():
        classes: Classes = defaultdict(list)
        for some in read_labels(place, root).values():
            for name, files in some.items():
                classes[name] += files
        return place, classes
    if not place.is_dir():
        raise DataError(
            f"data.{part} {place} not found: give a folder, a file of labels, or 0.2, say"
        )
    inner = find_layout(place).parts
    folder = inner.get("test", inner["train"])
    return folder, _list_classes(folder, ignored)


def list_images(folder: Path) -> list[str]:
    """The image files below a folder, each once; says which other files are left out."""
    reals: dict[str, str] = {}
    others: dict[str, str] = {}
    for path, real in _image_files(folder, others):
        reals.setdefault(real, path)
    _say_others(folder, others)
    return list(reals.values())


def _image_files(folder: Path, others: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The image files below a folder with their real paths; other files are noted."""
    for path, real in walk_files(folder):
        if is_image(path):
            yield path, real
        else:
            others[path] = "no image"


def _say_others(folder: Path, others: Iterable[str]) -> None:
    endings = (os.path.splitext(path)[1].lower() or "without an ending" for path in others)
    if counts := Counter(endings).most_common():
        kinds = [f"{count} {kind}{HINTS.get(kind, '')}" for kind, count in counts]
        logger.warning("%s: files left out that are no images: %s", folder, first(kinds, 9))


def _list_classes(folder: Path, ignored: dict[str, str], aside: Collection[str] = ()) -> Classes:
    """The image files of each class folder; says which files are left out."""
    classes: Classes = defaultdict(list)
    others: dict[str, str] = {}
    for name in subfolders(folder, aside):
        classes[class_name(name)] += _image_files(folder / name, others)
    _say_others(folder, others)
    ignored |= others
    _leave_out_loose(folder, ignored)
    empty = [name for name, files in classes.items() if not files]
    say("%s: %d folders without images ignored: %s", empty, folder)
    return classes


def _leave_out_loose(folder: Path, ignored: dict[str, str]) -> None:
    loose = loose_images(folder)
    names = [os.path.basename(path) for path in loose]
    say("%s: %d images beside the class folders left out: %s", names, folder)
    ignored |= dict.fromkeys(loose, "beside the class folders")


def _say_not_held_out(part: str, held: tuple[Listing, Listing], names: Sequence[str]) -> None:
    left, chosen = (set(listing.labels.tolist()) for listing in held)
    if lacking := [name for at, name in enumerate(names) if at in left - chosen]:
        told = "%d classes are too small for a %s image: %s"
        logger.warning(told, len(lacking), part, first(lacking))


def _take_once(found: dict[str, Classes], root: Path, ignored: dict[str, str]) -> None:
    """Keep one of the paths that lead to a file: the one without links, or in the first part."""
    start, real_root = len(str(root / "x")) - 1, os.path.realpath(root)
    files = [item for part in found.values() for files in part.values() for item in files]
    if len({real for _, real in files}) == len(files):
        return

    def plain(path: str, real: str) -> bool:
        return real == f"{real_root}/{path[start:]}"

    taken: dict[str, str] = {}
    repeated: dict[str, str] = {}
    linked_in = {real for path, real in files if plain(path, real)}
    for part in found.values():
        for name, items in part.items():
            kept = []
            for path, real in items:
                if real not in taken and (plain(path, real) or real not in linked_in):
                    kept.append((path, real))
                    taken[real] = path
                else:
                    repeated[path] = real
            part[name] = kept
    names = [os.path.relpath(path, root) for path in repeated]
    say("%s: %d files are linked or named more than once and taken once: %s", names, root)
    ignored |= {path: f"the file is {taken[real]}" for path, real in repeated.items()
                if path != taken[real]}  # fmt: skip


def _say_alike(names: Sequence[str]) -> None:
    alike = defaultdict(list)
    for name in names:
        alike[re.sub(r"[\s_-]+", " ", name.casefold()).strip()].append(name)
    for group in alike.values():
        if len(group) > 1:
            told = "classes %s differ in case, spaces or dashes alone: if they are one, merge them"
            logger.warning(told, ", ".join(map(repr, group)))


def _check_classes(layout: Layout, present: Mapping[str, set[str]], given: Collection[str]) -> None:
    place, train = layout.parts["train"], present["train"]
    if "train" in given and not train:
        others = [str(layout.parts[part]) for part in ("test", "val") if part in layout.parts]
        raise DataError(
            f"all images of {place} are those of {' and '.join(others)} too: give each part "
            "images of its own"
        )
    if place.is_dir() and not subfolders(place):
        raise DataError(f"{place} has no class folders: it must hold {LAYOUT}")
    if len(train) < 2:
        raise DataError(f"{place} has {len(train)} classes with images, needs 2: see {LAYOUT}")
    for part in ("test", "val"):
        lacking, unknown = train - present[part], present[part] - train
        other = layout.parts.get(part)
        if other is not None and not present[part]:
            why = "no images in class folders" if part not in given else "those of another part"
            raise DataError(
                f"{other} must hold {part} images of the classes of {place}, but has {why}: give "
                f"it such, or remove it; data.{part} 0.1 holds out a tenth"
            )
        if unknown:
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
    told = {
        "left out of training, as exact copies of test or validation images":
            [(path, other) for path, (other, _) in copies.items()],
        "exact copies of images of another class": contradictions,
    }  # fmt: skip
    for what, pairs in told.items():
        names = [f"{contents.name(path)} = {contents.name(other)}" for path, other in pairs]
        say(f"%d images are {what}: %s", names)
    return replace(contents, parts=kept, copies=copies)
