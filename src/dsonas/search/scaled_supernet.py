"""A model that ``scale_connections`` has prepared, as a supernet of the ``Searcher``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from dsonas.cost import Budget
from dsonas.search.search_config import SearchConfig
from dsonas.sparse import (
    Choices,
    ProximalNAG,
    arguments,
    list_connections,
    normalise_factors,
    prune_model,
    scaling_factors,
)

Structure = tuple[tuple[bool, ...], ...]
"""For every input of every sum and concatenation whether it is live."""


class ScaledSupernet:
    """A traced model with a factor on every input of its sums and concatenations.

    What is removed stays in the model as zeros until the end: ``prune_model`` takes it out of the
    result.

    Args:
        model: what ``scale_connections`` has returned.
        example: what ``scale_connections`` has been given, by which costs are counted.
        budget: upper bounds on the result.
        config: when the structure is held; without a budget, its share of the cost.
        cost: the user's function of a structure, in the measure that the budget bounds first.

    Raises:
        ValueError: if nothing keeps the budget.
    """

    def __init__(
        self,
        model: fx.GraphModule,
        example: Any,
        budget: Budget | None,
        config: SearchConfig,
        cost: Callable[[Structure], float] | None = None,
    ) -> None:
        if example is None:
            raise ValueError("example must be an input of the model, by which costs are counted")
        self.model, self.example, self.config = model, example, config
        self.leading = (budget or Budget()).leading
        self._own_cost, self._counted = cost, {}
        self.live: Structure = tuple((True,) * vector.numel() for vector in self.vectors())
        self._whole = self.cost(self.live)
        self._limits = {} if budget is None else budget.of(self._measure_whole).bounds
        self._floor = self._smallest()
        least, limit = self.cost(self._floor), self._limits.get(self.leading, float("inf"))
        if least > limit:
            raise ValueError(
                f"budget.{self.leading} must be at least {least:.6g}, what is left without all "
                f"branches that can go, got {limit:.6g}"
            )

    def _measure_whole(self, name: str) -> float:
        return self._count(self.live)[name]

    def _count(self, structure: Structure) -> dict[str, float]:
        """Count a structure; infinite where nothing is left of the model."""
        if structure not in self._counted:
            self._counted[structure] = self._count_anew(structure)
        return self._counted[structure]

    def _count_anew(self, structure: Structure) -> dict[str, float]:
        replica = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            for vector, flags in zip(scaling_factors(replica), structure, strict=True):
                vector.copy_(torch.tensor(flags, dtype=vector.dtype))
            try:
                pruned = prune_model(replica, self.example)
            except ValueError:  # no path is left
                return {"macs": float("inf"), "params": float("inf")}
            args, kwargs = arguments(pruned, self.example)
            with FlopCounterMode(display=False) as counter:
                pruned(*args, **kwargs)
        params = sum(parameter.numel() for parameter in pruned.parameters())
        return {"macs": counter.get_total_flops() / 2, "params": float(params)}

    def cost(self, structure: Structure) -> float:
        """Compute what the pruned model costs."""
        if self._own_cost is not None:
            return float(self._own_cost(structure))
        found = self._count(structure)
        if self.leading not in found:
            raise ValueError(f"budget.{self.leading} is not counted for a model: give cost=")
        return found[self.leading]

    def vectors(self) -> list[nn.Parameter]:
        """List the factors of every sum and concatenation."""
        return scaling_factors(self.model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """List all parameters that are left."""
        return self.model.parameters()

    def flags(self, structure: Structure) -> list[Sequence[bool]]:
        """Tell which inputs a structure has."""
        return list(structure)

    def penalties(self, gamma: float) -> list[Tensor | float]:
        """Compute Gamma of every vector: the same for all."""
        return [gamma for _ in self.live]

    def normalise(self, optimizer: ProximalNAG, staying: Structure) -> None:
        """Give the factors of every sum of which something stays a mean square of 1."""
        sums = zip(self.vectors(), staying, strict=True)
        normalise_factors([vector for vector, flags in sums if any(flags)], optimizer)

    def alive(self, planned: Structure | None = None) -> Structure:
        """Find the live inputs with positive factors or in a plan; at least one path stays."""
        kept = planned or [[False] * len(flags) for flags in self.live]
        found = tuple(
            tuple(
                was and (value > 0 or stays)
                for was, value, stays in zip(flags, vector.tolist(), keeps, strict=True)
            )
            for flags, vector, keeps in zip(self.live, self.vectors(), kept, strict=True)
        )
        return self.live if self._count(found)["macs"] == float("inf") else found

    def planned(self, progress: float, ranks: Sequence[Tensor]) -> Structure | None:
        """Find what is left when the cost falls in equal ratios to the budget until it is held."""
        final = self._limits.get(self.leading)
        if final is None:
            if self.config.keep_cost is None:
                return None
            final = self.config.keep_cost * self._whole
        part = min(1.0, progress / self.config.hold_from)
        return self._cut_to(part, final, ranks) or self.live

    def _cut_to(self, part: float, final: float, ranks: Sequence[Tensor]) -> Structure | None:
        """Remove inputs, the smallest shares first, until a cost is met; None if it cannot be.

        What the cheapest structure is made of stays, so that no choice leads to a dead end.
        """
        allowed = self._whole * (min(final, self._whole) / self._whole) ** part
        current = self.live
        if self.cost(current) <= allowed:
            return current
        for i, j in self._ranked(ranks):
            if not self._floor[i][j]:
                current = _without(current, i, j)
                if self.cost(current) <= allowed:
                    return current
        return None

    def _ranked(self, ranks: Sequence[Tensor]) -> list[tuple[int, int]]:
        shares = []
        for i, (vector, flags) in enumerate(zip(ranks, self.live, strict=True)):
            squares = vector.detach().square()
            total = float(squares.sum()) or 1.0
            live = [j for j, alive in enumerate(flags) if alive]
            shares += [(float(squares[j]) / total, i, j) for j in live]
        return [(i, j) for _, i, j in sorted(shares)]

    def _smallest(self) -> Structure:
        """Remove, one by one, what saves most, as long as anything saves something."""
        current, cost = self.live, self._whole
        places = [(i, j) for i, flags in enumerate(self.live) for j, _ in enumerate(flags)]
        saved = {place: cost - self.cost(_without(current, *place)) for place in places}
        for place in sorted(places, key=lambda place: -saved[place]):
            smaller = _without(current, *place)
            if self.cost(smaller) < cost:
                current, cost = smaller, self.cost(smaller)
        return current

    def remove(self, structure: Structure, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Note what is removed; the weights go at the end."""
        self.live = structure

    def final(self) -> nn.Module:
        """Prune a copy of the model."""
        return prune_model(self.model, self.example)

    def choices(self) -> Choices:
        """Name the inputs that are left, by sum or concatenation."""
        found: dict[str, list[str]] = {}
        for link in list_connections(self.model):
            names = found.setdefault(link.target, [])
            if link.factor != 0:
                names.append(link.source)
        return Choices(found)

    def to_state(self, structure: Structure) -> list[list[bool]]:
        """Turn a structure into lists."""
        return [list(flags) for flags in structure]

    def from_state(self, state: Sequence[Sequence[bool]]) -> Structure:
        """Read ``to_state``."""
        return tuple(tuple(flags) for flags in state)


def _without(structure: Structure, i: int, j: int) -> Structure:
    flags = tuple(alive and k != j for k, alive in enumerate(structure[i]))
    return (*structure[:i], flags, *structure[i + 1 :])
