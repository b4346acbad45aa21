"""Architecture as data: which connections, operations and channels a network has.

The complete supernet, a half-pruned one and the final network are values of one type. This module
needs the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsonas.graph.block import BlockGraph
from dsonas.graph.jsonvalues import (
    ArchitectureError,
    read_integer,
    read_list,
    read_mapping,
    read_names,
    read_numbers,
    shorten,
)

FORMAT = "dsonas-architecture"
VERSION = 1
MAX_NUMBER = 2**31 - 1  # of a skeleton; products of two still are 64-bit numbers
MAX_FILE_NODES = 1000  # of a block in a file, so that a wrong number is refused, not allocated
REDUCTION_OPERATIONS = ("conv1x1", "conv3x3")
STEMS = ("cifar", "imagenet")
SHARINGS = ("share", "full")
Place = tuple[int, int]
"""One of ``Architecture.cells`` and in it a node, or a connection's number in packed order."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What surrounds the blocks: stem, stages, channels, head.

    Args:
        stem: ``cifar`` (one 3x3 convolution) or ``imagenet`` (two of stride 2).
        input_channels: channels of an image, >= 1.
        image_size: height and width of an image in pixels, >= 1.
        num_classes: >= 2.
        blocks: blocks in each stage; a reduction block stands between two stages.
        channels: channels of each stage, >= 1.

    Raises:
        ArchitectureError: if a value breaks its rule.

    Example:
        >>> skeleton = Skeleton(blocks=(1, 2), channels=(8, 16))
        >>> skeleton.num_blocks, skeleton.block_stages
        (3, (0, 1, 1))
    """

    stem: str = "cifar"
    input_channels: int = 3
    image_size: int = 32
    num_classes: int = 10
    blocks: tuple[int, ...] = (8, 8, 8)
    channels: tuple[int, ...] = (48, 96, 192)

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ArchitectureError(f"stem must be one of {STEMS}, got {self.stem!r}")
        for name, least in (("input_channels", 1), ("image_size", 1), ("num_classes", 2)):
            if getattr(self, name) < least:
                raise ArchitectureError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("input_channels", "image_size", "num_classes", "blocks", "channels"):
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,), default=0) > MAX_NUMBER:
                raise ArchitectureError(f"{name} must be <= {MAX_NUMBER}, got {shorten(value)}")
        if not self.blocks or min(self.blocks) < 1:
            raise ArchitectureError(f"blocks must be numbers >= 1, got {self.blocks}")
        if len(self.channels) != len(self.blocks) or min(self.channels) < 1:
            raise ArchitectureError(
                f"channels must hold a number >= 1 for each of the {len(self.blocks)} stages, "
                f"got {self.channels}"
            )

    @property
    def num_blocks(self) -> int:
        """Blocks in all stages together."""
        return sum(self.blocks)

    @property
    def block_stages(self) -> tuple[int, ...]:
        """The stage, from 0, of each block."""
        return tuple(s for s, count in enumerate(self.blocks) for _ in range(count))

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Height and width of the features of each stage, in pixels."""
        size = self.image_size
        for _ in range(2 if self.stem == "imagenet" else 0):
            size = (size + 1) // 2
        sizes = [size]
        for _ in self.blocks[1:]:
            sizes.append((sizes[-1] + 1) // 2)
        return tuple(sizes)


@dataclass(frozen=True)
class Architecture:
    """A whole network as data.

    Args:
        skeleton: stem, stages, channels and head.
        blocks: a graph for each block, stage after stage, all of the same operations and levels.
        reductions: for each reduction block, which of its 1x1 and 3x3 convolution are live.
        sharing: ``share`` if all blocks have, and keep, one structure; ``full`` if each its own.

    Raises:
        ArchitectureError: if the numbers of blocks or reductions do not fit the skeleton, or
            blocks that share a structure differ.

    Example:
        >>> skeleton = Skeleton(blocks=(1, 1), channels=(8, 16))
        >>> net = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 2)
        >>> Architecture.from_json(net.to_json()) == net
        True
    """

    skeleton: Skeleton
    blocks: tuple[BlockGraph, ...]
    reductions: tuple[tuple[bool, ...], ...]
    sharing: str = "full"

    def __post_init__(self) -> None:
        if len(self.blocks) != self.skeleton.num_blocks:
            raise ArchitectureError(
                f"blocks must hold {self.skeleton.num_blocks} graphs, got {len(self.blocks)}"
            )
        if len({(graph.operations, graph.num_levels) for graph in self.blocks}) != 1:
            raise ArchitectureError("all blocks must have the same operations and levels")
        if self.sharing not in SHARINGS:
            raise ArchitectureError(f"sharing must be one of {SHARINGS}, got {self.sharing!r}")
        if self.sharing == "share" and len(set(self.blocks)) != 1:
            raise ArchitectureError("blocks that share a structure must be equal")
        if len(self.reductions) != len(self.skeleton.blocks) - 1:
            raise ArchitectureError(
                f"reductions must hold {len(self.skeleton.blocks) - 1} entries, "
                f"got {len(self.reductions)}"
            )
        for flags in self.reductions:
            if len(flags) != len(REDUCTION_OPERATIONS) or not any(flags):
                raise ArchitectureError(
                    "a reduction block keeps at least one of its "
                    f"{len(REDUCTION_OPERATIONS)} convolutions, got {flags}"
                )

    @classmethod
    def complete(
        cls, skeleton: Skeleton, operations: Sequence[str], num_levels: int, sharing: str = "full"
    ) -> Architecture:
        """Make the architecture in which every connection is live."""
        graph = BlockGraph.complete(operations, num_levels)
        reductions = ((True,) * len(REDUCTION_OPERATIONS),) * (len(skeleton.blocks) - 1)
        return cls(skeleton, (graph,) * skeleton.num_blocks, reductions, sharing)

    @property
    def cells(self) -> tuple[BlockGraph, ...]:
        """The structures that can differ: one for all blocks (share), or one for each (full)."""
        return self.blocks[:1] if self.sharing == "share" else self.blocks

    def with_cells(self, cells: Iterable[BlockGraph]) -> Architecture:
        """Return the architecture with other structures, one for each of ``cells``."""
        blocks = tuple(cells)
        if self.sharing == "share":
            blocks *= self.skeleton.num_blocks
        return replace(self, blocks=blocks)

    def with_cell(self, place: int, graph: BlockGraph) -> Architecture:
        """Return the architecture with another structure in one of ``cells``."""
        return self.with_cells(graph if i == place else old for i, old in enumerate(self.cells))

    def operation_places(self) -> list[Place]:
        """List every kept operation."""
        return [(i, node) for i, cell in enumerate(self.cells) for node in cell.kept_nodes]

    def connection_places(self) -> list[Place]:
        """List every live connection of the blocks."""
        cells = enumerate(self.cells)
        return [(place, i) for place, cell in cells for i, alive in enumerate(cell.live) if alive]

    def branch_places(self) -> list[tuple[int, int]]:
        """List every branch, by both numbers, of a reduction block that has two."""
        pairs = [stage for stage, live in enumerate(self.reductions) if all(live)]
        return [(stage, branch) for stage in pairs for branch in range(len(REDUCTION_OPERATIONS))]

    def without_operation(self, place: Place) -> Architecture:
        """Remove an operation and what is cut off with it."""
        return self.with_cell(place[0], self.cells[place[0]].without_node(place[1]))

    def without_connection(self, place: Place) -> Architecture:
        """Remove a connection and what is cut off with it."""
        return self.with_cell(place[0], self.cells[place[0]].without_connection(place[1]))

    def without_branch(self, place: tuple[int, int]) -> Architecture:
        """Remove one of the two branches of a reduction block."""
        flags = [list(live) for live in self.reductions]
        flags[place[0]][place[1]] = False
        return replace(self, reductions=tuple(map(tuple, flags)))

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the candidate operations."""
        return self.blocks[0].operations

    @property
    def num_levels(self) -> int:
        """Levels of a block."""
        return self.blocks[0].num_levels

    @property
    def num_live(self) -> int:
        """Live connections in all blocks and reduction blocks together."""
        return sum(graph.num_live for graph in self.blocks) + sum(map(sum, self.reductions))

    def clean(self) -> Architecture:
        """Every block cleaned; idempotent."""
        return self.with_cells(graph.clean() for graph in self.cells)

    def without_blocks(self) -> Architecture:
        """What pruning cannot remove: stem, shortcuts, reductions, head; every block is empty."""
        return self.with_cells(graph.prune([False] * len(graph.live)) for graph in self.cells)

    def with_channels(self, channels: Sequence[int]) -> Architecture:
        """The same structure with other channels for each stage."""
        return replace(self, skeleton=replace(self.skeleton, channels=tuple(channels)))

    def to_json(self) -> str:
        """Versioned JSON; the inverse of ``from_json`` for cleaned architectures."""
        skeleton = self.skeleton
        value = {
            "format": FORMAT,
            "version": VERSION,
            "skeleton": {key: getattr(skeleton, key) for key in skeleton.__dataclass_fields__},
            "sharing": self.sharing,
            "operations": self.operations,
            "num_levels": self.num_levels,
            "blocks": [graph.clean().to_dict() for graph in self.blocks],
            "reductions": [
                [name for name, alive in zip(REDUCTION_OPERATIONS, flags, strict=True) if alive]
                for flags in self.reductions
            ],
        }
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read ``to_json``.

        Raises:
            ArchitectureError: naming the key that is missing, unknown or wrong.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArchitectureError(f"not a JSON file: {error}") from None
        keys = "format", "version", "skeleton", "operations", "num_levels", "blocks", "reductions"
        sharing = value.pop("sharing", None) if isinstance(value, dict) else None
        value = read_mapping(value, "architecture", keys)
        if value["format"] != FORMAT or repr(value["version"]) != str(VERSION):
            raise ArchitectureError(
                f"format and version must be {FORMAT!r} and {VERSION}, "
                f"got {value['format']!r} and {value['version']!r}"
            )
        operations = tuple(read_names(value["operations"], "operations"))
        num_levels = read_integer(value["num_levels"], "num_levels", 1)
        if num_levels * len(operations) > MAX_FILE_NODES:
            raise ArchitectureError(
                f"num_levels times the operations must be <= {MAX_FILE_NODES}, "
                f"got {shorten(num_levels)} levels of {len(operations)}"
            )
        blocks = tuple(
            BlockGraph.from_dict(item, operations, num_levels, f"blocks[{i}]")
            for i, item in enumerate(read_list(value["blocks"], "blocks"))
        )
        reductions = tuple(
            _reduction(item, f"reductions[{i}]")
            for i, item in enumerate(read_list(value["reductions"], "reductions"))
        )
        if sharing is None:  # a file of version 0.1
            sharing = SHARINGS[len(set(blocks)) > 1]
        return cls(_skeleton(value["skeleton"]), blocks, reductions, sharing)

    def save(self, path: str | Path) -> None:
        """Write ``to_json`` to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read a file written by ``save``; errors name the file and the key."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (ArchitectureError, UnicodeDecodeError) as error:
            raise ArchitectureError(f"{path}: {error}") from None


def scale_channels(channels: Sequence[float], multiplier: float) -> tuple[int, ...]:
    """Every stage's channels times one global multiplier, rounded down, at least 1.

    Example:
        >>> scale_channels((16, 32), 0.75)
        (12, 24)
    """
    return tuple(max(1, int(width * multiplier + 1e-9)) for width in channels)


def doubled_channels(first: int, num_stages: int) -> tuple[int, ...]:
    """Channels that double from stage to stage."""
    return tuple(first * 2**stage for stage in range(num_stages))


def _reduction(value: Any, key: str) -> tuple[bool, ...]:
    for name in read_names(value, key):
        if name not in REDUCTION_OPERATIONS:
            raise ArchitectureError(f"{key}: {shorten(name)} is not one of {REDUCTION_OPERATIONS}")
    if not value or len(set(value)) != len(value):
        raise ArchitectureError(
            f"{key} must name one or both of {REDUCTION_OPERATIONS}, got {shorten(value)}"
        )
    return tuple(name in value for name in REDUCTION_OPERATIONS)


def _skeleton(value: Any) -> Skeleton:
    value = read_mapping(value, "skeleton", tuple(Skeleton.__dataclass_fields__))
    numbers = {
        key: read_integer(value[key], f"skeleton.{key}", 1)
        for key in ("input_channels", "image_size", "num_classes")
    }
    stages = {key: read_numbers(value[key], f"skeleton.{key}") for key in ("blocks", "channels")}
    stem = read_names([value["stem"]], "skeleton.stem")[0]
    return Skeleton(stem=stem, **numbers, **stages)  # pyright: ignore[reportArgumentType]
