"""What a search needs to know of a supernet: the base of the three kinds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dsonas.sparse import Choices, ProximalNAG

S = TypeVar("S")


class Supernet(Protocol[S]):
    """A module with scaling factors; ``S`` is a structure of it, an immutable value.

    Attributes:
        model: the module that is trained.
        live: the structure now.
        judged: the part of a search after which what goes is judged, once, by the gradients until
            then; in it nothing is pressed, and factors hardly move. None: at every rebuild.
        travel: how far a factor without gradient moves in all over a search with the penalty that
            is taken if none is given.
    """

    model: nn.Module
    live: S
    judged: float | None = None
    travel: float = 3.0

    def vectors(self) -> list[nn.Parameter]:
        """List the vectors of scaling factors; they keep their lengths, dead entries are 0."""
        ...

    def logged_factors(self) -> list[nn.Parameter]:
        """List the vectors whose course is logged."""
        return self.vectors()

    def parameters(self) -> Iterable[nn.Parameter]:
        """List all parameters that are left, in an order that no removal changes."""
        return self.model.parameters()

    def flags(self, structure: S) -> list[Sequence[bool]]:
        """Tell for every factor of every vector whether a structure has it."""
        ...

    def penalties(self, gamma: float) -> list[Tensor | float]:
        """Compute Gamma of every vector, from what is live."""
        ...

    def normalise(self, optimizer: ProximalNAG, staying: S) -> None:
        """Take out the scale of factors that is free, and the momenta along it.

        Args:
            optimizer: of the factors.
            staying: what is not being pressed to 0; a sum of which nothing stays is left alone.
        """
        ...

    def alive(self, planned: S | None = None) -> S:
        """Find what is left of the live structure, cleaned, without the factors at 0.

        What is ``planned`` stays though its factors may be 0.
        """
        ...

    def planned(self, progress: float, ranks: Sequence[Tensor]) -> S | None:
        """Find what the plan leaves of the live structure; None: there is no plan.

        Args:
            progress: part of the search, in [0, 1].
            ranks: what to rank factors by, shaped as ``vectors()``.
        """
        ...

    def remove(self, structure: S, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Remove physically what a structure lacks; weights and their momenta go on."""
        ...

    def cost(self, structure: S) -> float:
        """Compute the cost of a structure in the measure that the budget bounds first."""
        ...

    def measured(self) -> dict[str, float]:
        """Count what is left and what it costs, for the log."""
        ...

    def final(self) -> nn.Module:
        """Make the final network of the live structure, with copies of the weights."""
        ...

    def choices(self) -> Choices:
        """Name what is left, by label."""
        ...

    def to_state(self, structure: S) -> Any:
        """Turn a structure into plain values; the inverse of ``from_state``."""
        return structure

    def from_state(self, state: Any) -> S:
        """Read ``to_state``; a ValueError if it is of another supernet."""
        return state
