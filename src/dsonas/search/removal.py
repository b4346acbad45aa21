"""What goes from our blocks, from the supernet to the planned cost: how much, when, and what first.

The cost of the live architecture is planned over the search: it falls from that of the supernet to
the target in equal ratios per step, and then stays while the weights settle. What a plan removes at
a progress is found by score: operations first, then connections, since each costs the same
addition. Single operations are large, so the structure nearest to the planned cost, as a ratio, is
taken; a block's last operation goes only when nothing else is left. The ``Searcher`` presses to
exactly 0 what a plan removes, and removes it then.

The scale of a vector of factors is free: an operation starts with a linear map and a BN, so
multiplying all its input factors by a constant changes nothing; the same holds for the output. Only
the share of a factor within its vector means something. So importance *flows*: the block output
has importance 1; every target hands its importance to its sources in proportion to their squared
factors, which is their share of the variance of the sum. The importance of an operation is what it
receives from all its targets, and that is also what is lost with it: nothing is counted twice, and
what becomes unreachable or useless with it has been counted already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dsonas.cost import CostFunction, exact_measures
from dsonas.graph import Architecture, BlockGraph, Place
from dsonas.search.search_config import SearchConfig

MACS = exact_measures()["macs"]
Factors = Sequence[Sequence[float]]
"""Packed scaling factors, a vector for each of ``Architecture.cells``."""


class Criterion(Protocol):
    """What operations and connections are worth to a search; the lowest score goes first."""

    def scores(self, architecture: Architecture, factors: Factors) -> dict[Place, float]:
        """Score every kept operation, by cell and node."""
        ...

    def connection_scores(self, graph: BlockGraph, factors: Sequence[float]) -> list[float]:
        """Score every connection of a block, packed order; 0 where dead."""
        ...


class Flow:
    """Worth by the importance that flows over scaling factors; see the top of this file.

    Example:
        >>> from dsonas.graph.architecture import Skeleton
        >>> one = Architecture.complete(Skeleton(blocks=(1,), channels=(8,)), ("a", "b"), 1)
        >>> Flow().scores(one, [[3.0, 1.0]])
        {(0, 1): 0.9, (0, 2): 0.1}
    """

    def scores(self, architecture: Architecture, factors: Factors) -> dict[Place, float]:
        """Score every kept operation by the sum of the flows out of it."""
        return {
            (place, node): value
            for place, (graph, vector) in enumerate(zip(architecture.cells, factors, strict=True))
            for node, value in node_importance(graph, self.connection_scores(graph, vector)).items()
        }

    def connection_scores(self, graph: BlockGraph, factors: Sequence[float]) -> list[float]:
        """Score every connection by its flow; see ``connection_flows``."""
        return connection_flows(graph, factors)


def connection_flows(graph: BlockGraph, factors: Sequence[float]) -> list[float]:
    """Compute the importance, in [0, 1], that flows over each connection, packed order.

    Nothing flows over a connection that is dead or has a factor of 0, nor to an operation all of
    whose inputs are 0. Flows into the output sum to 1 if any connection to it is live; those out of
    a node (0 is the block input) sum to at most its importance.

    Example:
        >>> graph = BlockGraph.complete(("a", "b"), 1)
        >>> connection_flows(graph, [3.0, 1.0])
        [0.9, 0.1]
    """
    into: dict[int, list[int]] = {}
    fed = graph.prune([factor > 0 for factor in factors]).clean()
    for i, (connection, alive) in enumerate(zip(fed.connections, fed.live, strict=True)):
        if alive:
            into.setdefault(connection.target, []).append(i)
    importance = {graph.output_node: 1.0}
    flows = [0.0] * len(graph.connections)
    for target in sorted(into, reverse=True):
        squares = {i: factors[i] ** 2 for i in into[target]}
        total = sum(squares.values())
        for i, square in squares.items():
            flows[i] = importance[target] * square / total
            source = graph.connections[i].source
            importance[source] = importance.get(source, 0.0) + flows[i]
    return flows


def node_importance(graph: BlockGraph, flows: Sequence[float]) -> dict[int, float]:
    """Compute the importance of every kept operation: the sum of the flows out of it."""
    found = dict.fromkeys(graph.kept_nodes, 0.0)
    for connection, flow in zip(graph.connections, flows, strict=True):
        if connection.source in found:
            found[connection.source] += flow
    return found


def planned_cost(
    config: SearchConfig, progress: float, supernet: Architecture, cost: CostFunction = MACS
) -> float:
    """Compute the planned cost of the live architecture at ``progress`` in [0, 1] of a search."""
    assert config.keep_cost is not None
    fixed = cost(supernet.without_blocks())
    return fixed + config.share(config.keep_cost, progress) * (cost(supernet) - fixed)


def follow_plan(
    config: SearchConfig,
    progress: float,
    supernet: Architecture,
    current: Architecture,
    factors: Factors,
    criterion: Criterion | None = None,
    cost: CostFunction = MACS,
) -> Architecture:
    """Remove what scores least until the planned shares hold.

    Args:
        config: its ``keep_cost``, which is not None, ``keep_connections`` and ``hold_from``.
        progress: part of the search done, in [0, 1].
        supernet: the complete architecture.
        current: the live, cleaned architecture.
        factors: packed scaling factors, a vector for each cell.
        criterion: what operations and connections are worth; None takes ``Flow``.
        cost: the measure that is planned.

    Returns:
        The architecture to go on with; ``current`` itself if it is cheap enough.
    """
    criterion = criterion or Flow()
    allowed = planned_cost(config, progress, supernet, cost)
    fixed = cost(supernet.without_blocks())
    while (now := cost(current)) > allowed:
        smaller = _without_least(current, factors, criterion)
        if smaller is None:
            break
        left = cost(smaller)
        if left <= fixed or (now - fixed) * (left - fixed) < (allowed - fixed) ** 2:
            break  # what is live is nearer to the plan, as a ratio
        current = smaller
    connections = sum(cell.num_live for cell in supernet.cells)
    limit = int(config.share(config.keep_connections, progress) * connections)
    return _drop_connections(current, factors, limit, criterion)


def _without_least(
    current: Architecture, factors: Factors, criterion: Criterion
) -> Architecture | None:
    """Remove the operation with the lowest score; None if nothing may go.

    A block's last operation is the last resort; something stays in the network.
    """
    found = []
    for place, score in criterion.scores(current, factors).items():
        smaller = current.without_operation(place)
        if any(cell.kept_nodes for cell in smaller.cells):
            found.append((not smaller.cells[place[0]].kept_nodes, score, place, smaller))
    return min(found, key=lambda one: one[:3])[3] if found else None


def _drop_connections(
    current: Architecture, factors: Factors, limit: int, criterion: Criterion
) -> Architecture:
    """Remove the connections with the lowest scores, keeping each operation's best input."""
    cells = list(current.cells)
    excess = sum(cell.num_live for cell in cells) - limit
    ranked = sorted(
        (score, place, i)
        for place, cell in enumerate(cells)
        for i, score in enumerate(criterion.connection_scores(cell, factors[place]))
        if cell.live[i]
    )
    for _, place, i in ranked:
        if excess <= 0:
            break
        cell = cells[place]
        smaller = cell.without_connection(i)
        if smaller.kept_nodes == cell.kept_nodes:
            excess -= cell.num_live - smaller.num_live
            cells[place] = smaller
    return current.with_cells(cells)
