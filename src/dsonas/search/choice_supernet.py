"""A model with ``LayerChoice`` and ``InputChoice`` as a supernet of the ``Searcher``."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from dsonas._utils import mask_like
from dsonas.cost import Budget, Candidate, Chosen, Item, count_choices
from dsonas.nn import ScaledModule
from dsonas.search.dead_ends import find_dead_end
from dsonas.search.knapsack import Bound, best_choices, smallest_choices
from dsonas.search.scaled_supernet import ScaledSupernet
from dsonas.search.search_config import SearchConfig
from dsonas.sparse import (
    Choice,
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

Structure = dict[str, tuple[str, ...]]
"""The names that are left, by label; treated as a value."""

LEAST = 0.01  # score of the lowest candidate, where the highest has 1
JUDGED = 2 / 3  # of the part of a search after which the structure is held
TRIES = 20  # combinations of the best scores that are looked at for dead ends
SAMPLES = 30  # random combinations on which a user's cost function is tried
MAX_TABLE = 100_000  # combinations whose costs are all asked for, where they are no sums


class ChoiceSupernet:
    """A model with choices; its structures are the names that are left, by label.

    Args:
        model: with ``LayerChoice`` or ``InputChoice``.
        example: an input, a mapping of keyword arguments, or a tuple of inputs, by which costs are
            counted and the candidates' normalisations made; None: these are made by the first
            batch.
        budget: upper bounds on the result.
        config: when the structure is held, and the penalty.
        cost: the user's function of a structure, in the measure that the budget bounds first.
        seed: decides between candidates that score the same.

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
        self.keep = {label: found[0][1].keep for label, found in self.places.items()}
        self.live: Structure = {label: found[0][1].live for label, found in self.places.items()}
        self.names = dict(self.live)
        self._tie()
        self._ties = random.Random(seed)
        self._order = {label: self._ties.random() for label in self.live}
        self._example, self._counted = example, None
        if example is not None or cost is None or (budget and len(budget.given) > 1):
            self._count(example)
        self.leading = (budget or Budget()).leading
        self._own_cost = cost
        self._table: list[tuple[Structure, float]] | None = None
        self._dead_ends: list[frozenset[Candidate]] = []
        self._dead_end: frozenset[Candidate] | None = None  # in what is left
        self._solved: tuple[object, Structure | None] = (None, None)
        self._bounds = self._make_bounds(budget)
        self._check_reachable()
        if example is not None:  # it fails now if it ever will: costs are counted without numbers
            find_dead_end(model, self.live, example)

    def _tie(self) -> None:
        """Give all places with one label the same factors, which learn in a frozen model too."""
        for places in self.places.values():
            places[0][1].factors.requires_grad_()
            for _, choice in places[1:]:
                choice.factors = places[0][1].factors
        self._vectors = [places[0][1].factors for places in self.places.values()]
        self._parameters = list(self.model.parameters())

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
        """The bounds of a budget as sums of parts."""
        if budget is None:
            return []
        budget = budget.of(lambda name: self.cost(self.live, name))
        found = []
        for name, limit in budget.bounds.items():
            if name == self.leading and self._own_cost is not None:
                items = additive_items(self._own_cost, self.live, self.keep, self._ties)
                if items is None:
                    self._table = _price_all(self._own_cost, self.live, self.keep)
                    self._limit = limit
                    continue
            elif self._counted is not None and name in self._counted.parts:
                items = self._counted.parts[name]
            else:
                raise ValueError(
                    f"budget.{name} is not counted for a model with choices: give cost=, a "
                    "function of the choices, or bound macs or params"
                )
            found.append(Bound(name, items, limit))
        return found

    def _check_reachable(self) -> None:
        if self._solve({}, self.live, ()) is None:
            if self._table is not None:
                smallest = min(price for _, price in self._table)
                raise ValueError(
                    f"budget.{self.leading} must be at least {smallest:.6g}, the smallest cost of "
                    f"this model, got {self._limit:.6g}"
                )
            for bound in self._bounds:
                least = smallest_choices(self.live, bound.items)
                smallest = sum(item.amount for item in bound.items if item.is_in(least))
                if smallest > bound.limit:
                    raise ValueError(
                        f"budget.{bound.name} must be at least {smallest:.6g}, the smallest cost "
                        f"of this model, got {bound.limit:.6g}"
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
        return self._vectors

    def parameters(self) -> list[nn.Parameter]:
        """List all parameters that are left, in the order of the whole model.

        A module that stands in several places comes later in the model once the first is gone.
        """
        return self._parameters

    def flags(self, structure: Structure) -> list[Sequence[bool]]:
        """Tell which candidates a structure has."""
        return [
            [name in structure.get(label, ()) for name in places[0][1].names]
            for label, places in self.places.items()
        ]

    def measured(self) -> dict[str, float]:
        """Count what is left and what it costs, for the log."""
        left = {"live_connections": sum(map(len, self.choices().values()))}
        return {**left, **{name: int(self.cost(self.live, name)) for name in ("macs", "params")}}

    def logged_factors(self) -> list[nn.Parameter]:
        """List the vectors whose course is logged: all."""
        return self._vectors

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
        if progress <= self.judged:
            return self.live
        scores = self.scores(ranks)
        if progress >= 1:  # no step follows in which a factor at 0 could rise again
            scores = {
                key: score * (self._factors(key[0])[key[1]] > 0) for key, score in scores.items()
            }
        question = scores, self.live  # the same at every progress that a rebuild looks at
        if question != self._solved[0]:
            self._solved = question, self._best(*question)
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
        share = min(1.0, (progress - self.judged) / (self.config.hold_from - self.judged))
        start = sum(len(places[0][1].names) for places in self.places.values())
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
            every = self.places[label][0][1].names
            values = {n: v for n, v in zip(every, vector.tolist(), strict=True) if n in names}
            lowest, highest = min(values.values()), max(values.values())
            least = LEAST * (highest - lowest or 1.0)
            found |= {(label, name): value - lowest + least for name, value in values.items()}
        return found

    def _factors(self, label: str) -> dict[str, float]:
        choice = self.places[label][0][1]
        return dict(zip(choice.names, choice.factors.tolist(), strict=True))

    def _best(self, scores: Mapping[Candidate, float], options: Structure) -> Structure | None:
        """Find the best combination without dead ends; with some, if all that are tried have."""
        first = None
        for _ in range(TRIES):
            best = self._solve(scores, options, self._dead_ends)
            if best is None:
                break
            example = self._example
            dead_end = None if example is None else find_dead_end(self.model, best, example)
            if dead_end is None:
                self._dead_end = None
                return best
            self._dead_ends.append(dead_end)
            if first is None:
                first, self._dead_end = best, dead_end
        return first or self._solve(scores, options, ())

    def _solve(
        self,
        scores: Mapping[Candidate, float],
        options: Structure,
        apart: Sequence[Set[Candidate]],
    ) -> Structure | None:
        if self._table is None:
            return best_choices(options, self.keep, scores, self._bounds, apart)
        able = [
            structure
            for structure, price in self._table
            if price <= self._limit
            and all(set(names) <= set(options[label]) for label, names in structure.items())
            and all(bound.keeps(structure) for bound in self._bounds)
            and not any(all(n in structure[k] for k, n in together) for together in apart)
        ]

        def worth(structure: Structure) -> float:
            return sum(
                scores.get((k, name), 0.0) for k, names in structure.items() for name in names
            )

        return max(able, key=worth, default=None)

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
                removed += _candidates(choice, gone)
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

    def to_state(self, structure: Structure) -> dict[str, list[str]]:
        """Turn a structure into lists."""
        return {label: list(names) for label, names in structure.items()}

    def from_state(self, state: Mapping[str, Sequence[str]]) -> Structure:
        """Read ``to_state``."""
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


def _candidates(choice: Choice, names: Sequence[str]) -> list[nn.Module]:
    return [choice[name] for name in names] if isinstance(choice, LayerChoice) else []


def forget_modules(
    optimizers: Iterable[torch.optim.Optimizer], modules: Sequence[nn.Module], left: Set[int]
) -> None:
    """Take the parameters of removed modules out of optimizers, so that they hold no memory.

    Args:
        optimizers: changed in place.
        modules: what was removed.
        left: the ids of parameters that stay: a module may stand in several places.
    """
    every = (parameter for module in modules for parameter in module.parameters())
    gone = {id(parameter): parameter for parameter in every if id(parameter) not in left}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in gone.values():
            optimizer.state.pop(parameter, None)


def additive_items(
    cost: Callable[[Chosen], float],
    options: Structure,
    keep: Mapping[str, int | None],
    generator: random.Random,
) -> list[Item] | None:
    """Write a user's cost function as a sum of parts, one for each candidate.

    Returns:
        The parts; None if the function is no such sum, which random combinations are tried for.
    """
    first = {label: names[:1] for label, names in options.items()}
    base = cost(first)
    parts: list[tuple[float, str, str]] = []
    for label, names in options.items():
        for name in names[1:]:
            if keep[label] == 1:
                amount = cost({**first, label: (name,)}) - base
            else:
                amount = cost({**first, label: (names[0], name)}) - base
            parts.append((amount, label, name))
        if keep[label] != 1 and len(names) > 1:
            both = cost({**first, label: names[:2]})
            own = both - cost({**first, label: names[1:2]})
            parts.append((own, label, names[0]))
            base -= own
    items = [Item(base, (frozenset(),))]
    items += [Item(amount, (frozenset({(label, name)}),)) for amount, label, name in parts]
    for _ in range(SAMPLES):
        some = {label: _some(names, keep[label], generator) for label, names in options.items()}
        expected = sum(item.amount for item in items if item.is_in(some))
        if not math.isclose(expected, cost(some), rel_tol=1e-6, abs_tol=1e-9 * abs(base)):
            return None
    return items


def _some(names: Sequence[str], keep: int | None, generator: random.Random) -> tuple[str, ...]:
    size = generator.randint(1, min(len(names), keep or len(names)))
    return tuple(sorted(generator.sample(names, size), key=names.index))


def _price_all(
    cost: Callable[[Chosen], float], options: Structure, keep: Mapping[str, int | None]
) -> list[tuple[Structure, float]]:
    """The cost of every combination, for functions that are no sum over the candidates.

    Raises:
        ValueError: if there are too many.
    """
    sizes = {
        label: range(1, min(len(names), keep[label] or len(names)) + 1)
        for label, names in options.items()
    }
    count = math.prod(
        sum(math.comb(len(options[label]), size) for size in sizes[label]) for label in options
    )
    if count > MAX_TABLE:
        raise ValueError(
            f"cost must be a sum over the candidates where there are more than {MAX_TABLE} "
            f"combinations, and it is none; this model has {count:.3g}"
        )
    sets = [
        [(label, some) for size in sizes[label] for some in combinations(options[label], size)]
        for label in options
    ]
    return [(dict(some), cost(dict(some))) for some in product(*sets)]
