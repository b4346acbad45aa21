"""What disappears from the cost of an architecture if one part of it goes.

The marginal cost of a connection, an operation or a branch of a reduction block is the cost of the
architecture less that of the cleaned architecture without it, so whatever is cut off with it counts
as well. Marginal costs of two parts overlap where one cuts off the other; removed one after the
other, each at the marginal cost that it has then, parts add up to the whole difference.

An input of an operation costs no multiply-adds and no parameters; only cleaning, and the sum that
it saves reading, give it a cost. That is why removing the smallest scaling factors first empties a
block while it keeps its cost (see ``control``).
"""

from __future__ import annotations

from dataclasses import replace

from dsonas.cost.costs import Cost, architecture_cost
from dsonas.graph import Architecture, BlockGraph

Place = tuple[int, int]
"""A graph (0 for all blocks of the share space) and in it a node, or a connection's number."""


def with_graph(
    architecture: Architecture, place: int, graph: BlockGraph, *, shared: bool
) -> Architecture:
    """The architecture with another graph in one block, or in all of a share space."""
    blocks = [graph if shared or i == place else old for i, old in enumerate(architecture.blocks)]
    return replace(architecture, blocks=tuple(blocks))


def without_node(graph: BlockGraph, node: int) -> BlockGraph:
    """The cleaned graph that is left when an operation goes."""
    return graph.prune([node not in connection for connection in graph.connections]).clean()


def without_operation(architecture: Architecture, place: Place, *, shared: bool) -> Architecture:
    """What is left, cleaned, of the graph of an operation that goes.

    Args:
        architecture: where it is.
        place: graph and node.
        shared: whether it goes from all blocks at once (share space).
    """
    graph = without_node(architecture.blocks[place[0]], place[1])
    return with_graph(architecture, place[0], graph, shared=shared)


def without_connection(architecture: Architecture, place: Place, *, shared: bool) -> Architecture:
    """What is left, cleaned, of the graph of a connection that goes.

    Args:
        architecture: where it is.
        place: graph and number of the connection in packed order.
        shared: whether it goes from all blocks at once (share space).
    """
    graph = architecture.blocks[place[0]]
    keep = [i != place[1] for i in range(len(graph.live))]
    return with_graph(architecture, place[0], graph.prune(keep).clean(), shared=shared)


def without_branch(architecture: Architecture, place: Place) -> Architecture:
    """What is left without one of the two branches of a reduction block.

    Args:
        architecture: where it is.
        place: reduction block and branch.
    """
    flags = [list(live) for live in architecture.reductions]
    flags[place[0]][place[1]] = False
    return replace(architecture, reductions=tuple(map(tuple, flags)))


def operation_places(architecture: Architecture, *, shared: bool) -> list[Place]:
    """Every kept operation."""
    graphs = architecture.blocks[:1] if shared else architecture.blocks
    return [(i, node) for i, graph in enumerate(graphs) for node in graph.kept_nodes]


def connection_places(architecture: Architecture, *, shared: bool) -> list[Place]:
    """Every live connection of the blocks."""
    graphs = architecture.blocks[:1] if shared else architecture.blocks
    return [(g, i) for g, graph in enumerate(graphs) for i, alive in enumerate(graph.live) if alive]


def operation_costs(architecture: Architecture, *, shared: bool) -> dict[Place, Cost]:
    """The marginal cost of every kept operation.

    Args:
        architecture: cleaned or not.
        shared: whether an operation goes from all blocks at once (share space).

    Returns:
        By graph and node.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> one = cifar_space(channels=8, blocks=(1,)).complete()
        >>> before = architecture_cost(one).params
        >>> before - architecture_cost(without_operation(one, (0, 1), shared=True)).params
        216
        >>> operation_costs(one, shared=True)[0, 1].params
        216
    """
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without_operation(architecture, place, shared=shared))
        for place in operation_places(architecture, shared=shared)
    }


def connection_costs(architecture: Architecture, *, shared: bool) -> dict[Place, Cost]:
    """The marginal cost of every live connection of the blocks.

    Args:
        architecture: cleaned or not; a connection that cleaning drops costs nothing.
        shared: whether a connection goes from all blocks at once (share space).

    Returns:
        By graph and number of the connection in packed order.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> one = cifar_space(channels=8, blocks=(1,)).complete()
        >>> costs = connection_costs(one, shared=True)
        >>> costs[0, 0].macs, costs[0, 123].macs == 8 * 8 * 32 * 32
        (0, True)
    """
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without_connection(architecture, place, shared=shared))
        for place in connection_places(architecture, shared=shared)
    }


def reduction_costs(architecture: Architecture) -> dict[Place, Cost]:
    """The marginal cost of every branch of a reduction block that has two.

    Returns:
        By reduction block and branch; a branch that is left alone cannot go and has no entry.
    """
    before = architecture_cost(architecture)
    return {
        (stage, branch): before - architecture_cost(without_branch(architecture, (stage, branch)))
        for stage, live in enumerate(architecture.reductions)
        for branch in range(len(live))
        if all(live)
    }
