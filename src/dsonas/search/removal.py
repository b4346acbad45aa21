"""The planned structures of a search, from the supernet to its planned cost.

The cost of the live architecture is planned over the search: it falls from that of the supernet to
the target in equal ratios per step, and then stays while the weights settle. What a plan removes at
a progress is found by score: operations first, then connections, since each costs the same
addition. Single operations are large, so the structure nearest to the planned cost, as a ratio, is
taken; a block's last operation goes only when nothing else is left. The ``Searcher`` presses to
exactly 0 what a plan removes, and removes it then.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsonas.cost import (
    CostFunction,
    exact_measures,
    without_operation,
)
from dsonas.graph import Architecture
from dsonas.search.criteria import Criterion, Factors, Flow

MACS = exact_measures()["macs"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Planned shares of the supernet over the search.

    Example:
        >>> plan = Plan(keep_cost=0.25, keep_connections=0.25, hold_from=0.5)
        >>> [round(plan.share(plan.keep_cost, t), 3) for t in (0, 0.25, 0.5, 1)]
        [1.0, 0.5, 0.25, 0.25]
    """

    # share of the prunable cost (that of the blocks' operations and outputs) that is live at the
    # end, in (0, 1]
    keep_cost: float
    keep_connections: float  # share of its connections that are live at the end, in (0, 1]
    hold_from: float = 0.75  # part of the search after which the structure is held, in (0, 1]

    def share(self, final: float, progress: float) -> float:
        """Compute the planned share at ``progress`` in [0, 1] of the search."""
        return final ** min(1.0, progress / self.hold_from)

    def allowed(self, progress: float, supernet: Architecture, cost: CostFunction = MACS) -> float:
        """Compute the planned cost of the live architecture.

        Args:
            progress: part of the search done, in [0, 1].
            supernet: the complete architecture.
            cost: the measure that is planned.
        """
        fixed = cost(supernet.without_blocks())
        return fixed + self.share(self.keep_cost, progress) * (cost(supernet) - fixed)


def follow_plan(
    plan: Plan,
    progress: float,
    supernet: Architecture,
    current: Architecture,
    factors: Factors,
    criterion: Criterion | None = None,
    cost: CostFunction = MACS,
) -> Architecture:
    """Remove what scores least until the planned shares hold.

    Args:
        plan: the planned shares.
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
    allowed = plan.allowed(progress, supernet, cost)
    fixed = cost(supernet.without_blocks())
    while (now := cost(current)) > allowed:
        smaller = _without_least(current, factors, criterion)
        if smaller is None or _is_nearer(now, cost(smaller), allowed, fixed):
            break
        current = smaller
    connections = sum(cell.num_live for cell in supernet.cells)
    limit = plan.share(plan.keep_connections, progress) * connections
    return _drop_connections(current, factors, int(limit), criterion)


def _is_nearer(now: float, smaller: float, allowed: float, fixed: float) -> bool:
    """Whether ``now`` is nearer to the allowed cost than a smaller cost, as ratios."""
    return smaller <= fixed or (now - fixed) * (smaller - fixed) < (allowed - fixed) ** 2


def _without_least(
    current: Architecture, factors: Factors, criterion: Criterion
) -> Architecture | None:
    """Remove the operation with the lowest score; None if nothing may go.

    A block's last operation is the last resort; something stays in the network.
    """
    found = []
    for place, score in criterion.scores(current, factors).items():
        smaller = without_operation(current, place)
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
        smaller = cell.prune([j != i for j in range(len(cell.live))]).clean()
        if smaller.kept_nodes == cell.kept_nodes:
            excess -= cell.num_live - smaller.num_live
            cells[place] = smaller
    return current.with_cells(cells)
