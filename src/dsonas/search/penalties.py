"""The penalty of each scaling factor: uniform, or adapted to what its connection costs.

A penalty is a function of the complete architecture, ``supernet``, and what is ``live`` of it, to
Gamma of every connection in units of gamma.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dsonas.cost import CostFunction, block_cost, operation_cost
from dsonas.graph import Architecture, BlockGraph

Rows = list[list[float]]
"""A number for every scaling factor, packed order, a row for each of ``Architecture.cells``."""
Penalty = Callable[[Architecture, Architecture], Rows]


def uniform(supernet: Architecture, live: Architecture) -> Rows:
    """Return 1 everywhere."""
    return [[1.0] * len(cell.live) for cell in supernet.cells]


def adaptive_macs(supernet: Architecture, live: Architecture) -> Rows:
    """Compute the share of its multiply-adds that a cell still has; blocks are pruned evenly then.

    In the share space it is the share of all blocks. Source: arXiv 1811.01567, eq. 9.
    """
    whole, now = _cell_macs(supernet), _cell_macs(live)
    return [
        [after / before] * len(cell.live)
        for cell, before, after in zip(supernet.cells, whole, now, strict=True)
    ]


def adaptive_memory(supernet: Architecture, live: Architecture) -> Rows:
    """Compute the memory access of what a connection feeds, over the largest of them.

    That is an operation, or one branch of the output. Source: arXiv 1811.01567, eq. 10.
    """
    skeleton = supernet.skeleton
    rows = [
        [
            _target_bytes(graph, target, skeleton.channels[s], skeleton.stage_sizes[s])
            for target in graph.target_index
        ]
        for graph, s in zip(supernet.blocks, skeleton.block_stages, strict=True)
    ]
    if supernet.sharing == "share":
        rows = [[sum(column) for column in zip(*rows, strict=True)]]
    largest = max(max(row) for row in rows)
    return [[value / largest for value in row] for row in rows]


def adaptive_latency(supernet: Architecture, live: Architecture, latency: CostFunction) -> Rows:
    """Give 0.5 to 1, most to the connection without which the network is fastest; 1 to dead ones.

    ``latency`` gives milliseconds. Source: the journal version of arXiv 1811.01567.
    """
    without = [
        [
            latency(live.without_connection((place, i))) if alive else None
            for i, alive in enumerate(cell.live)
        ]
        for place, cell in enumerate(live.cells)
    ]
    known = [value for row in without for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [
        [
            1.0 if value is None or high == low else 0.5 + 0.5 * (high - value) / (high - low)
            for value in row
        ]
        for row in without
    ]


PENALTIES: dict[str, Callable[..., Rows]] = {
    "uniform": uniform, "adaptive_macs": adaptive_macs, "adaptive_memory": adaptive_memory,
    "adaptive_latency": adaptive_latency,
}  # fmt: skip


def penalty_of(kind: str, latency: CostFunction | None = None) -> Penalty:
    """Get one of ``PENALTIES`` by its name; ``adaptive_latency`` needs ``latency``.

    Raises:
        ValueError: if that is missing.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> penalty_of("adaptive_macs")(supernet, supernet)[0][:2]
        [1.0, 1.0]
    """
    if kind != "adaptive_latency":
        return PENALTIES[kind]
    if latency is None:
        raise ValueError("latency must be given for search.penalty_kind adaptive_latency")
    return partial(adaptive_latency, latency=latency)


def _cell_macs(architecture: Architecture) -> list[int]:
    """Multiply-adds of the blocks of each cell."""
    skeleton = architecture.skeleton
    macs = [
        block_cost(graph, skeleton.channels[s], skeleton.stage_sizes[s], False).macs
        for graph, s in zip(architecture.blocks, skeleton.block_stages, strict=True)
    ]
    return [sum(macs)] if architecture.sharing == "share" else macs


def _target_bytes(graph: BlockGraph, target: int, channels: int, size: int) -> float:
    """Memory access of the operation that is fed, or of one branch of the output convolution."""
    if target < graph.output_node:
        return operation_cost(graph.operation(target), channels, size).memory_bytes
    return 4 * channels * (2 * size * size + channels)
