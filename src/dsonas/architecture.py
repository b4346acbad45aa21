"""Architecture as data: which connections, operations and channels a network has.

The complete supernet, a half-pruned one and the final network are values of one type. This module
needs the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "dsonas-architecture"
VERSION = 1
REDUCTION_OPERATIONS = ("conv1x1", "conv3x3")
STEMS = ("cifar", "imagenet")


class ArchitectureError(ValueError):
    """A malformed architecture; the message names the key, the rule and the value received."""


class Connection(NamedTuple):
    """A directed connection of a block: from node ``source`` to node ``target``.

    Node 0 is the block input, node ``1 + N * (level - 1) + i`` is operation ``i`` (from 0) of
    ``level`` (from 1), and node ``1 + N * M`` is the block output.
    """

    source: int
    target: int


@lru_cache(maxsize=64)
def block_connections(num_levels: int, num_operations: int) -> tuple[Connection, ...]:
    """All connections of a complete block in packed order (eq. 3 and 4 of the paper).

    Level by level from the second, operation by operation, the block input first and then every
    earlier operation; after those one connection from each operation to the block output.

    Example:
        >>> len(block_connections(4, 4))
        124
    """
    inner = [
        Connection(source, 1 + num_operations * (level - 1) + i)
        for level in range(2, num_levels + 1)
        for i in range(num_operations)
        for source in range(1 + num_operations * (level - 1))
    ]
    output = 1 + num_levels * num_operations
    return tuple(inner + [Connection(node, output) for node in range(1, output)])


@dataclass(frozen=True)
class BlockGraph:
    """The live connections of one block.

    Args:
        operations: names of the N candidate operations of a level.
        num_levels: M >= 1, the number of levels.
        live: one flag for each entry of ``block_connections(M, N)``.

    Raises:
        ArchitectureError: if the sizes do not fit together.

    Example:
        >>> BlockGraph.complete(("separable_conv3x3", "max_pool3x3"), 2).num_live
        10
    """

    operations: tuple[str, ...]
    num_levels: int
    live: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.operations or self.num_levels < 1:
            raise ArchitectureError(
                "a block needs at least one operation and one level, "
                f"got {self.operations!r} and {self.num_levels}"
            )
        if len(self.live) != len(self.connections):
            raise ArchitectureError(
                f"live must hold {len(self.connections)} flags for {self.num_levels} levels of "
                f"{len(self.operations)} operations, got {len(self.live)}"
            )

    @classmethod
    def complete(cls, operations: Sequence[str], num_levels: int) -> BlockGraph:
        """The block in which every connection is live."""
        size = len(block_connections(num_levels, len(operations)))
        return cls(tuple(operations), num_levels, (True,) * size)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All possible connections, in packed order."""
        return block_connections(self.num_levels, len(self.operations))

    @property
    def output_node(self) -> int:
        """The index of the block's output node."""
        return 1 + self.num_levels * len(self.operations)

    @property
    def num_live(self) -> int:
        """The number of live connections."""
        return sum(self.live)

    def level(self, node: int) -> int:
        """The level, from 1, of an operation node."""
        return 1 + (node - 1) // len(self.operations)

    def operation(self, node: int) -> str:
        """The name of the operation at a node."""
        return self.operations[(node - 1) % len(self.operations)]

    @cached_property
    def inputs(self) -> dict[int, tuple[int, ...]]:
        """The live sources of every target node; level 1 always reads the block input."""
        found: dict[int, list[int]] = {node: [] for node in range(1, self.output_node + 1)}
        for node in range(1, 1 + len(self.operations)):
            found[node].append(0)
        for (source, target), alive in zip(self.connections, self.live, strict=True):
            if alive:
                found[target].append(source)
        return {target: tuple(sources) for target, sources in found.items()}

    @cached_property
    def reaching_nodes(self) -> frozenset[int]:
        """Operations that reach the output over live connections, fed or not."""
        reaching = {self.output_node}
        for node in range(self.output_node, 0, -1):
            if node in reaching:
                reaching.update(self.inputs[node])
        return frozenset(reaching) - {0, self.output_node}

    @cached_property
    def kept_nodes(self) -> tuple[int, ...]:
        """Operations reached from the block input that also reach the output, ascending."""
        reached = {0}
        for node in range(1, self.output_node):
            if any(source in reached for source in self.inputs[node]):
                reached.add(node)
        return tuple(sorted(reached & self.reaching_nodes))

    def prune(self, keep: Sequence[bool]) -> BlockGraph:
        """The block with only those live connections that ``keep`` marks, packed order."""
        live = tuple(old and bool(new) for old, new in zip(self.live, keep, strict=True))
        return replace(self, live=live)

    def clean(self) -> BlockGraph:
        """Drop every connection that touches an operation that is not kept; idempotent.

        An operation is kept iff it is reached from the block input and reaches the output.
        """
        kept = {0, self.output_node, *self.kept_nodes}
        return self.prune([s in kept and t in kept for s, t in self.connections])

    def to_dict(self) -> dict[str, Any]:
        """JSON value: the sources of every kept operation, and of the output."""
        return {
            "operations": {str(node): list(self.inputs[node]) for node in self.kept_nodes},
            "output": list(self.inputs[self.output_node]),
        }

    @classmethod
    def from_dict(
        cls, value: Any, operations: Sequence[str], num_levels: int, key: str
    ) -> BlockGraph:
        """Read the value of ``to_dict``; ``key`` names it in error messages."""
        value = _mapping(value, key, ("operations", "output"))
        complete = cls.complete(operations, num_levels)
        listed = {complete.output_node: _integers(value["output"], f"{key}.output", 1)}
        nodes = _mapping(value["operations"], f"{key}.operations", None)
        for name, sources in nodes.items():
            where = f"{key}.operations.{name}"
            if not name.isdecimal() or not 1 <= int(name) < complete.output_node:
                raise ArchitectureError(
                    f"{where}: a node is a number from 1 to {complete.output_node - 1}"
                )
            listed[int(name)] = _integers(sources, where, 0)
        possible = set(complete.connections) | {(0, n + 1) for n in range(len(operations))}
        for target, sources in listed.items():
            for source in sources:
                if (source, target) not in possible:
                    raise ArchitectureError(
                        f"{key}: connection {source} -> {target} is not one of the block's"
                    )
        graph = complete.prune([s in listed.get(t, ()) for s, t in complete.connections])
        if graph.clean() != graph or set(graph.kept_nodes) != set(listed) - {graph.output_node}:
            raise ArchitectureError(
                f"{key}: every listed operation must be reached from the block input and reach "
                "the output; call BlockGraph.clean() before saving"
            )
        return graph


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
        blocks: a graph for each block, stage after stage; all of the same operations and levels.
        reductions: for each reduction block, which of its 1x1 and 3x3 convolution are live.

    Raises:
        ArchitectureError: if the numbers of blocks or reductions do not fit the skeleton.

    Example:
        >>> skeleton = Skeleton(blocks=(1, 1), channels=(8, 16))
        >>> net = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 2)
        >>> Architecture.from_json(net.to_json()) == net
        True
    """

    skeleton: Skeleton
    blocks: tuple[BlockGraph, ...]
    reductions: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != self.skeleton.num_blocks:
            raise ArchitectureError(
                f"blocks must hold {self.skeleton.num_blocks} graphs, got {len(self.blocks)}"
            )
        if len({(graph.operations, graph.num_levels) for graph in self.blocks}) != 1:
            raise ArchitectureError("all blocks must have the same operations and levels")
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
        cls, skeleton: Skeleton, operations: Sequence[str], num_levels: int
    ) -> Architecture:
        """The architecture in which every connection is live."""
        graph = BlockGraph.complete(operations, num_levels)
        reductions = ((True,) * len(REDUCTION_OPERATIONS),) * (len(skeleton.blocks) - 1)
        return cls(skeleton, (graph,) * skeleton.num_blocks, reductions)

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
        return replace(self, blocks=tuple(graph.clean() for graph in self.blocks))

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
        except (json.JSONDecodeError, RecursionError) as error:
            raise ArchitectureError(f"not a JSON file: {error}") from None
        keys = "format", "version", "skeleton", "operations", "num_levels", "blocks", "reductions"
        value = _mapping(value, "architecture", keys)
        if value["format"] != FORMAT or value["version"] != VERSION:
            raise ArchitectureError(
                f"format and version must be {FORMAT!r} and {VERSION}, "
                f"got {value['format']!r} and {value['version']!r}"
            )
        operations = tuple(_strings(value["operations"], "operations"))
        num_levels = _integer(value["num_levels"], "num_levels", 1)
        blocks = tuple(
            BlockGraph.from_dict(item, operations, num_levels, f"blocks[{i}]")
            for i, item in enumerate(_list(value["blocks"], "blocks"))
        )
        reductions = tuple(
            _reduction(item, f"reductions[{i}]")
            for i, item in enumerate(_list(value["reductions"], "reductions"))
        )
        return cls(_skeleton(value["skeleton"]), blocks, reductions)

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


def scale_channels(channels: Sequence[int], multiplier: float) -> tuple[int, ...]:
    """Every stage's channels times one global multiplier, rounded down, at least 1.

    Example:
        >>> scale_channels((16, 32), 0.75)
        (12, 24)
    """
    return tuple(max(1, int(width * multiplier + 1e-9)) for width in channels)


def doubled_channels(first: int, num_stages: int) -> tuple[int, ...]:
    """Channels that double from stage to stage.

    Example:
        >>> doubled_channels(16, 3)
        (16, 32, 64)
    """
    widths = [first]
    for _ in range(num_stages - 1):
        widths.append(2 * widths[-1])
    assert all(b == 2 * a for a, b in pairwise(widths))
    return tuple(widths)


def _mapping(value: Any, key: str, keys: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArchitectureError(f"{key} must be an object, got {_short(value)}")
    for name in keys or ():
        if name not in value:
            raise ArchitectureError(f"{key}: key {name!r} is missing")
    unknown = [name for name in value if keys is not None and name not in keys]
    if unknown:
        raise ArchitectureError(f"{key}: unknown key {unknown[0]!r}; known are {list(keys or ())}")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArchitectureError(f"{key} must be a list, got {_short(value)}")
    return value


def _integer(value: Any, key: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArchitectureError(f"{key} must be a whole number >= {least}, got {_short(value)}")
    return value


def _integers(value: Any, key: str, least: int) -> tuple[int, ...]:
    found = tuple(_integer(item, f"{key}[{i}]", least) for i, item in enumerate(_list(value, key)))
    if len(set(found)) != len(found):
        raise ArchitectureError(f"{key} must not name a node twice, got {_short(value)}")
    return found


def _strings(value: Any, key: str) -> list[str]:
    for i, item in enumerate(_list(value, key)):
        if not isinstance(item, str):
            raise ArchitectureError(f"{key}[{i}] must be a name, got {_short(item)}")
    return value


def _reduction(value: Any, key: str) -> tuple[bool, ...]:
    for name in _strings(value, key):
        if name not in REDUCTION_OPERATIONS:
            raise ArchitectureError(f"{key}: {name!r} is not one of {REDUCTION_OPERATIONS}")
    return tuple(name in value for name in REDUCTION_OPERATIONS)


def _skeleton(value: Any) -> Skeleton:
    value = _mapping(value, "skeleton", tuple(Skeleton.__dataclass_fields__))
    numbers = {
        key: _integer(value[key], f"skeleton.{key}", 1)
        for key in ("input_channels", "image_size", "num_classes")
    }
    stages = {
        key: _integers_with_repeats(value[key], f"skeleton.{key}") for key in ("blocks", "channels")
    }
    stem = _strings([value["stem"]], "skeleton.stem")[0]
    return Skeleton(stem=stem, **numbers, **stages)


def _integers_with_repeats(value: Any, key: str) -> tuple[int, ...]:
    return tuple(_integer(item, f"{key}[{i}]", 1) for i, item in enumerate(_list(value, key)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
