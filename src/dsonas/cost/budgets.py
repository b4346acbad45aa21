"""Measures of cost, upper bounds on them that the user states, and the width that meets them.

A new kind of budget is an entry of ``MEASURES`` and a field of ``Budget``; budgets, columns, charts
and tables read both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dsonas.cost.costs import architecture_cost
from dsonas.graph import Architecture, scale_channels

CostFunction = Callable[[Architecture], float]
"""What an architecture costs in one measure."""
Measures = Mapping[str, CostFunction]
"""Functions of an architecture by name."""


@dataclass(frozen=True)
class Measure:
    """One kind of cost."""

    title: str  # what people call it
    unit: str = ""  # what follows its number; empty where the title says it
    # counts it exactly; None: it is timed, by a meter that the run sets up
    function: CostFunction | None = None


MEASURES: dict[str, Measure] = {
    "macs": Measure("multiply-adds", "", lambda net: architecture_cost(net).macs),
    "latency_ms": Measure("latency", "ms"),
    "memory_bytes": Measure(
        "memory access", "bytes", lambda net: architecture_cost(net).memory_bytes
    ),
    "params": Measure("parameters", "", lambda net: architecture_cost(net).params),
}
"""By name; the first that a budget bounds leads a search."""


def exact_measures(latency: CostFunction | None = None) -> dict[str, CostFunction]:
    """Collect the functions that measure an architecture, by name.

    ``latency`` gives milliseconds; None leaves ``latency_ms`` out.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=4).complete()
        >>> {name: function(supernet) > 0 for name, function in exact_measures().items()}
        {'macs': True, 'memory_bytes': True, 'params': True}
    """
    given = {"latency_ms": latency}
    found = {name: measure.function or given.get(name) for name, measure in MEASURES.items()}
    return {name: function for name, function in found.items() if function is not None}


def measure_all(architecture: Architecture, measures: Measures) -> dict[str, float]:
    """Measure an architecture by all functions."""
    return {name: function(architecture) for name, function in measures.items()}


_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
MAX_MULTIPLIER = 64.0


def parse_count(value: float | str, name: str = "count") -> float:
    """A positive number, or one written with k, M or G.

    Raises:
        ValueError: if it is not.

    Example:
        >>> parse_count("1.5M")
        1500000.0
    """
    text = str(value).strip().lower()
    factor = _SUFFIXES.get(text[-1:], 1.0)
    try:
        number = float(text[:-1] if factor != 1 else text) * factor
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number such as 1500000 or 1.5M, got {value!r}")
    return number


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds on the final network; every bound that is given must hold.

    Args:
        macs: multiply-adds for one image; a number, a text such as 1.5M, or a share such as 50% of
            the model at hand.
        latency_ms: milliseconds for one image on one CPU thread, or on the accelerator, measured on
            this machine, or by the table of another one (engine.latency_table).
        memory_bytes: memory access for one image, in bytes.
        params: parameters of the final network.

    Raises:
        ValueError: if a bound is not a positive number.

    Example:
        >>> Budget(macs="2M").bounds
        {'macs': 2000000.0}
    """

    macs: float | str | None = None
    latency_ms: float | str | None = None
    memory_bytes: float | str | None = None
    params: float | str | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            bound = _parse_bound(getattr(self, name), f"budget.{name}")
            object.__setattr__(self, name, bound)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name.

        Raises:
            ValueError: if one is a share, whose whole is not known yet; see ``of``.
        """
        found = {name: getattr(self, name) for name in self.given}
        for name, value in found.items():
            if isinstance(value, str):
                raise ValueError(
                    f"budget.{name} {value} is a share of a model, and there is none here: give a "
                    "number such as 1.5M"
                )
        return found

    @property
    def given(self) -> list[str]:
        """The measures that are bounded."""
        return [name for name in MEASURES if getattr(self, name) is not None]

    @property
    def leading(self) -> str:
        """The measure that leads a search: the first of ``MEASURES`` that is bounded."""
        return next(iter(self.given), "macs")

    def of(self, whole: Callable[[str], float]) -> Budget:
        """Turn shares into numbers.

        Args:
            whole: the cost of the model at hand in a measure.

        Raises:
            ValueError: if that is 0 where a share is given.

        Example:
            >>> Budget(macs="50%", params=1000).of(lambda name: 3000.0).bounds
            {'macs': 1500.0, 'params': 1000.0}
        """
        values = {name: getattr(self, name) for name in self.given}
        shares = {name: value for name, value in values.items() if isinstance(value, str)}
        for name, text in shares.items():
            values[name] = whole(name) * float(text[:-1]) / 100
            if values[name] == 0:
                raise ValueError(
                    f"budget.{name} must not be a share of a model that costs 0, got {text}: give "
                    "a number, or bound something else"
                )
        return Budget(**values)

    def use(self, cost: Mapping[str, float]) -> float:
        """Compute the largest share of a bound that a cost takes.

        Returns:
            0 without bounds, above 1 if one is broken.
        """
        return max((cost[name] / bound for name, bound in self.bounds.items()), default=0.0)

    def used_by(self, architecture: Architecture, measures: Measures) -> float:
        """Compute ``use`` for an architecture; only what is bounded is measured."""
        return self.use({name: measures[name](architecture) for name in self.bounds})


def _parse_bound(value: float | str, name: str) -> float | str:
    text = str(value).strip()
    if not text.endswith("%"):
        return parse_count(value, name)
    try:
        share = float(text[:-1])
    except ValueError:
        share = math.nan
    if not 0 < share <= 100:
        raise ValueError(f"{name} must be a share above 0% and at most 100%, got {value!r}")
    return text


class InfeasibleBudgetError(ValueError):
    """No width meets the budget; the message gives the smallest cost that can be reached."""


def fit_width(
    architecture: Architecture,
    budget: Budget,
    *,
    multiple: int = 1,
    measures: Measures | None = None,
    growth: float | None = None,
) -> Architecture:
    """Scale all channels by one global multiplier until the budget is used up, never above it.

    Bisection on the multiplier over the exact cost; then the widths near those are tried, each
    stage by itself, for the closest fit. Without bounds the architecture is returned as it is.

    Args:
        architecture: its structure is kept.
        budget: the bounds.
        multiple: channels are multiples of it, >= 1; 8 runs faster on CPUs, 1 fits closest.
        measures: functions of an architecture by name; needed for a latency bound. None: the exact
            counts.
        growth: channels over those of the architecture, at most; None: any number.

    Returns:
        The same structure with other channels.

    Raises:
        InfeasibleBudgetError: if the fewest channels are too much already.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1, 1)).complete()
        >>> narrow = fit_width(supernet, Budget(macs="5M"))
        >>> narrow.blocks == supernet.blocks, exact_measures()["macs"](narrow) <= 5_000_000
        (True, True)
    """
    if not budget.bounds:
        return architecture
    measures = measures or exact_measures()
    base = architecture.skeleton.channels

    def scaled(multiplier: float) -> Architecture:
        return with_width(architecture, multiplier, multiple)

    if growth is not None and budget.used_by(scaled(growth), measures) <= 1:
        return scaled(growth)
    low, high = 0.0, growth or MAX_MULTIPLIER
    if budget.used_by(scaled(low), measures) > 1:
        raise InfeasibleBudgetError(
            f"budget {budget.bounds} is below the smallest network of this structure "
            f"({multiple} channels per stage): {_listed(scaled(low), measures)}"
        )
    for _ in range(40):
        middle = (low + high) / 2
        fits = budget.used_by(scaled(middle), measures) <= 1
        low, high = (middle, high) if fits else (low, middle)
    if "latency_ms" in budget.bounds:
        return scaled(low)  # each trial would be a measurement, with noise larger than the gain
    ideal = [width * low for width in base]
    most = [width * (growth or math.inf) for width in base]
    return _fill(scaled(low), ideal, most, budget, multiple, measures)


def with_width(architecture: Architecture, multiplier: float, multiple: int = 1) -> Architecture:
    """The same structure with all channels times a number, rounded to a multiple."""
    widths = [width / multiple for width in architecture.skeleton.channels]
    return architecture.with_channels([multiple * w for w in scale_channels(widths, multiplier)])


def _listed(architecture: Architecture, measures: Measures) -> str:
    costs = measure_all(architecture, measures)
    return ", ".join(f"{value:.6g} {name}" for name, value in costs.items())


TOLERANCE = 0.03  # of a budget that may stay unused
MAX_DISTORTION = 0.25  # of a stage's width from the ideal one
# of the multiple of channels; the second steps if the first leave more than the tolerance unused
STEPS = ((-1, 1, 2), (-3, -2, -1, 1, 2, 3))


def _fill(
    architecture: Architecture,
    ideal: Sequence[float],
    most: Sequence[float],
    budget: Budget,
    multiple: int,
    measures: Measures,
) -> Architecture:
    """The best use of the budget among widths near the ideal ones, each stage by itself."""
    best, best_use = architecture, budget.used_by(architecture, measures)
    for steps in STEPS:
        choices = [
            [w for w in _near(floor, width, [multiple * step for step in steps]) if w <= bound]
            for floor, width, bound in zip(architecture.skeleton.channels, ideal, most, strict=True)
        ]
        for channels in product(*choices):
            trial = architecture.with_channels(channels)
            use = budget.used_by(trial, measures)
            if best_use < use <= 1:
                best, best_use = trial, use
        if best_use >= 1 - TOLERANCE:
            break
    return best


def _near(floor: int, ideal: float, steps: Sequence[int]) -> list[int]:
    """The rounded width, and those some steps from it that are not too far from the ideal one."""
    others = [floor + step for step in steps]
    return [floor, *(w for w in others if w > 0 and abs(w - ideal) <= MAX_DISTORTION * ideal)]


def check_reachable(
    supernet: Architecture, budget: Budget, measures: Measures | None = None, multiple: int = 1
) -> None:
    """Refuse, before any training, a budget that no network of a space can meet; see ``fit_width``.

    Raises:
        InfeasibleBudgetError: with the smallest and the largest cost that can be reached.
    """
    if not budget.bounds:
        return
    measures = measures or exact_measures()
    smallest = smallest_architecture(supernet, multiple)
    if budget.used_by(smallest, measures) > 1:
        widest = scale_channels(supernet.skeleton.channels, MAX_MULTIPLIER)
        largest = supernet.with_channels(widest)
        raise InfeasibleBudgetError(
            f"budget {budget.bounds} cannot be met: the smallest network of this space (one "
            f"operation per block, {multiple} channels per stage) has "
            f"{_listed(smallest, measures)}; the largest has {_listed(largest, exact_measures())}"
        )


def smallest_architecture(supernet: Architecture, multiple: int = 1) -> Architecture:
    """The cheapest network of a space: one operation in every block, the fewest channels."""
    best: Architecture | None = None
    for node in range(1, 1 + len(supernet.operations)):
        one = supernet.with_cells(
            graph.prune([target == graph.output_node and source == node
                         for source, target in graph.connections]).clean()
            for graph in supernet.cells
        )  # fmt: skip
        one = replace(one, reductions=tuple((True, False) for _ in supernet.reductions))
        one = one.with_channels([multiple] * len(one.skeleton.channels))
        if best is None or architecture_cost(one).macs < architecture_cost(best).macs:
            best = one
    assert best is not None
    return best
