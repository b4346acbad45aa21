"""The measures that a budget can bound: one registry that budgets, columns, charts and tables read.

A new kind of budget is one entry of ``MEASURES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dsonas.cost.costs import architecture_cost
from dsonas.graph import Architecture

CostFunction = Callable[[Architecture], float]
"""What an architecture costs in one measure."""
Measures = Mapping[str, CostFunction]
"""Functions of an architecture by name."""


@dataclass(frozen=True)
class Measure:
    """One kind of cost."""

    title: str  # what people call it
    unit: str  # what follows its number; empty where the title says it
    bound: str  # what a budget on it means, for the help
    # counts it exactly; None: it is timed, by a meter that the run sets up
    function: CostFunction | None = None


MEASURES: dict[str, Measure] = {
    "macs": Measure(
        "multiply-adds",
        "",
        "multiply-adds for one image; a number, a text such as 1.5M, or a share such as 50% of "
        "the model at hand",
        lambda architecture: architecture_cost(architecture).macs,
    ),
    "latency_ms": Measure(
        "latency",
        "ms",
        "milliseconds for one image on one CPU thread, or on the accelerator, measured on this "
        "machine, or by the table of another one (engine.latency_table)",
    ),
    "memory_bytes": Measure(
        "memory access",
        "bytes",
        "memory access for one image, in bytes",
        lambda architecture: architecture_cost(architecture).memory_bytes,
    ),
    "params": Measure(
        "parameters",
        "",
        "parameters of the final network",
        lambda architecture: architecture_cost(architecture).params,
    ),
}
"""By name; the first that a budget bounds leads a search."""


def exact_measures(latency: CostFunction | None = None) -> dict[str, CostFunction]:
    """Collect the functions that measure an architecture, by name.

    Args:
        latency: milliseconds of an architecture; None leaves ``latency_ms`` out.

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
