"""The scaling factors of a supernet and the architecture they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from dsonas._utils import send
from dsonas.graph import REDUCTION_OPERATIONS, Architecture, BlockGraph


class ScaledModule(nn.Module):
    """A module whose weights and scaling factors are trained in turn: the base of supernets."""

    def weights(self) -> Sequence[nn.Parameter]:
        """Every parameter that is trained and no scaling factor."""
        raise NotImplementedError

    def factors(self) -> Sequence[nn.Parameter]:
        """Every scaling factor."""
        raise NotImplementedError

    def structure(self) -> object:
        """What is left of the supernet; another object after every removal."""
        raise NotImplementedError

    def train_only(self, part: str) -> None:
        """Ask for gradients of ``weights`` or ``factors`` alone; the others cost nothing.

        Raises:
            ValueError: if ``part`` is neither.
        """
        if part not in ("weights", "factors"):
            raise ValueError(f"part must be 'weights' or 'factors', got {part!r}")
        for parameter in self.weights():
            parameter.requires_grad_(part == "weights")
        for factor in self.factors():
            factor.requires_grad_(part == "factors")


class ScalingFactors(nn.Module):
    """One packed vector per set of blocks, one pair per reduction block.

    A vector keeps its full length through the whole search: the entry of a removed connection is
    exactly 0, gets no gradient, and so stays 0 under the proximal step.

    Args:
        blocks: packed vectors, one for all blocks (share) or one for each (full).
        reductions: a vector of two for each reduction block.
    """

    def __init__(self, blocks: Sequence[Tensor], reductions: Sequence[Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(vector) for vector in blocks])
        self.reductions = nn.ParameterList([nn.Parameter(vector) for vector in reductions])

    @classmethod
    def ones(cls, architecture: Architecture) -> ScalingFactors:
        """The start values: 1 everywhere, 0 where the architecture has no connection."""
        kind = torch.get_default_dtype()
        return cls(
            [torch.tensor(cell.live, dtype=kind) for cell in architecture.cells],
            [torch.tensor(live, dtype=kind) for live in architecture.reductions],
        )

    def for_block(self, block: int) -> Tensor:
        """The packed vector of a block."""
        return self.blocks[0 if len(self.blocks) == 1 else block]

    @torch.no_grad()
    def architecture(
        self, supernet: Architecture, kept: Architecture | None = None
    ) -> Architecture:
        """What is left of the supernet: live connections with a positive factor, cleaned.

        A reduction block whose factors are all 0 keeps its first live convolution. What is in
        ``kept``, with all reduction blocks, stays even at factor 0.
        """
        stays = [cell.live for cell in (kept or supernet.without_blocks()).cells]
        cells = [
            graph.prune([*map(max, (vector > 0).tolist(), flags)]).clean()
            for graph, vector, flags in zip(supernet.cells, self.blocks, stays, strict=True)
        ]
        reductions = (
            kept.reductions
            if kept
            else [
                _kept_reduction(vector.tolist(), live)
                for vector, live in zip(self.reductions, supernet.reductions, strict=True)
            ]
        )
        return replace(supernet.with_cells(cells), reductions=tuple(reductions))

    @torch.no_grad()
    def normalise(
        self, architecture: Architecture, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Give the live factors of every target in a block a mean square of 1.

        The factors of reduction blocks are left alone: their scale is not free, since the next
        block adds their features to others. See ``normalise_targets``.
        """
        for vector, graph in zip(self.blocks, architecture.cells, strict=True):
            normalise_targets(vector, graph, optimizer)


@torch.no_grad()
def normalise_targets(
    vector: Tensor, graph: BlockGraph, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Give the live factors of every target of a block a mean square of 1, in place.

    Call it after every step of ``ProximalNAG``. The network computes the same (up to the eps of
    BN): every target starts with a linear or positively homogeneous map and a BN, so the scale of
    its vector is free. But the penalty then acts on the shares of a vector, not on its scale, and
    the step size means the same all through the search. Momenta are scaled alike, and lose what
    points along the vector: no gradient does, and a vector pulled down by it would fall faster each
    time it is scaled up.

    ``vector`` has the shape (connections of the graph,), ``optimizer`` steps it.
    """
    sums = _target_sums(vector, graph)
    squares, counts = sums(vector.square()), sums(torch.ones_like(vector))
    scale = torch.where(squares > 0, (counts / squares.clamp(min=1e-30)).sqrt(), 1.0)
    vector.mul_(scale)
    if optimizer is not None and "momentum_buffer" in optimizer.state.get(vector, {}):
        momentum = optimizer.state[vector]["momentum_buffer"].mul_(scale)
        along = sums(momentum * vector) / sums(vector.square()).clamp(min=1e-30)
        momentum.sub_(along * vector)


def _target_sums(vector: Tensor, graph: BlockGraph) -> Callable[[Tensor], Tensor]:
    """A function that gives each factor the sum of values over the live factors of its target."""
    index, mask = _targets(graph, vector.dtype, vector.device)
    zeros = vector.new_zeros(graph.output_node + 1)
    return lambda values: zeros.index_add(0, index, values * mask)[index]


@lru_cache(maxsize=64)  # sent once for a structure, of some dozens of blocks
def _targets(graph: BlockGraph, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The target of every connection, and 1 where it is live."""
    live = torch.tensor(graph.live, dtype=dtype)
    return send(torch.tensor(graph.target_index), device), send(live, device)


def _kept_reduction(values: Sequence[float], live: Sequence[bool]) -> tuple[bool, ...]:
    positive = tuple(alive and value > 0 for value, alive in zip(values, live, strict=True))
    if any(positive):
        return positive
    kept = max(range(len(REDUCTION_OPERATIONS)), key=lambda i: (live[i], values[i]))
    return tuple(i == kept for i in range(len(REDUCTION_OPERATIONS)))
