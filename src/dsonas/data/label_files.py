"""Files of labels: image files and their classes as a table, in place of class folders."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .data_config import DataError
from .folder_layout import PARTS, class_name, first, image_extensions

logger = logging.getLogger(__name__)

COLUMNS = {  # of a file of labels, by their usual names
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "name",
             "id", "image_id"),
    "label": ("label", "class", "class_name", "category", "target", "species", "y"),
    "part": ("part", "split", "set", "subset"),
}  # fmt: skip
Classes = dict[str, list[tuple[str, str]]]  # by class its files, and their real paths


def read_labels(file: Path, root: Path) -> dict[str, Classes]:
    """The classes of each part by a file of paths in ``root``, classes and perhaps parts.

    Commas, tabs or semicolons are between them; lines without a part are of the training part. A
    DataError if it cannot be read, names no file that is there, or contradicts itself.
    """
    whole = _whole_lines(file, root)
    parts: dict[str, Classes] = {}
    seen: dict[str, tuple[str, str]] = {}
    variants = {variant: part for part, names in PARTS.items() for variant in (part, *names)}
    for name, label, *given in whole:
        word = (given[0] if given else "").lower() or "train"
        if (part := variants.get(word)) is None:
            raise DataError(f"{file}: part must be train, val or test, got {word!r} for {name}")
        path = _place(root, name)
        real, known = os.path.realpath(path), (class_name(label), part)
        if real in seen and seen[real] != known:
            raise DataError(f"{file}: {name} has two classes or parts: leave it one of each")
        if real not in seen:
            parts.setdefault(part, defaultdict(list))[known[0]].append((path, real))
        seen[real] = known
    if not seen:
        raise DataError(f"{file} names no image: it must hold lines of path and class")
    if not any(map(os.path.exists, seen)):
        raise DataError(
            f"none of the {len(seen)} files that {file} names is in {root}, the first is "
            f"{whole[0][0]}: paths begin in the folder of data.name and have their endings"
        )
    for classes in parts.values():
        for files in classes.values():
            files.sort()  # the order of the lines makes no difference
    return {"train": {}, **parts}


def _whole_lines(file: Path, root: Path) -> list[list[str]]:
    """Path, class and perhaps part of each line that has the first two."""
    columns, rows = _read_table(file, root)
    lines = [[row[c] if c < len(row) else "" for c in columns] for row in rows]
    whole = [line for line in lines if line[0] and line[1]]
    for line in whole:
        if "\n" in "".join(line):
            raise DataError(f"{file}: a quotation mark is not closed before {first(line)}")
    if empty := len(lines) - len(whole):
        logger.warning("%s: %d lines without a path or class left out", file, empty)
    return whole


def _place(root: Path, name: str) -> str:
    """The path of a file that a table names, perhaps as Windows does."""
    path = str(root / name)
    slashed = str(root / name.replace("\\", "/"))
    return slashed if not os.path.exists(path) and os.path.exists(slashed) else path


def _read_table(file: Path, root: Path) -> tuple[Sequence[int], list[list[str]]]:
    """The places of path, class and perhaps part in a line; the lines."""
    try:
        content = file.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if "\0" in text:
            raise ValueError("it has zero bytes")
        while text.startswith("#") and not set(",;\t") & set(text.partition("\n")[0]):
            text = text.partition("\n")[2]
        mark = max(",;\t", key=text.partition("\n")[0].count)
        found = csv.reader(io.StringIO(text), delimiter=mark, skipinitialspace=True)
        rows = [[cell.strip() for cell in row] for row in found]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read ({reason}): give a CSV file in UTF-8") from None
    rows = [row for row in rows if any(row)]
    if max(map(len, rows), default=0) < 2:
        raise DataError(f"{file} must hold lines of path and class with a comma between them")
    head = [cell.lower() for cell in rows[0]]
    known = {what: next((head.index(n) for n in names if n in head), None)
             for what, names in COLUMNS.items()}  # fmt: skip
    if known["path"] is not None and known["label"] is not None:
        return [place for place in known.values() if place is not None], rows[1:]
    is_file = [
        os.path.splitext(cell)[1].lower() in image_extensions()
        or os.path.isfile(_place(root, cell))
        for cell in rows[0]
    ]
    if any(is_file):  # no header
        first_two = (1, 0) if is_file[:2] == [False, True] else (0, 1)
        return (*first_two, *range(2, min(3, len(head)))), rows
    if len(head) != 2:
        raise DataError(
            f"{file}: its first line must name the columns path and label, got {first(rows[0], 9)}"
        )
    logger.warning("%s: its first line is taken for the columns' names: %s", file, first(rows[0]))
    return ((1, 0) if known["path"] == 1 or known["label"] == 0 else (0, 1)), rows[1:]
