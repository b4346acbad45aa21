"""What a search and a training cost, counted: multiply-adds times images.

A training image counts three times (forward, and backward for features and weights), an evaluated
one once. The figures allot the random search its share; they need no clock, so they are the same on
every machine.
"""

from __future__ import annotations

from dsonas.cost import architecture_cost
from dsonas.graph import SearchSpace
from dsonas.run import RunConfig, part_sizes
from dsonas.search import alternation, blocks_macs, weight_steps_per_factor_step

PASSES = 3  # of a training image


def training_work(
    macs: int, epochs: int, num_train: int, batch_size: int, num_evaluated: int
) -> int:
    """Multiply-adds of training a network and evaluating it once.

    Args:
        macs: multiply-adds of the network for one image.
        epochs: passes over the training images, >= 1.
        num_train: training images.
        batch_size: images; an incomplete last batch is left out.
        num_evaluated: images of the evaluation at the end.

    Example:
        >>> training_work(1000, 2, 100, 32, 10)  # 2 * 96 images count three times
        586000
    """
    seen = epochs * (num_train // batch_size * batch_size)
    return macs * (PASSES * seen + num_evaluated)


def search_work(space: SearchSpace, config: RunConfig, num_train: int) -> int:
    """Multiply-adds of pretraining and search, the cost following the plan of the search.

    Where nothing is planned, the whole supernet counts until the end.

    Args:
        space: what is searched.
        config: the steps and the split.
        num_train: training images before the split.
    """
    search, supernet = config.search, space.complete()
    weights, factors = part_sizes(config, num_train)
    whole, prunable = architecture_cost(supernet).macs, blocks_macs(supernet)
    size = config.pretrain.batch_size
    images = config.pretrain.epochs * (weights // size * size)
    total = PASSES * images * whole
    size = search.batch_size
    ratio = weight_steps_per_factor_step(config.data.factor_split)
    per_epoch = size * len(alternation(weights // size, factors // size, ratio))
    for epoch in range(search.epochs):
        macs = whole - (1 - _planned_share(config, epoch)) * prunable
        total += round(PASSES * per_epoch * macs)
    return total


def _planned_share(config: RunConfig, epoch: int) -> float:
    search = config.search
    plan = search.plan
    if plan is None:
        return 1.0
    rebuilt = epoch // search.rebuild_every * search.rebuild_every
    return plan.share(plan.structure, rebuilt / search.epochs)
