"""The index of a set of webdataset shards: what is in them, so that lengths are known and exact."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .data_config import DataError

VERSION = 1
INDEX_NAME = "index.json"
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file.

    Args:
        file: its name, beside the index.
        num_bytes: its size.
        labels: class of each image, in the order of the file.
    """

    file: str
    num_bytes: int
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What the shards of one part of a data set hold.

    Args:
        class_names: in the order of the labels.
        shards: the tar files.
        short_side: median of the shorter sides of the images in pixels.
        num_grey: how many of the images are grey.
        statistics: means and standard deviations in units of 0..1, one of each per channel, of
            the images as ``grey`` and as ``rgb``.
        skipped: files that could not be read when the shards were written.

    Example:
        >>> shard = Shard(file="000000.tar", num_bytes=10240, labels=(0, 1, 1))
        >>> one = ((0.5,), (0.25,))
        >>> index = ShardIndex(
        ...     class_names=("cat", "dog"), shards=(shard,), short_side=32, num_grey=3,
        ...     statistics={"grey": one, "rgb": tuple(values * 3 for values in one)},
        ... )
        >>> ShardIndex.from_json(index.to_json(), "index.json") == index, index.num_images
        (True, 3)
    """

    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    short_side: int
    num_grey: int
    statistics: dict[str, tuple[Values, Values]]
    skipped: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """Images in all shards."""
        return sum(len(shard.labels) for shard in self.shards)

    def to_json(self) -> str:
        """The text of the index file, one line for each shard."""
        head = {
            "format": "dsonas-shards",
            "version": VERSION,
            "num_images": self.num_images,
            "class_names": self.class_names,
            "short_side": self.short_side,
            "num_grey": self.num_grey,
            "statistics": self.statistics,
            "skipped": self.skipped,
        }
        lines = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        shards = [json.dumps({**asdict(s), "num_images": len(s.labels)}) for s in self.shards]
        return "{\n" + ",\n".join(lines) + ',\n"shards": [\n' + ",\n".join(shards) + "\n]\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes, place: str) -> ShardIndex:
        """Read the text of an index file.

        Args:
            text: of the file.
            place: where it lies, for errors.

        Raises:
            DataError: if it is not an index, of another version, or contradicts itself.
        """
        try:
            value = json.loads(text)
            _check_version(value, place)
            index = _from_values(value)
            _check(index, value)
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else error
            raise DataError(
                f"{place} is not an index of shards ({reason}): write them again by `dsonas shards`"
            ) from None
        return index


def _check_version(value: Any, place: str) -> None:
    if value.get("format") != "dsonas-shards":
        raise ValueError("format must be 'dsonas-shards'")
    if value["version"] != VERSION:
        raise DataError(
            f"{place} is of version {value['version']}, this dsonas reads version {VERSION}: "
            "write the shards again by `dsonas shards`, or update dsonas"
        )


def _from_values(value: Any) -> ShardIndex:
    return ShardIndex(
        class_names=tuple(map(str, value["class_names"])),
        shards=tuple(_shard(entry) for entry in value["shards"]),
        short_side=int(value["short_side"]),
        num_grey=int(value["num_grey"]),
        statistics={kind: _pair(value["statistics"][kind]) for kind in ("grey", "rgb")},
        skipped=tuple(map(str, value["skipped"])),
    )


def _shard(entry: Any) -> Shard:
    labels = tuple(map(int, entry["labels"]))
    if len(labels) != entry["num_images"]:
        raise ValueError(f"{entry['file']}: {len(labels)} labels, {entry['num_images']} images")
    file = str(entry["file"])
    if not re.fullmatch(r"\w[\w.-]*", file, re.ASCII):  # it becomes a part of URLs and commands
        raise ValueError(f"{file!r} must be a file name of letters, digits, dots and dashes")
    return Shard(file=file, num_bytes=int(entry["num_bytes"]), labels=labels)


def _pair(values: Sequence[Sequence[float]]) -> tuple[Values, Values]:
    mean, std = (tuple(map(float, row)) for row in values)
    if len(mean) != len(std) or not all(0 <= m <= 1 for m in mean) or not all(s > 0 for s in std):
        raise ValueError("means must be in 0..1 and deviations above 0")
    return mean, std


def _check(index: ShardIndex, value: Any) -> None:
    num_classes = len(index.class_names)
    if num_classes < 2:
        raise ValueError(f"{num_classes} classes, needs 2")
    if index.num_images != value["num_images"] or index.num_images == 0:
        raise ValueError(f"{index.num_images} labels, {value['num_images']} images")
    if len({shard.file for shard in index.shards}) != len(index.shards):
        raise ValueError("a shard is named twice")
    if not all(shard.labels and min(shard.labels) >= 0 for shard in index.shards):
        raise ValueError("every shard must have images, with labels of at least 0")
    if max(max(shard.labels) for shard in index.shards) >= num_classes:
        raise ValueError(f"labels must be below the {num_classes} classes")
    if [len(index.statistics[kind][0]) for kind in ("grey", "rgb")] != [1, 3]:
        raise ValueError("statistics must have 1 and 3 channels")
    if index.short_side < 1:
        raise ValueError("short_side must be at least 1")
