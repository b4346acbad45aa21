"""Lead a search from the supernet to its planned cost.

The proximal step alone reaches an unpredictable sparsity (the penalty shrinks whole vectors for
free, see ``criteria``). So the cost of the live architecture is planned over the search: it falls
from that of the supernet to the target in equal ratios per step, and then stays while the weights
settle. At every rebuild, live connections are removed by score until the plan holds: operations
first, then connections, since each costs the same addition. Where every operation would save too
much, a connection to a block's output goes instead; a block's last operation goes only when nothing
else is left. What the proximal step has brought to zero scores zero and goes first; what it has
brought to zero beyond the plan may still come back, and the penalty is lowered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsonas.cost import (
    CostFunction,
    Place,
    connection_places,
    exact_measures,
    without_connection,
    without_operation,
)
from dsonas.graph import Architecture
from dsonas.search.criteria import Criterion, Factors, Flow

FLOOR = 0.9  # of the final cost: removals that end below it are the last resort
PENALTY_STEP, PENALTY_RANGE = 1.3, (0.01, 10.0)
MACS = exact_measures()["macs"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Planned shares of the supernet over the search.

    Args:
        keep_cost: share of the prunable cost (that of the blocks' operations and outputs) that is
            live at the end, in (0, 1].
        keep_connections: share of its connections that are live at the end, in (0, 1].
        hold_from: part of the search after which the structure is held, in (0, 1].

    Example:
        >>> plan = Plan(keep_cost=0.25, keep_connections=0.25, hold_from=0.5)
        >>> [round(plan.share(plan.keep_cost, t), 3) for t in (0, 0.25, 0.5, 1)]
        [1.0, 0.5, 0.25, 0.25]
    """

    keep_cost: float
    keep_connections: float
    hold_from: float = 0.75

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

    def adapt(self, penalty_scale: float, planned: int, positive: int) -> float:
        """Compute the factor on the penalty until the next rebuild.

        Args:
            penalty_scale: the factor until now.
            planned: connections that the plan keeps now.
            positive: connections with a positive factor now, before removal.

        Returns:
            A larger factor if the proximal step lags behind the plan, a smaller one if it leads.
        """
        step = PENALTY_STEP if positive > planned else 1 / PENALTY_STEP
        low, high = PENALTY_RANGE
        return min(high, max(low, penalty_scale * step))

    def is_held(self, progress: float) -> bool:
        """Whether the structure is complete and only weights and factors settle."""
        return progress >= self.hold_from


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
    floor = (1 - FLOOR) * cost(supernet.without_blocks()) + FLOOR * plan.allowed(1, supernet, cost)
    while cost(current) > allowed:
        smaller = _without_least(current, factors, floor, criterion, cost)
        if smaller is None:
            break
        current = smaller
    connections = sum(cell.num_live for cell in supernet.cells)
    limit = plan.share(plan.keep_connections, progress) * connections
    return _drop_connections(current, factors, int(limit), criterion)


@dataclass(frozen=True)
class _Removal:
    result: Architecture
    cost: float
    score: float
    empties: bool


def _without_least(
    current: Architecture, factors: Factors, floor: float, criterion: Criterion, cost: CostFunction
) -> Architecture | None:
    """Remove the operation with the lowest score; None if nothing may go.

    If every operation would take the cost below the floor, the connection with the lowest score; if
    every such connection would too, the operation that saves most of its cost least. A block's last
    operation is the very last resort.
    """
    removals = _operations(current, criterion.scores(current, factors), cost)
    whole = [removal for removal in removals if not removal.empties]
    gentle = [removal for removal in whole if removal.cost >= floor]
    if not gentle:
        gentle = [r for r in _outputs(current, factors, criterion, cost) if r.cost >= floor]
    if gentle:
        return min(gentle, key=lambda removal: removal.score).result
    return max(whole or removals, key=lambda one: one.cost).result if removals else None


def _operations(
    current: Architecture, scores: Mapping[Place, float], cost: CostFunction
) -> list[_Removal]:
    """Every single operation that may go; something stays in the network, and in shared blocks."""
    found = [
        _removal(without_operation(current, place), place, score, cost)
        for place, score in scores.items()
    ]
    return [removal for removal in found if any(cell.kept_nodes for cell in removal.result.cells)]


def _outputs(
    current: Architecture, factors: Factors, criterion: Criterion, cost: CostFunction
) -> list[_Removal]:
    """Every single connection to an output that may go; others save no more than reading."""
    found = []
    scores = [
        criterion.connection_scores(cell, vector)
        for cell, vector in zip(current.cells, factors, strict=True)
    ]
    for place in connection_places(current):
        cell = current.cells[place[0]]
        if cell.connections[place[1]].target == cell.output_node:
            smaller = without_connection(current, place)
            found.append(_removal(smaller, place, scores[place[0]][place[1]], cost))
    return [removal for removal in found if not removal.empties]


def _removal(smaller: Architecture, place: Place, score: float, cost: CostFunction) -> _Removal:
    return _Removal(smaller, cost(smaller), score, not smaller.cells[place[0]].kept_nodes)


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
