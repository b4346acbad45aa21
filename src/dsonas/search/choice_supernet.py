"""A model with ``LayerChoice`` and ``InputChoice`` as a supernet of the ``Searcher``."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsonas._utils import mask_like
from dsonas.cost import Budget, Candidate, Chosen, count_choices
from dsonas.nn import ScaledModule
from dsonas.search.dead_ends import find_dead_end
from dsonas.search.knapsack import Bound, Kept as Structure, best_choices, bound_own_cost
from dsonas.search.scaled_supernet import ScaledSupernet
from dsonas.search.search_config import SearchConfig
from dsonas.search.shrinking import forget_modules
from dsonas.search.supernets import Supernet
from dsonas.sparse import (
    Choices,
    LayerChoice,
    ProximalNAG,
    Zero,
    choices_of,
    chosen,
    copied,
    finalise,
    normalise_factors,
)

logger = logging.getLogger(__name__)

LEAST = 0.01  # score of the lowest candidate, where the highest has 1
JUDGED = 2 / 3  # of the part of a search after which the structure is held
TRIES = 20  # combinations of the best scores that are looked at for dead ends


class ChoiceSupernet(Supernet[Structure]):
    """A model with choices; its structures are the names that are left, by label.

    See ``Searcher`` for the arguments. By the example costs are counted and the candidates'
    normalisations made; without one, these are made by the first batch.

    Raises:
        ValueError: if choices with one label differ, or nothing keeps the budget.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        budget: Budget | None,
        config: SearchConfig,
        cost: Callable[[Chosen], float] | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.config = model, config
        self.judged = JUDGED * config.hold_from
        self.places = choices_of(model)
        self.first = {label: places[0][1] for label, places in self.places.items()}
        self.keep = {label: choice.keep for label, choice in self.first.items()}
        self.live: Structure = {label: choice.live for label, choice in self.first.items()}
        self.names = dict(self.live)
        for label, places in self.places.items():
            self.first[label].factors.requires_grad_()  # they learn in a frozen model too
            for _, choice in places:
                choice.factors = self.first[label].factors
        self._parameters = list(model.parameters())
        self._ties = random.Random(seed)
        self._order = {label: self._ties.random() for label in self.live}
        self._example, self._counted = example, None
        if example is not None or cost is None or (budget and len(budget.given) > 1):
            self._count(example)
        self.leading = (budget or Budget()).leading
        self._own_cost = cost
        self._dead_ends: list[frozenset[Candidate]] = []
        self._dead_end: frozenset[Candidate] | None = None  # in what is left
        self._sound: Structure | None = None  # the last one found to have none
        self._solved: tuple[object, Structure | None] = (None, None)
        self._bounds = self._make_bounds(budget)
        self._check_reachable()
        if example is not None:  # it fails now if it ever will: costs are counted without numbers
            find_dead_end(model, self.live, example)

    def _count(self, example: Any) -> None:
        if example is None:
            raise ValueError(
                "example must be an input of the model, by which costs are counted, got None: give "
                "one, or cost="
            )
        self._counted = count_choices(self.model, example)
        for label, places in self.places.items():
            for place, choice in places:
                if isinstance(choice, LayerChoice):
                    features = self._counted.features.get(place, {})
                    choice.prepare(features)
                    if not features and not all(isinstance(choice[n], Zero) for n in choice.live):
                        logger.warning(
                            "choice %r at %r is not run on the example, so it costs nothing, and "
                            "what is never run is chosen by chance and ends with a normalisation "
                            "that the first batch makes: call it in forward, or take it out",
                            label,
                            place,
                        )

    def _make_bounds(self, budget: Budget | None) -> list[Bound]:
        if budget is None:
            return []
        found = []
        for name, limit in budget.of(lambda name: self.cost(self.live, name)).bounds.items():
            if name == self.leading and self._own_cost is not None:
                own = self._own_cost, self.live, self.keep, self._ties
                found.append(bound_own_cost(name, limit, *own))
            elif self._counted is not None and name in self._counted.parts:
                found.append(Bound(name, self._counted.parts[name], limit))
            else:
                raise ValueError(
                    f"budget.{name} is not counted for a model with choices: give cost=, a "
                    "function of the choices, or bound macs or params"
                )
        return found

    def _check_reachable(self) -> None:
        if best_choices(self.live, self.keep, {}, self._bounds) is not None:
            return
        for bound in self._bounds:
            if (smallest := bound.smallest(self.live)) > bound.limit:
                raise ValueError(
                    f"budget.{bound.name} must be at least {smallest:.6g}, the smallest cost of "
                    f"this model, got {bound.limit:.6g}"
                )
        raise ValueError(
            f"budget {', '.join(f'{b.name} {b.limit:.6g}' for b in self._bounds)} cannot be "
            "met: no combination of candidates keeps all bounds together"
        )

    def cost(self, structure: Structure, measure: str | None = None) -> float:
        """Compute what the final network of a structure costs."""
        measure = measure or self.leading
        if measure == self.leading and self._own_cost is not None:
            return self._own_cost(structure)
        if self._counted is None or measure not in self._counted.parts:
            raise ValueError(f"{measure} is not counted for a model with choices: give cost=")
        return self._counted.cost(structure, measure)

    def vectors(self) -> list[nn.Parameter]:
        """List the factors of every label."""
        return [choice.factors for choice in self.first.values()]

    def parameters(self) -> list[nn.Parameter]:
        """List all parameters that are left, in the order of the whole model.

        A module that stands in several places comes later in the model once the first is gone.
        """
        return self._parameters

    def flags(self, structure: Structure) -> list[Sequence[bool]]:
        """Tell which candidates a structure has."""
        return [
            [name in structure.get(label, ()) for name in choice.names]
            for label, choice in self.first.items()
        ]

    def measured(self) -> dict[str, float]:
        """Count what is left and what it costs, for the log."""
        left = {"live_connections": sum(map(len, self.choices().values()))}
        return {**left, **{name: int(self.cost(self.live, name)) for name in ("macs", "params")}}

    def penalties(self, gamma: float) -> list[Tensor | float]:
        """Compute Gamma of every label: the same for all candidates."""
        return [gamma for _ in self.places]

    def normalise(self, optimizer: ProximalNAG, staying: Structure) -> None:
        """Give the factors of every label a mean square of 1."""
        normalise_factors(self.vectors(), optimizer)

    def alive(self, planned: Structure | None = None) -> Structure:
        """Find the candidates with positive factors or in a plan, at least one of each choice."""
        found = {}
        for label, names in self.live.items():
            factors, kept = self._factors(label), (planned or {}).get(label, ())
            stays = tuple(name for name in names if factors[name] > 0 or name in kept)
            found[label] = stays or (max(names, key=lambda name: factors[name]),)
        return found

    def planned(self, progress: float, ranks: Sequence[Tensor]) -> Structure:
        """Find what is left at ``progress``: the best within the budget, and not yet the others.

        From the time it is judged to the time the structure is held the number of candidates falls
        in equal ratios; the lowest scores go first.
        """
        hold = self.config.hold_from
        judged = JUDGED * hold
        if progress <= judged:
            return self.live
        scores = self.scores(ranks)
        if progress >= 1:  # no step follows in which a factor at 0 could rise again
            scores = {
                key: score * (self._factors(key[0])[key[1]] > 0) for key, score in scores.items()
            }
        question = scores, self.live  # the same at every progress that a rebuild looks at
        if question != self._solved[0]:
            self._solved = question, self._best(scores)
        best = self._solved[1]
        assert best is not None
        if progress >= 1:
            best = {
                label: tuple(n for n in names if scores[label, n] > 0) or names[:1]
                for label, names in best.items()
            }
        spare = sorted(
            (scores[label, name], self._order[label], label, name)
            for label, names in self.live.items()
            for name in names
            if name not in best[label]
        )
        share = min(1.0, (progress - judged) / (hold - judged))
        start = sum(len(choice.names) for choice in self.first.values())
        end = sum(map(len, best.values()))
        excess = sum(map(len, self.live.values())) - math.ceil(start * (end / start) ** share)
        gone = {(label, name) for _, _, label, name in spare[: max(0, excess)]}
        return {
            label: tuple(name for name in names if (label, name) not in gone)
            for label, names in self.live.items()
        }

    def scores(self, ranks: Sequence[Tensor]) -> dict[tuple[str, str], float]:
        """Score every live candidate, above 0, by how much its rank is above the lowest."""
        found = {}
        for (label, names), vector in zip(self.live.items(), ranks, strict=True):
            every = self.first[label].names
            values = {n: v for n, v in zip(every, vector.tolist(), strict=True) if n in names}
            lowest, highest = min(values.values()), max(values.values())
            least = LEAST * (highest - lowest or 1.0)
            found |= {(label, name): value - lowest + least for name, value in values.items()}
        return found

    def _factors(self, label: str) -> dict[str, float]:
        choice = self.first[label]
        return dict(zip(choice.names, choice.factors.tolist(), strict=True))

    def _best(self, scores: Mapping[Candidate, float]) -> Structure | None:
        """Find the best combination without dead ends; with some, if all that are tried have."""
        problem = self.live, self.keep, scores, self._bounds
        first = None
        for _ in range(TRIES):
            best = best_choices(*problem, self._dead_ends)
            if best is None:
                break
            example = self._example
            known = example is None or best == self._sound  # it stays so while others go
            dead_end = None if known else find_dead_end(self.model, best, example)
            if dead_end is None:
                self._dead_end, self._sound = None, best
                return best
            self._dead_ends.append(dead_end)
            if first is None:
                first, self._dead_end = best, dead_end
        return first or best_choices(*problem)

    @torch.no_grad()
    def remove(self, structure: Structure, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Remove candidates physically, in all their places.

        A choice whose factors have all come to 0 together would let nothing through any more; those
        that stay begin again.
        """
        removed: list[nn.Module] = []
        for label, places in self.places.items():
            gone = [name for name in self.live[label] if name not in structure[label]]
            for _, choice in places if gone else ():
                removed += [choice[n] for n in gone] if isinstance(choice, LayerChoice) else []
                choice.drop(gone)
        if removed:
            left = {id(parameter) for parameter in self.model.parameters()}
            self._parameters = [p for p in self._parameters if id(p) in left]
            forget_modules(optimizers, removed, left)
        self.live = {label: tuple(structure[label]) for label in self.live}
        for vector, flags in zip(self.vectors(), self.flags(self.live), strict=True):
            stays = mask_like(flags, vector)
            vector.copy_(torch.where((vector * stays > 0).any(), vector, stays))

    def final(self) -> nn.Module:
        """Make an ordinary module of a copy of the model; a dead end in it is told.

        There may be one where the budget leaves nothing else, or none of ``TRIES`` is without.
        """
        if self._dead_end:
            logger.warning(
                "what is left of the choices computes for nobody, or gives zeros, for no better "
                "combination was found: %s; raise the budget, or offer Zero() in fewer places",
                ", ".join(f"{label}: {name}" for label, name in sorted(self._dead_end)),
            )
        return finalise(copied(self.model))

    def choices(self) -> Choices:
        """Name what is left, by label; candidates of candidates that went are not listed."""
        return chosen(self.model)

    def from_state(self, state: Mapping[str, Sequence[str]]) -> Structure:
        """Read ``to_state``; a ValueError if it is of another supernet."""
        if state.keys() != self.live.keys():
            raise ValueError("the state must be of the same choices, but its labels are others")
        return {label: tuple(state[label]) for label in self.live}


class ChoiceNetwork(ScaledModule):
    """A model with choices, or a traced one, as the stages of a search train it, on images.

    Args:
        supernet: whose model it runs.
    """

    def __init__(self, supernet: ChoiceSupernet | ScaledSupernet) -> None:
        super().__init__()
        self.model: nn.Module = supernet.model
        self.supernet: Any = supernet
        factors = {id(vector) for vector in supernet.vectors()}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in factors]
        self._weights = supernet.live, trained

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits."""
        return self.model(images.clone(memory_format=torch.contiguous_format))  # takes any view()

    def weights(self) -> list[nn.Parameter]:
        """Every parameter that is left, is trained, and is no scaling factor."""
        live, trained = self._weights
        if live is not self.supernet.live:  # it has shrunk
            left = {id(parameter) for parameter in self.supernet.parameters()}
            trained = [parameter for parameter in trained if id(parameter) in left]
            self._weights = self.supernet.live, trained
        return trained

    def factors(self) -> list[nn.Parameter]:
        """The factors of every label."""
        return self.supernet.vectors()

    def structure(self) -> object:
        """What is left of the choices, or of the traced model."""
        return self.supernet.live
