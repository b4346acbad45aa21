"""What a plan ranks factors by: where they would be if none had been pressed to 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsonas._utils import mask_like


class Ranking:
    """Follow where factors would be without the pressing of a plan.

    What is pressed to 0 would lose its rank by that alone, and then go whatever the loss says. So
    it is ranked by the factor and, added to that, what pressing has taken from it: a gradient that
    resists brings it back among those that stay. What was taken from a factor that is no longer
    pressed counts half at every rebuild.

    A supernet that is judged once, before anything is pressed, is ranked by how far the gradients
    alone would have moved its factors until it is ``held``.

    Args:
        vectors: the vectors of scaling factors.

    Attributes:
        values: to rank by, shaped as the vectors; they are up to date after ``settle``.
        pressed: which factors are pressed from now on: 1, the others 0.
        held: whether values stay as they are.

    Example:
        >>> vector = nn.Parameter(torch.tensor([1.0, 0.5]))
        >>> ranking = Ranking([vector])
        >>> ranking.pressed = [torch.tensor([0.0, 1.0])]
        >>> vector.grad = torch.tensor([0.0, -2.0])
        >>> ranking.pull(0.5)
        >>> _ = vector.data.copy_(torch.tensor([1.4, 0.0]))
        >>> ranking.settle()
        >>> ranking.values
        [tensor([1.4000, 1.5000])]
    """

    def __init__(self, vectors: Sequence[nn.Parameter]) -> None:
        self._vectors, self.held = vectors, False
        self.values = [vector.detach().clone() for vector in vectors]
        self._taken = [torch.zeros_like(vector) for vector in self.values]
        self.pressed = [torch.zeros_like(vector) for vector in self.values]

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """Add how far the gradients of a step would move the factors, ``rate`` for each unit."""
        if self.held:
            return
        found = [
            (value, vector.grad)
            for value, vector in zip(self.values, self._vectors, strict=True)
            if vector.grad is not None
        ]
        if found:
            values, gradients = map(list, zip(*found, strict=True))
            torch._foreach_add_(values, gradients, alpha=-rate)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def settle(self, *, last: bool = False) -> None:
        """Compute what pressing has taken, at a rebuild; nothing while ranks are held.

        If it is the ``last``, no step follows in which a factor could rise again: nothing counts
        but the factors, unless those of a vector are all 0.
        """
        if self.held:
            return
        lists = self._vectors, self.values, self._taken, self.pressed
        for vector, value, taken, pressed in zip(*lists, strict=True):
            taken.copy_(torch.where(pressed > 0, (value - vector).clamp(min=0), taken / 2))
            if last and bool((vector > 0).any()):
                taken.zero_()
            value.copy_(vector + taken)

    def drop(self, live: Sequence[Sequence[bool]]) -> None:
        """Forget what has been removed; ``live`` is what is left, for every factor."""
        for value, taken, flags in zip(self.values, self._taken, live, strict=True):
            mask = mask_like(flags, value)
            value.mul_(mask)
            taken.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """Collect copies of what has been noted."""
        lists = {name: [tensor.clone() for tensor in tensors] for name, tensors in self._lists()}
        return {**lists, "held": self.held}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.held = state["held"]
        for name, tensors in self._lists():
            for tensor, value in zip(tensors, state[name], strict=True):
                tensor.copy_(value)

    def _lists(self) -> list[tuple[str, list[Tensor]]]:
        """All that changes, by name."""
        return [("values", self.values), ("taken", self._taken), ("pressed", self.pressed)]
