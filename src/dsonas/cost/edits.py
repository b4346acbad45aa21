"""Single edits of an architecture, and what disappears from its cost with them.

The marginal cost of a connection, an operation or a branch of a reduction block is the cost of the
architecture less that of the cleaned architecture without it, so whatever is cut off with it counts
as well. Marginal costs of two parts overlap where one cuts off the other; removed one after the
other, each at the marginal cost that it has then, parts add up to the whole difference.

An input of an operation costs no multiply-adds and no parameters; only cleaning, and the sum that
it saves reading, give it a cost. That is why removing the smallest scaling factors first empties a
block while it keeps its cost (see ``removal``).
"""

from __future__ import annotations

from dataclasses import replace

from dsonas.cost.costs import Cost, architecture_cost
from dsonas.graph import Architecture

Place = tuple[int, int]
"""One of ``Architecture.cells`` and in it a node, or a connection's number in packed order."""


def without_operation(architecture: Architecture, place: Place) -> Architecture:
    """Remove an operation and what is cut off with it."""
    cell = architecture.cells[place[0]]
    return architecture.with_cell(place[0], cell.without_node(place[1]))


def without_connection(architecture: Architecture, place: Place) -> Architecture:
    """Remove a connection and what is cut off with it."""
    cell = architecture.cells[place[0]]
    keep = [i != place[1] for i in range(len(cell.live))]
    return architecture.with_cell(place[0], cell.prune(keep).clean())


def without_branch(architecture: Architecture, place: Place) -> Architecture:
    """Remove one of the two branches of a reduction block.

    Args:
        architecture: where it is.
        place: reduction block and branch.
    """
    flags = [list(live) for live in architecture.reductions]
    flags[place[0]][place[1]] = False
    return replace(architecture, reductions=tuple(map(tuple, flags)))


def operation_places(architecture: Architecture) -> list[Place]:
    """List every kept operation."""
    return [(i, node) for i, cell in enumerate(architecture.cells) for node in cell.kept_nodes]


def connection_places(architecture: Architecture) -> list[Place]:
    """List every live connection of the blocks."""
    return [
        (place, i)
        for place, cell in enumerate(architecture.cells)
        for i, alive in enumerate(cell.live)
        if alive
    ]


def branch_places(architecture: Architecture) -> list[Place]:
    """List every branch of a reduction block that has two; one that is left alone cannot go."""
    return [
        (stage, branch)
        for stage, live in enumerate(architecture.reductions)
        for branch in range(len(live))
        if all(live)
    ]


def operation_costs(architecture: Architecture) -> dict[Place, Cost]:
    """Compute the marginal cost of every kept operation.

    Args:
        architecture: cleaned or not.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> one = cifar_space(channels=8, blocks=(1,)).complete()
        >>> before = architecture_cost(one).params
        >>> before - architecture_cost(without_operation(one, (0, 1))).params
        216
        >>> operation_costs(one)[0, 1].params
        216
    """
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without_operation(architecture, place))
        for place in operation_places(architecture)
    }


def connection_costs(architecture: Architecture) -> dict[Place, Cost]:
    """Compute the marginal cost of every live connection of the blocks.

    Args:
        architecture: cleaned or not; a connection that cleaning drops costs nothing.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> one = cifar_space(channels=8, blocks=(1,)).complete()
        >>> costs = connection_costs(one)
        >>> costs[0, 0].macs, costs[0, 123].macs == 8 * 8 * 32 * 32
        (0, True)
    """
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without_connection(architecture, place))
        for place in connection_places(architecture)
    }


def reduction_costs(architecture: Architecture) -> dict[Place, Cost]:
    """Compute the marginal cost of every branch of a reduction block that has two."""
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without_branch(architecture, place))
        for place in branch_places(architecture)
    }
