"""Which part of a block stands above which: the order in every column, with few crossings.

A layered drawing in the manner of Sugiyama. A connection that skips levels runs in a *lane*, a
place of its own in every level between; connections of one source share their lanes, so they leave
it as one trunk and fork where they turn off.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise

from dsonas.graph import BlockGraph, Connection

Item = tuple[int, bool]  # a node and whether this is its lane rather than the node itself
Placed = tuple[int, Item]  # an item in the column of that number
SWEEPS = 12


def level(graph: BlockGraph, node: int) -> int:
    """The column of a node: 0 the input, then the levels, then the output."""
    if node == 0:
        return 0
    return graph.num_levels + 1 if node == graph.output_node else graph.level(node)


def live_lines(graph: BlockGraph) -> list[Connection]:
    """What is drawn as a line: live connections, those into level 1, and the shortcut."""
    first = [Connection(0, node) for node in graph.kept_nodes if graph.level(node) == 1]
    live = [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if alive]
    return [Connection(0, graph.output_node), *first, *live]


def fill_layers(graph: BlockGraph, lines: Sequence[Connection]) -> list[list[Item]]:
    """What stands in every column: nodes in their order, then lanes."""
    layers: list[list[Item]] = [[] for _ in range(graph.num_levels + 2)]
    last: dict[int, int] = {}
    for source, target in lines:
        last[source] = max(last.get(source, 0), level(graph, target))
    for node in (0, *graph.kept_nodes, graph.output_node):
        layers[level(graph, node)].append((node, False))
    for source, end in sorted(last.items()):
        for at in range(level(graph, source) + 1, end):
            layers[at].append((source, True))
    return layers


def _links(lines: Sequence[Connection], graph: BlockGraph) -> set[tuple[Placed, Placed]]:
    """Pieces of lines between neighbouring columns."""
    links = set()
    for source, target in lines:
        start, end = level(graph, source), level(graph, target)
        stops: list[Placed] = [(start, (source, False))]
        stops += [(at, (source, True)) for at in range(start + 1, end)]
        stops.append((end, (target, False)))
        links.update(pairwise(stops))
    return links


def neighbours(lines: Sequence[Connection], graph: BlockGraph) -> dict[Placed, list[Placed]]:
    """What every part is joined to in the columns beside it."""
    found: dict[Placed, list[Placed]] = {}
    for one, other in sorted(_links(lines, graph)):
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


def reorder(
    layers: list[list[Item]], lines: Sequence[Connection], graph: BlockGraph
) -> list[list[Item]]:
    """Reorder every column by the mean place of its neighbours; the order with fewest crossings."""
    links, near = sorted(_links(lines, graph)), neighbours(lines, graph)
    best, fewest = layers, _num_crossings(layers, links)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        forward = sweep % 2 == 0
        layers = [list(layer) for layer in layers]
        steps = range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1)
        for at in steps:
            beside = at - 1 if forward else at + 1
            place = {item: i for i, item in enumerate(layers[beside])}
            mean = {
                item: mean_of([place[n] for c, n in near.get((at, item), ()) if c == beside], i)
                for i, item in enumerate(layers[at])
            }
            layers[at].sort(key=lambda item, mean=mean: mean[item])
        crossings = _num_crossings(layers, links)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def mean_of(values: Sequence[float], otherwise: float) -> float:
    """The mean, or what to take where there are no values."""
    return sum(values) / len(values) if values else otherwise


def _num_crossings(layers: Sequence[Sequence[Item]], links: Sequence[tuple[Placed, Placed]]) -> int:
    place = {(at, item): i for at, layer in enumerate(layers) for i, item in enumerate(layer)}
    between: dict[int, list[tuple[int, int]]] = {}
    for one, other in links:
        between.setdefault(one[0], []).append((place[one], place[other]))
    total = 0
    for pairs in between.values():
        seen: list[int] = []
        for _, end in sorted(pairs):
            total += len(seen) - bisect_right(seen, end)
            insort(seen, end)
    return total
