"""Which image is for what: stratified choices, hashes of paths, and the file that says it."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dsonas._utils import csv_text, derive_seed

from .data_config import DataError
from .file_facts import told_by_files
from .folder_layout import first

IGNORED = "ignored"


def class_quotas(counts: Tensor, total: int) -> Tensor:
    """Share ``total`` out among classes in proportion to their counts (largest remainders).

    Every class that has images gets at least one if ``total`` allows, at the cost of the largest.
    None gets more than its count, so ``total`` is at most their sum.
    """
    num_images = max(1, int(counts.sum()))
    quotas = total * counts // num_images
    by_remainder = torch.argsort(total * counts % num_images, descending=True, stable=True)
    quotas[by_remainder[: total - int(quotas.sum())]] += 1
    if total >= int((counts > 0).sum()):
        starved = (counts > 0) & (quotas == 0)
        quotas += starved
        for _ in range(int(starved.sum())):
            quotas[quotas.argmax()] -= 1
    return quotas


def stratified_choice(labels: Tensor, total: int, seed: int) -> Tensor:
    """Choose ``total`` images at random, the classes in proportion: a bool for each.

    A pure function of labels (the class of each image), total and seed.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "stratified"))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    sorted_labels = labels[by_class]
    rank_in_class = torch.arange(len(labels)) - starts[sorted_labels]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class] = rank_in_class < class_quotas(counts, total)[sorted_labels]
    return chosen


@dataclass(frozen=True)
class Listing:
    """Image files and their classes, before anything is known about the images."""

    paths: tuple[str, ...]  # of the files
    labels: Tensor  # int64 tensor, class of each file

    def where(self, chosen: Tensor) -> Listing:
        """Those for which a bool tensor is true."""
        paths = zip(self.paths, chosen.tolist(), strict=True)
        return Listing(tuple(path for path, keep in paths if keep), self.labels[chosen])

    def without(self, paths: Container[str]) -> Listing:
        """Those that are not among some paths."""
        return self.where(torch.tensor([path not in paths for path in self.paths]).bool())

    def sample(self, num_images: int | None, seed: int) -> Listing:
        """A stratified subset; see ``ImageSet.sample``."""
        if num_images is None or num_images >= len(self.paths):
            return self
        return self.where(stratified_choice(self.labels, num_images, seed))


class Row(NamedTuple):
    """What ``split.csv`` says of a file."""

    label: str
    part: str  # train, val, test, copy (of a file in another part), unreadable or ignored
    num_bytes: int
    reason: str = ""  # why it is unreadable, or of what it is a copy
    digest: str = ""  # of its content; older files have none


@dataclass(frozen=True)
class Split:
    """Which files of an image folder are for what; a run keeps it as ``split.csv``."""

    rows: dict[str, Row] = field(repr=False)  # by the path of each file in the folder
    # why other files are not used, by their paths; they make no difference
    ignored: dict[str, str] = field(default_factory=dict, repr=False)

    def to_csv(self, *, ignored: bool = True) -> str:
        """Write the split as text, with the files that are not used or without them."""
        rows = dict(self.rows)
        if ignored:
            rows |= {name: Row("", IGNORED, 0, reason) for name, reason in self.ignored.items()}
        head = ("path", "class", "part", "bytes", "reason", "digest")
        return csv_text([head, *((path, *row) for path, row in sorted(rows.items()))])

    @classmethod
    def from_csv(cls, text: str) -> Split:
        """Read what ``to_csv`` wrote; a DataError if it is anything else."""
        try:
            found = list(csv.reader(io.StringIO(text)))[1:]
            if any(len(row) not in (5, 6) for row in found):
                raise ValueError("a line has too many values or too few")
            rows = {path: Row(a, b, int(c), *more) for path, a, b, c, *more in found}
            unused = {path: row.reason for path, row in rows.items() if row.part == IGNORED}
            return cls({p: row for p, row in rows.items() if p not in unused}, unused)
        except (ValueError, csv.Error) as error:
            raise DataError(f"split.csv is damaged ({error}): train the run again") from None

    def part(self, name: str) -> set[str]:
        """The paths of the files of a part."""
        return {path for path, row in self.rows.items() if row.part == name}

    def changes(self, now: Split) -> str:
        """Say in one line what differs in another split of the folder; nothing if they are equal.

        Example:
            >>> before = Split({"cat/1.png": Row("cat", "train", 9)})
            >>> before.changes(Split({"dog/1.png": Row("dog", "train", 9)}))
            'classes gone: cat; classes new: dog; 1 files gone: cat/1.png; 1 files new: dog/1.png'
        """
        classes, others = ({row.label for row in split.rows.values()} for split in (self, now))
        old, new = self.rows, now.rows
        changed = [path for path in sorted(old.keys() & new.keys()) if old[path] != new[path]]
        gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        files = {"gone": gone, "new": added, "changed": changed}
        said = [
            f"classes {word}: {', '.join(sorted(names))}"
            for word, names in (("gone", classes - others), ("new", others - classes))
            if names
        ]
        said += [f"{len(them)} files {word}: {first(them)}" for word, them in files.items() if them]
        return "; ".join(said)


def hold_out(
    listing: Listing, folder: Path, fraction: float, part: str, digests: Mapping[str, str]
) -> tuple[Listing, Listing]:
    """Divide by a hash of each path, so that a file stays where it is when others come and go.

    Exact copies stay together. Of every class with two different files at least one is held out
    and one is not.

    Args:
        listing: what to divide.
        folder: where the paths begin.
        fraction: share that is held out, in (0, 1).
        part: for what, ``test`` or ``val``: each has hashes of its own.
        digests: of the content of each file, by path; nothing if it is unreadable.

    Returns what is left, and what is held out; a DataError if that would be nothing.
    """
    salt = "" if part == "test" else f"{part}:"
    contents = [digests[path] or path for path in listing.paths]
    draws: dict[str, float] = {}
    for path, content in zip(listing.paths, contents, strict=True):
        draw = _draw(salt + os.path.relpath(path, folder))
        draws[content] = min(draw, draws.get(content, 1.0))
    held = {content for content, draw in draws.items() if draw < fraction}
    classes: dict[int, set[str]] = {}
    for content, label in zip(contents, listing.labels.tolist(), strict=True):
        classes.setdefault(label, set()).add(content)
    for own in classes.values():
        ranked = sorted(own, key=draws.__getitem__)
        if len(own) > 1 and not own & held:
            held.add(ranked[0])
        if own <= held:
            held.remove(ranked[-1])
    chosen = torch.tensor([content in held for content in contents])
    if not chosen.any():
        raise DataError(
            f"data.{part} {fraction} of {len(chosen)} images, one in each class or all alike, "
            f"leaves no {part} image: use more images"
        )
    return listing.where(~chosen), listing.where(chosen)


def _draw(name: str) -> float:
    """A number in [0, 1) that depends on a path alone, the same on every system."""
    text = unicodedata.normalize("NFC", name.replace(os.sep, "/"))
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def num_bytes(path: str) -> int:
    """The size of a file; 0 if it cannot be seen, as behind a broken link."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def digests(paths: Sequence[str]) -> dict[str, str]:
    """What tells the content of files, by path: a hash; nothing for one that cannot be read."""
    return dict.fromkeys(paths, "") | told_by_files("content", paths, _digest)


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256")
            size = file.tell()
    except OSError:
        return None
    found.update(str(size).encode())
    return found.hexdigest()[:32] if size else None
