"""Upper bounds that the user states, and the width that meets them exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from dsonas.cost.costs import architecture_cost
from dsonas.cost.latency import LatencyFunction
from dsonas.graph import Architecture, scale_channels

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


MEASURES = ("macs", "latency_ms", "memory_bytes", "params")
CostFunction = Callable[[Architecture], Mapping[str, float]]


def cost_function(latency: LatencyFunction | None = None) -> CostFunction:
    """All measures of an architecture by name.

    Args:
        latency: milliseconds of an architecture; None leaves ``latency_ms`` out.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> sorted(cost_function()(cifar_space(channels=4).complete()))
        ['macs', 'memory_bytes', 'params']
    """

    def measure(architecture: Architecture) -> dict[str, float]:
        found: dict[str, float] = dict(asdict(architecture_cost(architecture)))
        return {**found, "latency_ms": latency(architecture)} if latency else found

    return measure


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds on the final network; every bound that is given must hold.

    Args:
        macs: multiply-adds for one image; a number, or a text such as ``1.5M``.
        params: parameters of the final network.
        memory_bytes: memory access for one image, in bytes.
        latency_ms: milliseconds for one image on one CPU thread, or on the accelerator, measured
            on this machine; or as ``EngineConfig.latency_table`` and its like say.

    Raises:
        ValueError: if a bound is not a positive number.

    Example:
        >>> Budget(macs="2M").bounds
        {'macs': 2000000.0}
    """

    macs: float | str | None = None
    params: float | str | None = None
    memory_bytes: float | str | None = None
    latency_ms: float | str | None = None

    def __post_init__(self) -> None:
        for name in MEASURES:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_count(value, f"budget.{name}"))

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name."""
        values = {name: getattr(self, name) for name in MEASURES}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def leading(self) -> str:
        """The measure that leads a search: the first of ``MEASURES`` that is bounded."""
        return next(iter(self.bounds), MEASURES[0])

    def use(self, cost: Mapping[str, float]) -> float:
        """The largest share of a bound that a cost takes; 0 without bounds, above 1 if broken."""
        return max((cost[name] / bound for name, bound in self.bounds.items()), default=0)


class InfeasibleBudgetError(ValueError):
    """No width meets the budget; the message gives the smallest cost that can be reached."""


def fit_width(
    architecture: Architecture,
    budget: Budget,
    *,
    multiple: int = 1,
    cost: CostFunction | None = None,
) -> Architecture:
    """Scale all channels by one global multiplier until the budget is used up, never above it.

    Bisection on the multiplier over the exact cost; then the widths near those are tried, each
    stage by itself, for the closest fit. Without bounds the architecture is returned as it is.

    Args:
        architecture: its structure is kept.
        budget: the bounds.
        multiple: channels are multiples of it, >= 1; 8 runs faster on CPUs, 1 fits closest.
        cost: all measures of an architecture; needed for a latency bound. None: the exact counts.

    Returns:
        The same structure with other channels.

    Raises:
        InfeasibleBudgetError: if the fewest channels are too much already.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1, 1)).complete()
        >>> narrow = fit_width(supernet, Budget(macs="5M"))
        >>> narrow.blocks == supernet.blocks, cost_function()(narrow)["macs"] <= 5_000_000
        (True, True)
    """
    if not budget.bounds:
        return architecture
    cost = cost or cost_function()
    base = architecture.skeleton.channels

    def scaled(multiplier: float) -> Architecture:
        widths = scale_channels([width / multiple for width in base], multiplier)
        return architecture.with_channels([multiple * width for width in widths])

    low, high = 0.0, MAX_MULTIPLIER
    least = cost(scaled(low))
    if budget.use(least) > 1:
        raise InfeasibleBudgetError(
            f"budget {budget.bounds} is below the smallest network of this structure "
            f"({multiple} channels per stage): {_listed(least)}"
        )
    for _ in range(40):
        middle = (low + high) / 2
        fits = budget.use(cost(scaled(middle))) <= 1
        low, high = (middle, high) if fits else (low, middle)
    if "latency_ms" in budget.bounds:
        return scaled(low)  # each trial would be a measurement, with noise larger than the gain
    ideal = [width * low for width in base]
    return _fill(scaled(low), ideal, budget, multiple, cost)


def _listed(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.6g} {name}" for name, value in cost.items())


TOLERANCE = 0.03  # of a budget that may stay unused
MAX_DISTORTION = 0.25  # of a stage's width from the ideal one
# of the multiple of channels; the second steps if the first leave more than the tolerance unused
STEPS = ((-1, 1, 2), (-3, -2, -1, 1, 2, 3))


def _fill(
    architecture: Architecture,
    ideal: Sequence[float],
    budget: Budget,
    multiple: int,
    cost: CostFunction,
) -> Architecture:
    """The best use of the budget among widths near the ideal ones, each stage by itself."""
    best, best_use = architecture, budget.use(cost(architecture))
    for steps in STEPS:
        choices = [
            _near(floor, width, [multiple * step for step in steps])
            for floor, width in zip(architecture.skeleton.channels, ideal, strict=True)
        ]
        for channels in product(*choices):
            trial = architecture.with_channels(channels)
            use = budget.use(cost(trial))
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
    supernet: Architecture,
    budget: Budget,
    cost: CostFunction | None = None,
    multiple: int = 1,
) -> None:
    """Refuse, before any training, a budget that no network of a space can meet.

    Args:
        supernet: the complete architecture of the space.
        budget: the bounds.
        cost: all measures of an architecture; needed for a latency bound. None: the exact counts.
        multiple: channels are multiples of it, >= 1.

    Raises:
        InfeasibleBudgetError: with the smallest and the largest cost that can be reached.
    """
    if not budget.bounds:
        return
    cost = cost or cost_function()
    smallest = cost(smallest_architecture(supernet, multiple))
    if budget.use(smallest) > 1:
        widest = scale_channels(supernet.skeleton.channels, MAX_MULTIPLIER)
        largest = cost_function()(supernet.with_channels(widest))
        raise InfeasibleBudgetError(
            f"budget {budget.bounds} cannot be met: the smallest network of this space (one "
            f"operation per block, {multiple} channels per stage) has {_listed(smallest)}; the "
            f"largest has {_listed(largest)}"
        )


def smallest_architecture(supernet: Architecture, multiple: int = 1) -> Architecture:
    """The cheapest network of a space: one operation in every block, the fewest channels."""
    best: Architecture | None = None
    for node in range(1, 1 + len(supernet.operations)):
        graphs = tuple(
            graph.prune([target == graph.output_node and source == node
                         for source, target in graph.connections]).clean()
            for graph in supernet.blocks
        )  # fmt: skip
        reductions = tuple((True, False) for _ in supernet.reductions)
        one = Architecture(supernet.skeleton, graphs, reductions)
        one = one.with_channels([multiple] * len(one.skeleton.channels))
        if best is None or architecture_cost(one).macs < architecture_cost(best).macs:
            best = one
    assert best is not None
    return best
