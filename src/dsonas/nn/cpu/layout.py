"""How the fast path lays a block out over its buffer of feature planes."""

from __future__ import annotations

from dataclasses import dataclass

from dsonas.graph import BlockGraph


@dataclass(frozen=True)
class Level:
    """One level of a block, as the fast path runs it.

    Args:
        planes: buffer indices of its nodes, consecutive, as (first, end).
        positions: for each node, the index into the packed scaling factors of each plane before
            ``first``; dead connections point one past the last factor. (n, first), or empty for
            level 1, which reads the block input.
    """

    planes: tuple[int, int]
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Layout:
    """A block graph laid out over the buffer: plane 0 is the input, then the kept nodes."""

    nodes: tuple[int, ...]
    levels: tuple[Level, ...]
    output_planes: tuple[int, ...]
    output_positions: tuple[int, ...]

    @classmethod
    def of(cls, graph: BlockGraph) -> Layout:
        """Lay out a cleaned graph in which every kept node feeds something."""
        nodes = graph.kept_nodes
        index: dict[tuple[int, int], int] = {pair: i for i, pair in enumerate(graph.connections)}
        dead = len(index)

        def position(source: int, target: int) -> int:
            place = index[source, target]
            return place if graph.live[place] else dead

        levels, first = [], 1
        for number in range(1, graph.num_levels + 1):
            here = [node for node in nodes if graph.level(node) == number]
            before = (0, *nodes[: first - 1])
            rows = [tuple(position(s, t) for s in before) for t in here] if number > 1 else []
            if here:
                levels.append(Level((first, first + len(here)), tuple(rows)))
            first += len(here)
        feeding = graph.inputs[graph.output_node]
        output = tuple(index[node, graph.output_node] for node in feeding)
        planes = tuple(1 + nodes.index(node) for node in feeding)
        return cls(nodes, tuple(levels), planes, output)
