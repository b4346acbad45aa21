"""Lead a search from the supernet to its planned cost.

The proximal step alone reaches an unpredictable sparsity (the penalty shrinks whole vectors for
free, see ``importance``). So the cost of the live architecture is planned over the search: it falls
from that of the supernet to the target in equal ratios per step, and then stays while the weights
settle. At every rebuild, live connections are removed by rank until the plan holds: operations by
importance (``search.thrift`` puts it in relation to the cost saved), connections by importance
alone, since each costs the same addition. Where every operation would save too much, a connection
to a block's output goes instead; a block's last operation goes only when nothing else is left. What
the proximal step has brought to zero has no importance and goes first; what it has brought to zero
beyond the plan may still come back, and the penalty is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsonas.cost import (
    Place,
    architecture_cost,
    connection_places,
    with_graph,
    without_connection,
    without_operation,
)
from dsonas.graph import Architecture
from dsonas.search.importance import connection_flows, node_importance

Factors = Sequence[Sequence[float]]
Measure = Callable[[Architecture], float]
Worth = Callable[[Architecture], Mapping[Place, float]]

FLOOR = 0.9  # of the final cost: removals that end below it are the last resort
PRESSURE_STEP, PRESSURE_RANGE = 1.3, (0.01, 10.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Planned shares of the supernet over the search.

    Args:
        structure: share of the prunable cost (that of the blocks' operations and outputs) that is
            live at the end, in (0, 1].
        connections: share of its connections that are live at the end, in (0, 1].
        reached_at: part of the search after which the structure is held, in (0, 1].

    Example:
        >>> plan = Plan(structure=0.25, connections=0.25, reached_at=0.5)
        >>> [round(plan.share(plan.structure, t), 3) for t in (0, 0.25, 0.5, 1)]
        [1.0, 0.5, 0.25, 0.25]
    """

    structure: float
    connections: float
    reached_at: float = 0.75

    def share(self, final: float, progress: float) -> float:
        """The planned share at ``progress`` in [0, 1] of the search."""
        return final ** min(1.0, progress / self.reached_at)

    def allowed(
        self, progress: float, supernet: Architecture, cost: Measure | None = None
    ) -> float:
        """The planned cost of the live architecture at ``progress`` in [0, 1] of the search.

        Args:
            progress: part of the search done.
            supernet: the complete architecture.
            cost: the measure that is planned; None takes multiply-adds.
        """
        cost = cost or macs
        fixed = cost(supernet.without_blocks())
        return fixed + self.share(self.structure, progress) * (cost(supernet) - fixed)

    def adapt(self, pressure: float, planned: int, positive: int) -> float:
        """The factor on the penalty until the next rebuild.

        Args:
            pressure: the factor until now.
            planned: connections that the plan keeps now.
            positive: connections with a positive factor now, before removal.

        Returns:
            A larger factor if the proximal step lags behind the plan, a smaller one if it leads.
        """
        factor = PRESSURE_STEP if positive > planned else 1 / PRESSURE_STEP
        low, high = PRESSURE_RANGE
        return min(high, max(low, pressure * factor))

    def is_held(self, progress: float) -> bool:
        """Whether the structure is complete and only weights and factors settle."""
        return progress >= self.reached_at


def follow_plan(
    plan: Plan,
    progress: float,
    supernet: Architecture,
    current: Architecture,
    factors: Factors,
    worth: Worth | None = None,
    cost: Measure | None = None,
    thrift: float = 1.0,
) -> Architecture:
    """Remove what is worth least for its cost until the planned shares hold.

    Args:
        plan: the planned shares.
        progress: part of the search done, in [0, 1].
        supernet: the complete architecture.
        current: the live, cleaned architecture.
        factors: packed scaling factors: one vector (share) or one for each block (full).
        worth: tells what each operation of each graph is worth; None takes ``flow_worth``.
        cost: the measure that is planned; None takes multiply-adds.
        thrift: the power of the saving by which the worth is divided, >= 0: 0 does not ask what
            an operation costs.

    Returns:
        The architecture to go on with; ``current`` itself if it is cheap enough.
    """
    shared, cost = len(factors) == 1, cost or macs
    allowed = plan.allowed(progress, supernet, cost)
    floor = (1 - FLOOR) * cost(supernet.without_blocks()) + FLOOR * plan.allowed(1, supernet, cost)
    while cost(current) > allowed:
        found = (worth or flow_worth(factors))(current)
        smaller = _without_cheapest(current, found, factors, floor, _Price(cost, thrift))
        if smaller is None:
            break
        current = smaller
    limit = plan.share(plan.connections, progress) * _num_connections(supernet, shared)
    return _drop_connections(current, factors, shared, int(limit))


