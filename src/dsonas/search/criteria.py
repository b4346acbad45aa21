"""What a connection and an operation are worth: the criteria by which a search removes.

A criterion is one class with ``scores(architecture, factors)``; the lowest score goes first.

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

from dsonas.cost import Place
from dsonas.graph import Architecture, BlockGraph

Factors = Sequence[Sequence[float]]
"""Packed scaling factors, a vector for each of ``Architecture.cells``."""


class Criterion(Protocol):
    """What operations and connections are worth to a search."""

    def scores(self, architecture: Architecture, factors: Factors) -> dict[Place, float]:
        """Score every kept operation, by cell and node; higher is worth more."""
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
    """Compute the importance that flows over each connection, packed order; 0 where dead.

    Nothing flows over a connection with factor 0, nor to an operation all of whose inputs are 0.

    Args:
        graph: live connections.
        factors: packed scaling factors, >= 0.

    Returns:
        Flows in [0, 1]. Those into the output sum to 1 if any connection to it is live; those out
        of a node (0 is the block input) sum to at most its importance.

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
