"""The penalty of each scaling factor: uniform, or adapted to what its connection costs.

A penalty is one class with ``weights(supernet, live)``: what Gamma of every connection is in units
of gamma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dsonas.cost import CostFunction, block_cost, operation_cost
from dsonas.graph import Architecture, BlockGraph

Rows = list[list[float]]
"""A number for every scaling factor, packed order, a row for each of ``Architecture.cells``."""


class Penalty(Protocol):
    """How strongly each connection is pressed."""

    def weights(self, supernet: Architecture, live: Architecture) -> Rows:
        """Compute Gamma / gamma of every connection.

        Args:
            supernet: the complete architecture.
            live: what is left of it.
        """
        ...


class Uniform:
    """The same for all connections."""

    def weights(self, supernet: Architecture, live: Architecture) -> Rows:
        """Return 1 everywhere."""
        return [[1.0] * len(cell.live) for cell in supernet.cells]


class AdaptiveMacs:
    """In proportion to the share of its multiply-adds that a block still has.

    Blocks are pruned evenly then. Source: arXiv 1811.01567, eq. 9.
    """

    def weights(self, supernet: Architecture, live: Architecture) -> Rows:
        """Compute the share that each cell still has; in the share space, that of all blocks."""
        whole, now = _cell_macs(supernet), _cell_macs(live)
        return [
            [after / before] * len(cell.live)
            for cell, before, after in zip(supernet.cells, whole, now, strict=True)
        ]


class AdaptiveMemory:
    """In proportion to the memory access of what a connection feeds, over the largest of them.

    Source: arXiv 1811.01567, eq. 10.
    """

    def weights(self, supernet: Architecture, live: Architecture) -> Rows:
        """Compute the memory access of the fed operation, or of one branch of the output."""
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


class AdaptiveLatency:
    """From 0.5 to 1, most for the connection without which the network is fastest.

    Args:
        latency: milliseconds of an architecture.

    Source: the journal version of arXiv 1811.01567.
    """

    def __init__(self, latency: CostFunction) -> None:
        self.latency = latency

    def weights(self, supernet: Architecture, live: Architecture) -> Rows:
        """Measure the network without each live connection; dead ones get 1."""
        without = [
            [
                self.latency(live.without_connection((place, i))) if alive else None
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


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "uniform": Uniform, "adaptive_macs": AdaptiveMacs, "adaptive_memory": AdaptiveMemory,
    "adaptive_latency": AdaptiveLatency,
}  # fmt: skip


def penalty_of(kind: str, latency: CostFunction | None = None) -> Penalty:
    """Make one of ``PENALTIES`` by its name; ``adaptive_latency`` needs ``latency``.

    Raises:
        ValueError: if that is missing.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> penalty_of("adaptive_macs").weights(supernet, supernet)[0][:2]
        [1.0, 1.0]
    """
    if kind != "adaptive_latency":
        return PENALTIES[kind]()
    if latency is None:
        raise ValueError("latency must be given for search.penalty_kind adaptive_latency")
    return AdaptiveLatency(latency)


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
