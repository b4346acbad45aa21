"""Bring what a search found to the budget of a run."""

from __future__ import annotations

from collections.abc import Sequence

from dsonas.architecture import Architecture
from dsonas.budgets import CostFunction, cost_function
from dsonas.chains import fit_chain
from dsonas.config import RunConfig
from dsonas.engine import Engine
from dsonas.latency import LatencyFunction, LatencyMeter


def run_costs(config: RunConfig, latency: LatencyFunction) -> CostFunction:
    """The measures that a run needs: latency is measured only if something depends on it."""
    timed = config.budget.latency_ms is not None or config.search.penalty_kind == "adaptive_latency"
    return cost_function(latency if timed else None)


def fit_to_budget(
    chain: Sequence[Architecture], config: RunConfig, cost: CostFunction | None = None
) -> Architecture:
    """The member of a search's chain and its width for a budget, see ``fit_chain``.

    Args:
        chain: largest first.
        config: its budget and channel multiple count.
        cost: all measures of an architecture. None: measured as the configuration says.

    Raises:
        InfeasibleBudgetError: if no member meets the budget.
    """
    cost = cost or run_costs(config, LatencyMeter(str(Engine(config.engine).device)))
    multiple = config.network.channel_multiple
    return fit_chain(chain, config.budget, multiple=multiple, cost=cost)
