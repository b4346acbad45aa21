"""Which candidates survive, decided together: at most so many of each choice, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from dsonas.cost import Candidate, Item

NEGLIGIBLE = 1e-9  # of a score, by which the cheaper of equal choices wins


class Bound(NamedTuple):
    """An upper bound on a sum of parts."""

    name: str  # of the measure
    items: Sequence[Item]  # the parts of the cost
    limit: float  # what their sum must not exceed

    def keeps(self, kept: Mapping[str, Sequence[str]]) -> bool:
        """Whether a combination keeps the bound."""
        return sum(item.amount for item in self.items if item.is_in(kept)) <= self.limit


def best_choices(
    options: Mapping[str, Sequence[str]],
    keep: Mapping[str, int | None],
    scores: Mapping[Candidate, float],
    bounds: Sequence[Bound] = (),
    apart: Sequence[Set[Candidate]] = (),
) -> dict[str, tuple[str, ...]] | None:
    """Choose the candidates with the largest sum of scores that keep all bounds: exactly.

    An integer program, solved by HiGHS. Of every choice at least one candidate stays.

    Args:
        options: names to choose from, by label.
        keep: at most so many stay, by label; None: any number.
        scores: >= 0, by label and name; missing ones are 0.
        bounds: upper bounds on costs.
        apart: sets of candidates that must not all stay.

    Returns:
        The names that stay, in the order of ``options``; None if nothing keeps the bounds.

    Example:
        >>> items = [Item(10, (frozenset({("a", "x")}),)), Item(4, (frozenset({("a", "y")}),))]
        >>> scores = {("a", "x"): 0.9, ("a", "y"): 0.1}
        >>> best_choices({"a": ["x", "y"]}, {"a": 1}, scores, [Bound("macs", items, 5)])
        {'a': ('y',)}
    """
    program = _Program(options, keep)
    for together in apart:
        if all(candidate in program.index for candidate in together):
            row = {program.index[candidate]: 1.0 for candidate in together}
            program.rows.append((row, 0, len(row) - 1))
    sums = [(program.linear(bound.items), bound.limit) for bound in bounds]
    size = program.size
    objective = np.zeros(size)
    for candidate, index in program.index.items():
        objective[index] = -max(0.0, scores.get(candidate, 0.0))
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


def smallest_choices(
    options: Mapping[str, Sequence[str]], items: Sequence[Item]
) -> dict[str, tuple[str, ...]]:
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

    def __init__(
        self, options: Mapping[str, Sequence[str]], keep: Mapping[str, int | None]
    ) -> None:
        self.index: dict[Candidate, int] = {
            candidate: i
            for i, candidate in enumerate(
                (label, name) for label, names in options.items() for name in names
            )
        }
        self.size = len(self.index)
        self.rows: list[tuple[dict[int, float], float, float]] = []  # row, lower, upper
        self.upper = np.ones(self.size)
        for label, names in options.items():
            row = {self.index[label, name]: 1.0 for name in names}
            limit = keep[label]
            self.rows.append((row, 1, len(names) if limit is None else limit))

    def _variable(self, least: Sequence[tuple[dict[int, float], float]]) -> int:
        """A new variable that is at least some linear forms."""
        index, self.size = self.size, self.size + 1
        self.upper = np.append(self.upper, 1.0)
        for row, constant in least:
            self.rows.append(({index: 1.0, **{i: -v for i, v in row.items()}}, constant, np.inf))
        return index

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
            else:
                index = self._variable([(dict.fromkeys(c, 1.0), 1.0 - len(c)) for c in contexts])
            row[index] = row.get(index, 0.0) + item.amount
        return constant, row

    def solve(
        self,
        objective: np.ndarray,
        limits: Sequence[tuple[dict[int, float], float]],
        options: Mapping[str, Sequence[str]],
    ) -> dict[str, tuple[str, ...]] | None:
        """The names of the best solution; None if there is none."""
        rows = [
            *self.rows,
            *(
                ({i: v / max(limit, 1.0) for i, v in row.items()}, -np.inf, limit / max(limit, 1.0))
                for row, limit in limits
            ),
        ]
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
