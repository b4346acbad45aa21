"""What a folder of images holds, found without training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .data_config import DataConfig
from .decoding import ImageHeader
from .folder_images import choose_image_size, scan
from .folders import Contents, list_contents
from .images import KeptWarnings
from .loading import SKEWED

LONG = 1.5  # longer side over shorter, from which cutting out a square loses much
THREADS = 4


@dataclass(frozen=True, kw_only=True)
class FolderCheck:
    """What a folder of images holds."""

    layout: str  # how its folders are understood, in one line
    class_names: tuple[str, ...]  # in order
    # by ``train``, ``val`` and ``test`` the readable images of each class
    counts: dict[str, dict[str, int]]
    # by ``width``, ``height`` least, median and largest in pixels; ``long``: how many images are
    # more than half as long again as wide, or the other way round
    sizes: dict[str, Any]
    grey: int  # grey images
    image_size: int  # side of the squares that a run would use, in pixels
    unreadable: dict[str, str]  # files that cannot be read, and why
    ignored: dict[str, str]  # files that are not used, and why
    copies: dict[str, str]  # files with the same content as another, and which that is
    notes: list[str]  # what a run would warn of
    proposed: dict[str, str]  # settings that suit the folder and are not the defaults

    @property
    def num_images(self) -> int:
        """All readable images."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    def describe_images(self) -> str:
        """Number, sizes and colours in one line."""
        width, height = self.sizes["width"], self.sizes["height"]
        return (
            f"{self.num_images}, {width[0]}x{height[0]} to {width[2]}x{height[2]} pixels, median "
            f"{width[1]}x{height[1]}, {self.sizes['long']} of long shape; {self.grey} grey, "
            f"{self.num_images - self.grey} in colour"
        )

    def to_json(self) -> dict[str, Any]:
        """All values, as JSON can hold them."""
        return {**asdict(self), "images": self.num_images}


def check_folder(config: DataConfig) -> FolderCheck:
    """Look at all images of the folder ``config.root``, as a run would.

    Raises:
        DataError: if the folder is unsuitable.
    """
    with _heard() as heard:
        contents = list_contents(config)
    headers: dict[str, ImageHeader] = {}
    unreadable: dict[str, str] = {}
    for listing in contents.parts.values():
        found, bad = scan(listing, max(THREADS, config.workers), complete=True)
        headers |= found
        unreadable |= bad
    counts = {part: _by_class(contents, part, headers) for part in ("train", "val", "test")}
    heads = [headers[path] for path in contents.parts["train"].paths if path in headers]
    size = config.image_size or choose_image_size([head.short_side for head in heads] or [32])
    widths, heights = ([getattr(head, side) for head in headers.values()] or [0]
                       for side in ("width", "height"))  # fmt: skip
    long = sum(max(h.width, h.height) > LONG * h.short_side for h in headers.values())
    train = [counts["train"].get(name, 0) for name in contents.class_names]
    notes, proposed = [text for _, text in heard.taken()], {}
    if several := sum(head.several for head in headers.values()):
        notes.append(f"{several} files hold several images, of which the first is used")
    if 10 * long > len(headers) and config.fit == "crop":
        proposed["data.fit"] = "pad"
    if max(train) >= SKEWED * min(train):
        proposed["data.balance"] = "true"
    return FolderCheck(
        layout=contents.describe(config),
        class_names=contents.class_names,
        counts=counts,
        sizes={
            "width": [min(widths), int(median(widths)), max(widths)],
            "height": [min(heights), int(median(heights)), max(heights)],
            "long": long,
        },
        grey=sum(head.grey for head in headers.values()),
        image_size=size,
        unreadable=contents.named(unreadable),
        ignored=contents.named(contents.ignored),
        copies=_copies(contents),
        notes=notes,
        proposed={"data.image_size": str(size), **proposed},
    )


def _by_class(contents: Contents, part: str, headers: dict[str, ImageHeader]) -> dict[str, int]:
    listing = contents.parts[part]
    files = zip(listing.paths, listing.labels.tolist(), strict=True)
    return dict(Counter(contents.class_names[label] for path, label in files if path in headers))


def _copies(contents: Contents) -> dict[str, str]:
    """Every file whose content another has: those left out, and those within a part."""
    found, seen = {path: other for path, (other, _) in contents.copies.items()}, {}
    for listing in contents.parts.values():
        for path in listing.paths:
            digest = contents.digests[path]
            if digest and (other := seen.setdefault(digest, path)) != path:
                found[path] = other
    return {contents.name(path): contents.name(other) for path, other in found.items()}


@contextmanager
def _heard() -> Iterator[KeptWarnings]:
    """Keep what is warned of, instead of printing it."""
    logger, kept = logging.getLogger(__package__), KeptWarnings()
    before = logger.propagate
    logger.addHandler(kept)
    logger.propagate = False
    try:
        yield kept
    finally:
        logger.removeHandler(kept)
        logger.propagate = before
