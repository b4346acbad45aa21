"""Where the parts of a block are drawn: levels as columns, and no line through a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dsonas.commands.report.ordering import (
    SWEEPS,
    Item,
    Placed,
    fill_layers,
    level,
    live_lines,
    mean_of,
    neighbours,
    reorder,
)
from dsonas.graph import BlockGraph, Connection

Point = tuple[float, float]

NODE_WIDTH, NODE_HEIGHT, END_WIDTH = 168.0, 38.0, 70.0
NODE_GAP, LANE_HEIGHT, COLUMN_GAP = 16.0, 12.0, 84.0


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """Where it begins."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Layout:
    """A drawn block.

    Args:
        nodes: the box of the input (0), of every kept operation, and of the output.
        ghosts: the boxes of the removed operations, below all others.
        routes: for each live connection, and input to output for the shortcut, the points it runs
            through: pairs of start and end of a horizontal piece.
        columns: centre of every level, input and output included.
        width: of all together.
        height: without the ghosts.
        full_height: with them.
    """

    nodes: dict[int, Box]
    ghosts: dict[int, Box]
    routes: dict[Connection, tuple[Point, ...]]
    columns: tuple[float, ...]
    width: float
    height: float
    full_height: float


def lay_out(graph: BlockGraph) -> Layout:
    """Place a cleaned block.

    Example:
        >>> graph = BlockGraph.complete(("max_pool3x3",), 2)
        >>> placed = lay_out(graph)
        >>> placed.nodes[0].right < placed.nodes[1].left < placed.nodes[2].left
        True
    """
    lines = live_lines(graph)
    layers = reorder(fill_layers(graph, lines), lines, graph)
    heights = _place(layers, neighbours(lines, graph))
    top = min(y - _height(item) / 2 for item, y in heights.items())
    bottom = max(y + _height(item) / 2 for item, y in heights.items()) - top
    columns = _columns(graph)
    nodes = {
        item[0]: Box(columns[level(graph, item[0])], y - top, _width(graph, item[0]), NODE_HEIGHT)
        for (_, item), y in heights.items()
        if not item[1]
    }
    lanes = {(at, item[0]): y - top for (at, item), y in heights.items() if item[1]}
    ghosts = _ghosts(graph, columns, bottom)
    lowest = max((box.y + NODE_HEIGHT / 2 for box in ghosts.values()), default=bottom)
    return Layout(
        nodes=nodes,
        ghosts=ghosts,
        routes=_routes(graph, lines, nodes, lanes, columns),
        columns=columns,
        width=columns[-1] + END_WIDTH / 2,
        height=bottom,
        full_height=lowest,
    )


def _height(item: Placed) -> float:
    return LANE_HEIGHT if item[1][1] else NODE_HEIGHT


def _place(
    layers: Sequence[Sequence[Item]], near: Mapping[Placed, Sequence[Placed]]
) -> dict[Placed, float]:
    """Heights that keep the order, leave room, and make lines as straight as can be."""
    y: dict[Placed, float] = {}
    for at, layer in enumerate(layers):
        placed = [(at, item) for item in layer]
        y.update(zip(placed, _spread(placed, [0.0] * len(placed)), strict=True))
    for sweep in range(SWEEPS):
        columns = range(len(layers)) if sweep % 2 == 0 else range(len(layers) - 1, -1, -1)
        for at in columns:
            placed = [(at, item) for item in layers[at]]
            wanted = [mean_of([y[n] for n in near.get(item, ())], y[item]) for item in placed]
            y.update(zip(placed, _spread(placed, wanted), strict=True))
    return y


def _spread(items: Sequence[Placed], wanted: Sequence[float]) -> list[float]:
    """The places nearest to the wanted ones (least squares) that keep order and distance.

    Without the distances that is isotonic regression, done by pooling neighbours that are in each
    other's way.
    """
    shifts = [0.0]
    for one, other in pairwise(items):
        shifts.append(shifts[-1] + (_height(one) + _height(other)) / 2 + NODE_GAP)
    pools: list[tuple[float, int]] = []  # mean and size
    for want, shift in zip(wanted, shifts, strict=False):
        mean, size = want - shift, 1
        while pools and pools[-1][0] >= mean:
            before, count = pools.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    return [value + shift for value, shift in zip(flat, shifts, strict=False)]


def _width(graph: BlockGraph, node: int) -> float:
    return END_WIDTH if node in (0, graph.output_node) else NODE_WIDTH


def _columns(graph: BlockGraph) -> tuple[float, ...]:
    first = END_WIDTH + COLUMN_GAP + NODE_WIDTH / 2
    inner = [first + at * (NODE_WIDTH + COLUMN_GAP) for at in range(graph.num_levels)]
    return (END_WIDTH / 2, *inner, inner[-1] + NODE_WIDTH / 2 + COLUMN_GAP + END_WIDTH / 2)


def _ghosts(graph: BlockGraph, columns: Sequence[float], bottom: float) -> dict[int, Box]:
    boxes: dict[int, Box] = {}
    count = [0] * len(columns)
    kept = set(graph.kept_nodes)
    for node in range(1, graph.output_node):
        if node in kept:
            continue
        at = graph.level(node)
        y = bottom + 2.5 * NODE_GAP + NODE_HEIGHT / 2 + count[at] * (NODE_HEIGHT + NODE_GAP / 2)
        boxes[node] = Box(columns[at], y, NODE_WIDTH, NODE_HEIGHT)
        count[at] += 1
    return boxes


def _routes(
    graph: BlockGraph,
    lines: Sequence[Connection],
    nodes: Mapping[int, Box],
    lanes: Mapping[tuple[int, int], float],
    columns: Sequence[float],
) -> dict[Connection, tuple[Point, ...]]:
    """The points of every line, with ports spread over the sides of the nodes."""
    middles = {}
    for line in lines:
        between = range(level(graph, line.source) + 1, level(graph, line.target))
        middles[line] = [(columns[at], lanes[at, line.source]) for at in between]
    leaving = _ports(nodes, {ln: (ln.source, _next(nodes, ln, middles[ln])) for ln in lines})
    arriving = _ports(nodes, {ln: (ln.target, _before(nodes, ln, middles[ln])) for ln in lines})
    routes = {}
    for line in lines:
        points = [(nodes[line.source].right, leaving[line])]
        for x, y in middles[line]:
            points += [(x - NODE_WIDTH / 2, y), (x + NODE_WIDTH / 2, y)]
        routes[line] = (*points, (nodes[line.target].left, arriving[line]))
    return routes


def _next(nodes: Mapping[int, Box], line: Connection, middle: Sequence[Point]) -> float:
    return middle[0][1] if middle else nodes[line.target].y


def _before(nodes: Mapping[int, Box], line: Connection, middle: Sequence[Point]) -> float:
    return middle[-1][1] if middle else nodes[line.source].y


def _ports(
    nodes: Mapping[int, Box], ends: Mapping[Connection, tuple[int, float]]
) -> dict[Connection, float]:
    """The height at which each line meets its node: lines from one place share a port."""
    heights: dict[int, set[float]] = {}
    for node, other in ends.values():
        heights.setdefault(node, set()).add(round(other, 3))
    ports = {}
    for line, (node, other) in ends.items():
        ranks = sorted(heights[node])
        step = min(7.0, (NODE_HEIGHT - 10) / max(1, len(ranks) - 1))
        ports[line] = nodes[node].y + step * (ranks.index(round(other, 3)) - (len(ranks) - 1) / 2)
    return ports
