"""What the plan of a search leads to where the scaling factors say nothing.

A plan sets how sparse a network becomes, the search what stays. Networks of the same plan with
factors drawn at random are as sparse as a search's: what a search does better is its own merit.
"""

from __future__ import annotations

import torch

from dsonas.graph import Architecture, SearchSpace
from dsonas.search.baselines import complete_graphs
from dsonas.search.removal import Measure, follow_plan
from dsonas.search.search_config import SearchConfig


def random_plan_result(
    space: SearchSpace,
    config: SearchConfig,
    generator: torch.Generator,
    cost: Measure | None = None,
) -> Architecture:
    """Follow the plan of a search with scaling factors drawn once, uniformly from 0 to 1.

    Rebuilds come as often as in the search, and what is removed is ranked as by
    ``criterion flow``.

    Args:
        space: what is searched.
        config: the plan, its epochs and its rebuilds.
        generator: source of randomness, on the CPU.
        cost: the measure that is planned; None takes multiply-adds.

    Returns:
        An architecture at the supernet's channels.

    Raises:
        ValueError: if the search has no plan.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = random_plan_result(SearchSpace(), SearchConfig(epochs=4), generator)
        >>> len(net.blocks[0].kept_nodes) < len(SearchSpace().complete().blocks[0].kept_nodes)
        True
    """
    plan, supernet = config.plan, space.complete()
    if plan is None:
        raise ValueError("search.keep_cost must be set for networks of the same plan, got null")
    sizes = [len(graph.live) for graph in complete_graphs(space)]
    factors = [torch.rand(size, generator=generator).tolist() for size in sizes]
    current = supernet
    for epoch in range(1, config.epochs + 1):
        if config.rebuilds_after(epoch):
            steps = plan, epoch / config.epochs, supernet, current, factors
            current = follow_plan(*steps, cost=cost, thrift=0.0)
    return current