def drop_smallest(
    plan: Plan,
    progress: float,
    supernet: Architecture,
    current: Architecture,
    factors: Factors,
    cost: Measure | None = None,
) -> Architecture:
    """Remove the connections with the smallest factors until the planned cost holds.

    The obvious rule, for comparison only: an input of an operation saves almost nothing, so it
    removes many of them before the cost moves, and whole operations with their last input.

    Args:
        plan: the planned shares; that of the connections is not used.
        progress: part of the search done, in [0, 1].
        supernet: the complete architecture.
        current: the live, cleaned architecture.
        factors: packed scaling factors: one vector (share) or one for each block (full).
        cost: the measure that is planned; None takes multiply-adds.
    """
    shared, cost = len(factors) == 1, cost or macs
    allowed = plan.allowed(progress, supernet, cost)
    ranked = sorted((factors[g][i], (g, i)) for g, i in connection_places(current, shared=shared))
    for _, place in ranked:
        if cost(current) <= allowed:
            break
        smaller = without_connection(current, place, shared=shared)
        if smaller.blocks[place[0]].kept_nodes:
            current = smaller
    return current


def macs(architecture: Architecture) -> float:
    """Multiply-adds: what is planned unless the budget bounds something else."""
    return architecture_cost(architecture).macs


def flow_worth(factors: Factors) -> Worth:
    """Worth by the scaling factors alone: see ``importance``."""

    def worth(current: Architecture) -> dict[Place, float]:
        return {
            (place, node): value
            for place, (graph, vector) in enumerate(zip(current.blocks, factors, strict=False))
            for node, value in node_importance(graph, connection_flows(graph, vector)).items()
        }

    return worth


@dataclass(frozen=True)
class _Price:
    """What an architecture costs, and how much that counts against what an operation is worth."""

    cost: Measure
    thrift: float


@dataclass(frozen=True)
class _Removal:
    result: Architecture
    cost: float
    ratio: float
    empties: bool


def _without_cheapest(
    current: Architecture,
    worth: Mapping[Place, float],
    factors: Factors,
    floor: float,
    price: _Price,
) -> Architecture | None:
    """Without the operation that loses least per saving; None if nothing may go.

    If every operation would take the cost below the floor, the connection that loses least per
    saving; if every such connection would too, the operation that saves least. A block's last
    operation is the very last resort.
    """
    removals = _operations(current, worth, len(factors) == 1, price)
    whole = [removal for removal in removals if not removal.empties]
    gentle = [removal for removal in whole if removal.cost >= floor]
    gentle = gentle or [one for one in _connections(current, factors, price) if one.cost >= floor]
    if gentle:
        return min(gentle, key=lambda removal: removal.ratio).result
    return max(whole or removals, key=lambda one: one.cost).result if removals else None


def _operations(
    current: Architecture, worth: Mapping[Place, float], shared: bool, price: _Price
) -> list[_Removal]:
    """Every single operation that may go, with what that leaves and what it loses per saving."""
    before = price.cost(current)
    smaller = {place: without_operation(current, place, shared=shared) for place in worth}
    found = [_removal(smaller[p], p, value, before, price) for p, value in worth.items()]
    return [removal for removal in found if not (shared and removal.empties)]


def _connections(current: Architecture, factors: Factors, price: _Price) -> list[_Removal]:
    """Every single connection to an output that may go; others save no more than reading."""
    shared, before, found = len(factors) == 1, price.cost(current), []
    for place in connection_places(current, shared=shared):
        graph = current.blocks[place[0]]
        if graph.connections[place[1]].target == graph.output_node:
            value = connection_flows(graph, factors[place[0]])[place[1]]
            smaller = without_connection(current, place, shared=shared)
            found.append(_removal(smaller, place, value, before, price))
    return [removal for removal in found if not removal.empties]


def _removal(
    smaller: Architecture, place: Place, worth: float, before: float, price: _Price
) -> _Removal:
    after = price.cost(smaller)
    ratio = worth / max(before - after, 1e-9 * before) ** price.thrift
    return _Removal(smaller, after, ratio, not smaller.blocks[place[0]].kept_nodes)


def _drop_connections(current: Architecture, factors, shared: bool, limit: int) -> Architecture:
    """Remove the connections with the least flow, keeping each operation's largest input."""
    graphs = list(current.blocks[:1] if shared else current.blocks)
    excess = sum(graph.num_live for graph in graphs) - limit
    ranked = sorted(
        (flow, place, i)
        for place, graph in enumerate(graphs)
        for i, flow in enumerate(connection_flows(graph, factors[place]))
        if graph.live[i]
    )
    for _, place, i in ranked:
        if excess <= 0:
            break
        graph = graphs[place]
        keep = [j != i for j in range(len(graph.live))]
        pruned = graph.prune(keep)
        cleaned = pruned.clean()
        if cleaned.kept_nodes == graph.kept_nodes:
            excess -= graph.num_live - cleaned.num_live
            graphs[place] = cleaned
    for place, graph in enumerate(graphs):
        current = with_graph(current, place, graph, shared=shared)
    return current


def _num_connections(architecture: Architecture, shared: bool) -> int:
    graphs = architecture.blocks[:1] if shared else architecture.blocks
    return sum(graph.num_live for graph in graphs)
