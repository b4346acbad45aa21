"""The penalty of each scaling factor: uniform, or adapted to what its connection costs."""

from __future__ import annotations

from collections.abc import Callable

from dsonas.cost import block_cost, operation_cost, without_connection
from dsonas.graph import Architecture, BlockGraph

PENALTIES = ("uniform", "adaptive_macs", "adaptive_memory", "adaptive_latency")
Latency = Callable[[Architecture], float]


def connection_penalties(
    kind: str,
    penalty: float,
    supernet: Architecture,
    current: Architecture,
    sharing: str,
    latency: Latency | None = None,
) -> list[list[float]]:
    """The penalty of every scaling factor of every packed vector.

    Args:
        kind: ``uniform``: gamma for all. ``adaptive_macs``: in proportion to the share of its
            multiply-adds that a block still has, so that blocks are pruned evenly (eq. 9).
            ``adaptive_memory``: in proportion to the memory access of the operation that a
            connection feeds, or of its output branch, over the largest of them (eq. 10).
            ``adaptive_latency``: from half of gamma to gamma, most for the connection without
            which the network is fastest.
        penalty: gamma, >= 0.
        supernet: the complete architecture.
        current: the live architecture.
        sharing: ``share`` gives one vector for all blocks, ``full`` one for each.
        latency: milliseconds of an architecture, for ``adaptive_latency``.

    Raises:
        ValueError: if the kind is unknown, or the latency function is missing.

    Source: arXiv 1811.01567, eq. 9 and 10, and the journal version for latency.
    """
    if kind == "adaptive_memory":
        shares = _memory_shares(supernet, sharing)
    elif kind == "adaptive_latency":
        if latency is None:
            raise ValueError("latency must be given for search.penalty_kind adaptive_latency")
        shares = _latency_shares(current, sharing, latency)
    else:
        values = block_penalties(kind, penalty, supernet, current, sharing)
        size = len(supernet.blocks[0].live)
        return [[value] * size for value in values]
    return [[penalty * share for share in row] for row in shares]


def _memory_shares(supernet: Architecture, sharing: str) -> list[list[float]]:
    skeleton = supernet.skeleton
    rows = [
        [
            _target_bytes(graph, target, skeleton.channels[s], skeleton.stage_sizes[s])
            for target in graph.target_index
        ]
        for graph, s in zip(supernet.blocks, skeleton.block_stages, strict=True)
    ]
    if sharing == "share":
        rows = [[sum(column) for column in zip(*rows, strict=True)]]
    largest = max(max(row) for row in rows)
    return [[value / largest for value in row] for row in rows]


def _target_bytes(graph: BlockGraph, target: int, channels: int, size: int) -> float:
    """Memory access of the operation that is fed, or of one branch of the output convolution."""
    if target < graph.output_node:
        return operation_cost(graph.operation(target), channels, size).memory_bytes
    return 4 * channels * (2 * size * size + channels)


def _latency_shares(current: Architecture, sharing: str, latency: Latency) -> list[list[float]]:
    shared = sharing == "share"
    graphs = current.blocks[:1] if shared else current.blocks
    without = [
        [_latency_without(current, place, i, shared, latency) for i in range(len(graph.live))]
        for place, graph in enumerate(graphs)
    ]
    known = [value for row in without for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [[_latency_share(value, low, high) for value in row] for row in without]


def _latency_without(
    current: Architecture, place: int, connection: int, shared: bool, latency: Latency
) -> float | None:
    """Milliseconds of the derived network without a live connection; None if it is dead."""
    if not current.blocks[place].live[connection]:
        return None
    return latency(without_connection(current, (place, connection), shared=shared))


def _latency_share(value: float | None, low: float, high: float) -> float:
    """From 0.5 for the slowest network to 1 for the fastest; 1 for dead connections."""
    if value is None or high == low:
        return 1.0
    return 0.5 + 0.5 * (high - value) / (high - low)


def block_penalties(
    kind: str, penalty: float, supernet: Architecture, current: Architecture, sharing: str
) -> list[float]:
    """The penalty of each packed vector of scaling factors, for the kinds that have one.

    Args:
        kind: ``uniform`` or ``adaptive_macs``, see ``connection_penalties``.
        penalty: gamma, >= 0.
        supernet: the complete architecture.
        current: the live architecture.
        sharing: ``share`` gives one value for all blocks, ``full`` one for each.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in PENALTIES:
        raise ValueError(f"search.penalty_kind must be one of {PENALTIES}, got {kind!r}")
    skeleton = supernet.skeleton
    before, after = (
        [
            block_cost(graph, skeleton.channels[s], skeleton.stage_sizes[s], False).macs
            for graph, s in zip(net.blocks, skeleton.block_stages, strict=True)
        ]
        for net in (supernet, current)
    )
    if sharing == "share":
        before, after = [sum(before)], [sum(after)]
    if kind == "uniform":
        return [penalty] * len(before)
    return [penalty * now / whole for now, whole in zip(after, before, strict=True)]
