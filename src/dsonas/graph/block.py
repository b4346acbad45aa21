"""The graph of a block as data: which connections are live, and what that leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from dsonas.graph.jsonvalues import ArchitectureError, read_integers, read_mapping


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
    def target_index(self) -> tuple[int, ...]:
        """The target of every connection, packed order."""
        return tuple(connection.target for connection in self.connections)

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
    def reached_nodes(self) -> frozenset[int]:
        """Operations that live connections lead to from the block input."""
        reached = {0}
        for node in range(1, self.output_node):
            if any(source in reached for source in self.inputs[node]):
                reached.add(node)
        return frozenset(reached) - {0}

    @cached_property
    def kept_nodes(self) -> tuple[int, ...]:
        """Operations reached from the block input that also reach the output, ascending."""
        return tuple(sorted(self.reached_nodes & self.reaching_nodes))

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

    def without_node(self, node: int) -> BlockGraph:
        """Remove an operation and what is cut off with it."""
        return self.prune([node not in connection for connection in self.connections]).clean()

    def without_connection(self, number: int) -> BlockGraph:
        """Remove a connection, by its number in packed order, and what is cut off with it."""
        return self.prune([i != number for i in range(len(self.live))]).clean()

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
        value = read_mapping(value, key, ("operations", "output"))
        complete = cls.complete(operations, num_levels)
        listed = {complete.output_node: read_integers(value["output"], f"{key}.output", 1)}
        nodes = read_mapping(value["operations"], f"{key}.operations", None)
        numbers = {str(node): node for node in range(1, complete.output_node)}
        for name, sources in nodes.items():
            where = f"{key}.operations.{name[:20]}"
            if name not in numbers:
                raise ArchitectureError(
                    f"{where}: a node is a number from 1 to {complete.output_node - 1}"
                )
            listed[numbers[name]] = read_integers(sources, where, 0)
        possible = set(complete.connections) | {(0, n + 1) for n in range(len(operations))}
        for target, sources in listed.items():
            for source in sources:
                if (source, target) not in possible:
                    raise ArchitectureError(
                        f"{key}: connection {source} -> {target} is not one of the block's"
                    )
        graph = complete.prune([s in listed.get(t, ()) for s, t in complete.connections])
        read = {node: graph.inputs[node] for node in (*graph.kept_nodes, graph.output_node)}
        if graph.clean() != graph or {t: tuple(sorted(s)) for t, s in listed.items()} != read:
            raise ArchitectureError(
                f"{key}: every listed operation must be reached from the block input and reach "
                "the output; call BlockGraph.clean() before saving"
            )
        return graph
