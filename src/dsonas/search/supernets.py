"""What a ``Searcher`` can search: which kind of supernet a model is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from dsonas.cost import Budget, exact_measures
from dsonas.nn import Network
from dsonas.search.block_supernet import BlockSupernet
from dsonas.search.choice_supernet import ChoiceSupernet
from dsonas.search.scaled_supernet import ScaledSupernet
from dsonas.search.search_config import SearchConfig
from dsonas.sparse import choices_of, scaling_factors, unwrap


def supernet_of(
    model: Any,
    example: Any,
    budget: Budget | None,
    config: SearchConfig,
    cost: Callable[[Any], float] | None,
    seed: int,
) -> Any:
    """Make the ``Supernet`` of a model, or take the one that is given.

    Raises:
        ValueError: if it is none, or a budget is given for our own blocks.
    """
    if not isinstance(model, nn.Module):
        return model
    model = unwrap(model)
    cost = cost and _numbers(cost)
    if choices_of(model):
        return ChoiceSupernet(model, example, budget, config, cost, seed)
    if isinstance(model, Network):
        if budget is not None and budget.given:
            raise ValueError(
                f"budget.{budget.leading} of our own blocks is met by their width, which a search "
                "leaves as it is: give none here, then dsonas.fit_width(result.structure, budget)"
            )
        return BlockSupernet(model, config, cost or exact_measures()["macs"])
    if isinstance(model, fx.GraphModule) and scaling_factors(model):
        return ScaledSupernet(model, example, budget, config, cost)
    raise ValueError(
        "model must have something to choose, but has neither LayerChoice nor InputChoice nor "
        "scaling factors: see dsonas.LayerChoice and dsonas.scale_connections"
    )


def _numbers(cost: Callable[[Any], float]) -> Callable[[Any], float]:
    """A user's cost function that refuses what is no number, rather than bound nothing by it."""

    def number(structure: Any) -> float:
        given = cost(structure)
        try:
            found = float(given)
        except (TypeError, ValueError, RuntimeError):
            found = math.nan
        if math.isnan(found):
            raise ValueError(
                f"cost must give a number for every structure, got {given!r} for {structure}: "
                "return one in all cases"
            )
        return found

    return number
