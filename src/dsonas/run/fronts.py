"""The points of a Pareto front of error against cost that one search gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsonas.cost import Budget, Measures, fit_chain
from dsonas.graph import Architecture


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """What front is asked for.

    Args:
        points: networks to train, the one for the budget among them, >= 2.
        largest: cost of the last one, in the measure that leads the budget (multiply-adds without
            one); a positive number. None: that of the supernet.

    Raises:
        ValueError: if a value breaks its rule.
    """

    points: int
    largest: float | None = None

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"pareto must be at least 2 networks, got {self.points}")

    def span(self, budget: Budget, supernet: Mapping[str, float]) -> float:
        """How many times the budget the last network may cost, above 1.

        Args:
            budget: of the first network; at least one bound.
            supernet: cost of the complete architecture.

        Raises:
            ValueError: if there is nothing above the budget.

        Example:
            >>> FrontConfig(points=3).span(Budget(macs=1000), {"macs": 4000})
            4.0
        """
        bound = budget.bounds[budget.leading]
        if self.largest is None:
            span, name = budget.use(supernet), f"the supernet has {supernet[budget.leading]:.6g}"
        else:
            span, name = self.largest / bound, f"pareto_to is {self.largest:.6g}"
        if span <= 1:
            raise ValueError(
                f"a front of several networks needs costs above the budget, but {name} and "
                f"budget.{budget.leading} is {bound:.6g}: lower the budget or raise --pareto_to"
            )
        return span


def bounded_by(budget: Budget, found: Mapping[str, float]) -> Budget:
    """The budget; without any bound, the multiply-adds of the network found."""
    return budget if budget.bounds else Budget(macs=found[budget.leading])


def point_budgets(budget: Budget, span: float, points: int) -> list[Budget]:
    """Budgets in equal ratios from a budget to ``span`` times it; all bounds grow alike.

    Example:
        >>> [round(b.macs) for b in point_budgets(Budget(macs=1000), 4.0, 3)]
        [1000, 2000, 4000]
    """
    ratios = [span ** (k / (points - 1)) for k in range(points)]
    return [
        Budget(**{name: ratio * bound for name, bound in budget.bounds.items()}) for ratio in ratios
    ]


def front_networks(
    chain: Sequence[Architecture],
    first: Architecture,
    budgets: Sequence[Budget],
    *,
    multiple: int = 1,
    measures: Measures | None = None,
) -> list[tuple[Architecture, Budget]]:
    """The networks of a front with their budgets, cheapest first; no network twice.

    Between the supernet's cost and that of the structure found, some member of the chain meets a
    budget at about full width; below that the width of the structure found does the rest.

    Args:
        chain: the nested architectures of a search.
        first: the network for the first budget.
        budgets: one for each point.
        multiple: channels are multiples of it, >= 1.
        measures: functions of an architecture. None: the exact counts.
    """
    found = {first: budgets[0]}
    for budget in budgets[1:]:
        fitted = fit_chain(chain, budget, multiple=multiple, measures=measures, at_full_width=True)
        found.setdefault(fitted, budget)
    return list(found.items())


def mark_best(points: Sequence[dict[str, Any]], measure: str) -> None:
    """Write ``on_front`` into points: whether no other is both cheaper and as good, or better.

    Example:
        >>> points = [{"macs": m, "test_error": e} for m, e in ((1, 9.0), (2, 9.5), (3, 8.0))]
        >>> mark_best(points, "macs")
        >>> [point["on_front"] for point in points]
        [True, False, True]
    """
    for point in points:
        point["on_front"] = not any(
            other is not point
            and other[measure] <= point[measure]
            and other["test_error"] <= point["test_error"]
            and (other[measure], other["test_error"]) != (point[measure], point["test_error"])
            for other in points
        )


def time_account(search_seconds: float, train_seconds: Sequence[float]) -> dict[str, Any]:
    """What one search for all points took, and what a search for each would have taken.

    Example:
        >>> time_account(100.0, [10.0, 20.0])["separate_seconds"]
        230.0
    """
    trained, points = sum(train_seconds), len(train_seconds)
    return {
        "searches": 1,
        "search_seconds": search_seconds,
        "train_seconds": round(trained, 3),
        "total_seconds": round(search_seconds + trained, 3),
        "separate_searches": points,
        "separate_seconds": round(points * search_seconds + trained, 3),
    }
