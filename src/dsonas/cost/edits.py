"""Single edits of an architecture, cleaned: what is cut off with a part goes as well.

Its *marginal cost* is what the architecture costs less after the edit. An input of an operation
costs no multiply-adds and no parameters; only cleaning, and the sum that it saves reading, give it
a cost. That is why removing the smallest scaling factors first empties a block while it keeps its
cost (see ``removal``).
"""

from __future__ import annotations

from dataclasses import replace

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
    """Remove one of the two branches of a reduction block, by the numbers of both."""
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
