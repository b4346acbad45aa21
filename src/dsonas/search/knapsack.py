"""Which candidates survive, decided together: at most so many of each choice, within a budget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from dsonas.cost import Candidate, Chosen, Item

NEGLIGIBLE = 1e-9  # of a score, by which the cheaper of equal choices wins
SAMPLES = 30  # random combinations on which a user's cost function is tried
MAX_TABLE = 100_000  # combinations whose costs are all asked for, where they are no sums

Kept = dict[str, tuple[str, ...]]
"""The names that stay, by label."""
Limits = Mapping[str, int | None]
"""How many may stay, by label; None: any number."""


class Bound(NamedTuple):
    """An upper bound on a cost: a sum of parts, or else a table of all combinations."""

    name: str  # of the measure
    items: Sequence[Item]  # the parts of the cost
    limit: float  # what it must not exceed
    table: Sequence[tuple[Kept, float]] = ()  # every combination with its cost, if it is no sum

    def keeps(self, kept: Chosen) -> bool:
        """Whether a combination, one of a table if there is one, keeps the bound."""
        return sum(item.amount for item in self.items if item.is_in(kept)) <= self.limit

    def smallest(self, options: Chosen) -> float:
        """Compute the smallest cost of all combinations."""
        if self.table:
            return min(price for _, price in self.table)
        least = smallest_choices(options, self.items)
        return sum(item.amount for item in self.items if item.is_in(least))


def bound_own_cost(
    name: str,
    limit: float,
    cost: Callable[[Chosen], float],
    options: Kept,
    keep: Limits,
    generator: random.Random,
) -> Bound:
    """Bound a user's function of a combination.

    Raises:
        ValueError: if it is no sum over the candidates, and there are too many combinations.
    """
    items = _additive_items(cost, options, keep, generator)
    if items is not None:
        return Bound(name, items, limit)
    return Bound(name, (), limit, _price_all(cost, options, keep))


def _additive_items(
    cost: Callable[[Chosen], float], options: Kept, keep: Limits, generator: random.Random
) -> list[Item] | None:
    """Write a cost as a sum of parts, one for each candidate; None if some combinations differ."""
    first = {label: names[:1] for label, names in options.items()}
    base = cost(first)
    parts: list[tuple[float, str, str]] = []
    for label, names in options.items():
        for name in names[1:]:
            some = (name,) if keep[label] == 1 else (names[0], name)
            parts.append((cost({**first, label: some}) - base, label, name))
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
    cost: Callable[[Chosen], float], options: Kept, keep: Limits
) -> list[tuple[Kept, float]]:
    """Ask for the cost of every combination; a ValueError if there are too many."""
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


def best_choices(
    options: Chosen,
    keep: Limits,
    scores: Mapping[Candidate, float],
    bounds: Sequence[Bound] = (),
    apart: Sequence[Set[Candidate]] = (),
) -> Kept | None:
    """Choose the candidates with the largest sum of scores that keep all bounds: exactly.

    An integer program, solved by HiGHS, or a look at all combinations where a bound has a table. Of
    every choice at least one candidate stays.

    Args:
        options: names to choose from, by label.
        keep: at most so many stay.
        scores: >= 0; missing ones are 0.
        bounds: upper bounds on costs; None is returned if nothing keeps them.
        apart: sets of candidates that must not all stay.

    Example:
        >>> items = [Item(10, (frozenset({("a", "x")}),)), Item(4, (frozenset({("a", "y")}),))]
        >>> scores = {("a", "x"): 0.9, ("a", "y"): 0.1}
        >>> best_choices({"a": ["x", "y"]}, {"a": 1}, scores, [Bound("macs", items, 5)])
        {'a': ('y',)}
    """
    if tables := [bound for bound in bounds if bound.table]:
        return _best_of_table(tables[0], options, scores, bounds, apart)
    program = _Program(options, keep)
    for together in apart:
        if together <= program.index.keys():
            row = {program.index[candidate]: 1.0 for candidate in together}
            program.rows.append((row, 0, len(row) - 1))
    sums = [(program.linear(bound.items), bound.limit) for bound in bounds]
    size = program.size
    objective = np.zeros(size)
    objective[: len(program.index)] = [-max(0.0, scores.get(c, 0.0)) for c in program.index]
    largest = max(1e-300, -objective.min(initial=0.0))
    for (constant, row), limit in sums:
        scale = max(limit - constant, 1.0)
        for index, amount in row.items():
            objective[index] += NEGLIGIBLE * largest * amount / scale
            if amount > limit - constant + 0.5:  # alone too much: numerics need not find it out
                program.upper[index] = 0
    for slack in (0.0, 1e-6, 1e-5, 1e-4):  # of a limit, for the tolerance of the solver
        limits = [(row, (limit - constant) * (1 - slack)) for (constant, row), limit in sums]
        kept = program.solve(objective, limits, options)
        if kept is None or all(bound.keeps(kept) for bound in bounds):
            return kept
    return None


def _best_of_table(
    priced: Bound,
    options: Chosen,
    scores: Mapping[Candidate, float],
    bounds: Sequence[Bound],
    apart: Sequence[Set[Candidate]],
) -> Kept | None:
    able = [
        kept
        for kept, price in priced.table
        if price <= priced.limit
        and all(set(names) <= set(options[label]) for label, names in kept.items())
        and all(bound.keeps(kept) for bound in bounds)
        and not any(all(name in kept[label] for label, name in together) for together in apart)
    ]

    def worth(kept: Kept) -> float:
        return sum(scores.get((k, name), 0.0) for k, names in kept.items() for name in names)

    return max(able, key=worth, default=None)


def smallest_choices(options: Chosen, items: Sequence[Item]) -> Kept:
    """Choose one candidate of each choice so that a cost is as small as it can be."""
    program = _Program(options, dict.fromkeys(options, 1))
    _, row = program.linear(items)
    objective = np.zeros(program.size)
    for index, amount in row.items():
        objective[index] = amount
    found = program.solve(objective, [], options)
    assert found is not None
    return found


class _Program:
    """Variables: one for each candidate, one for each set of candidates that must be together."""

    def __init__(self, options: Chosen, keep: Limits) -> None:
        every = [(label, name) for label, names in options.items() for name in names]
        self.index: dict[Candidate, int] = {candidate: i for i, candidate in enumerate(every)}
        self.size = len(self.index)
        self.rows: list[tuple[dict[int, float], float, float]] = []  # row, lower, upper
        self.upper = np.ones(self.size)
        for label, names in options.items():
            row = {self.index[label, name]: 1.0 for name in names}
            limit = keep[label]
            self.rows.append((row, 1, len(names) if limit is None else limit))

    def linear(self, items: Sequence[Item]) -> tuple[float, dict[int, float]]:
        """A cost as a constant and a row over the variables."""
        constant, row = 0.0, {}
        for item in items:
            contexts = [
                [self.index[candidate] for candidate in context]
                for context in item.contexts
                if all(candidate in self.index for candidate in context)
            ]
            if not contexts:
                continue
            if any(not context for context in contexts):
                constant += item.amount
                continue
            if len(contexts) == 1 and len(contexts[0]) == 1:
                index = contexts[0][0]
            else:  # a new variable, 1 if all of a context are
                index, self.size = self.size, self.size + 1
                self.upper = np.append(self.upper, 1.0)
                for context in contexts:
                    at_least = {index: 1.0, **dict.fromkeys(context, -1.0)}
                    self.rows.append((at_least, 1.0 - len(context), np.inf))
            row[index] = row.get(index, 0.0) + item.amount
        return constant, row

    def solve(
        self,
        objective: np.ndarray,
        limits: Sequence[tuple[dict[int, float], float]],
        options: Chosen,
    ) -> Kept | None:
        """The names of the best solution; None if there is none."""
        rows = list(self.rows)
        for row, limit in limits:
            scale = max(limit, 1.0)
            rows.append(({i: v / scale for i, v in row.items()}, -np.inf, limit / scale))
        matrix = lil_array((len(rows), self.size))
        for i, (row, _, _) in enumerate(rows):
            for j, value in row.items():
                matrix[i, j] = value
        largest = np.abs(objective).max(initial=0.0) or 1.0
        found = milp(
            objective / largest,
            integrality=np.ones(self.size),
            bounds=Bounds(np.zeros(self.size), self.upper),  # pyright: ignore[reportArgumentType]
            constraints=LinearConstraint(
                matrix.tocsr(),
                np.array([lower for _, lower, _ in rows]),  # pyright: ignore[reportArgumentType]
                np.array([upper for _, _, upper in rows]),  # pyright: ignore[reportArgumentType]
            ),
            options={"mip_rel_gap": 0},
        )
        if found.x is None or not found.success:
            return None
        return {
            label: tuple(name for name in names if found.x[self.index[label, name]] > 0.5)
            for label, names in options.items()
        }
