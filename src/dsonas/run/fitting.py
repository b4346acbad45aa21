"""Bring what a search found to the budget of a run, in the network of another data set too."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from dsonas.cost import (
    CostFunction,
    LatencyMeter,
    Measures,
    exact_measures,
    fit_chain,
    fit_width,
    latency_from_table,
    measure_table,
    read_table,
    with_width,
)
from dsonas.data import ImageData
from dsonas.graph import REDUCTION_OPERATIONS, Architecture, Skeleton
from dsonas.run.run_config import GROWTH, RunConfig
from dsonas.train import Engine

logger = logging.getLogger(__name__)

LEAST_USE = 0.9  # of a budget; where it is less, the cap on the width is the reason


def final_latency(config: RunConfig, engine: Engine | None = None) -> CostFunction:
    """Milliseconds of whole networks: by the table of another device, or measured on this one."""
    if config.engine.latency_table is not None:
        return latency_from_table(read_table(config.engine.latency_table))
    return LatencyMeter(str((engine or Engine(config.engine)).device))


def parts_table(config: RunConfig, engine: Engine, supernet: Architecture) -> dict[str, float]:
    """Milliseconds of parts: by the table of another device, or measured on this one."""
    if config.engine.latency_table is not None:
        return read_table(config.engine.latency_table)
    return measure_table([supernet], str(engine.device))


def run_measures(config: RunConfig, latency: CostFunction) -> Measures:
    """Collect the measures that a run needs: latency only if something depends on it."""
    timed = config.budget.latency_ms is not None or config.search.penalty_kind == "adaptive_latency"
    return exact_measures(latency if timed else None)


def check_known(architecture: Architecture, config: RunConfig, measures: Measures) -> None:
    """Refuse a latency table that lacks parts of a network, or does not reach its channels."""
    table = config.engine.latency_table
    latency = measures.get("latency_ms")
    if table is None or latency is None:
        return
    try:
        known = 0 < latency(architecture) < math.inf
    except ValueError as error:
        raise ValueError(f"engine.latency_table {table}: {error}") from None
    if not known:
        widths = "-".join(map(str, architecture.skeleton.channels))
        raise ValueError(
            f"engine.latency_table must have milliseconds above 0 for {widths} channels, but "
            f"{table} has not, or ends below: add wider entries (dsonas latency --widths), or "
            "lower network.channels"
        )


def fit_to_budget(
    chain: Sequence[Architecture],
    config: RunConfig,
    measures: Measures | None = None,
    *,
    at_full_width: bool = False,
) -> Architecture:
    """Find the member of a chain and its width for a budget, see ``fit_chain``; say a large rest.

    Budget, channel multiple and, if they are not given, measures are those of ``config``. An
    InfeasibleBudgetError if no member meets it; see ``check_known``.
    """
    measures = measures or run_measures(config, final_latency(config))
    check_known(chain[0], config, measures)
    network, budget = config.network, config.budget
    found = fit_chain(
        chain, budget, multiple=network.channel_multiple, growth=GROWTH,
        measures=measures, at_full_width=at_full_width,
    )  # fmt: skip
    say_rest(chain[0], found, config, measures)
    return found


def say_rest(
    base: Architecture, found: Architecture, config: RunConfig, measures: Measures
) -> None:
    """Say what of a budget a network leaves since it may not be wider, if that is much."""
    budget, network = config.budget, config.network
    widest = with_width(base, GROWTH, network.channel_multiple).skeleton.channels
    if not budget.bounds or found.skeleton.channels != widest:
        return
    if (use := budget.used_by(found, measures)) < LEAST_USE:
        name, bound = budget.leading, budget.bounds[budget.leading]
        logger.warning(
            "budget.%s %s is not used up (%.3g %%): the network is %g times as wide as the "
            "supernet, the most that is allowed; raise network.channels, or lower the budget",
            name, f"{bound:.6g}", 100 * use, GROWTH,
        )  # fmt: skip


class TransferError(ValueError):
    """An architecture whose block cannot be put into another network."""


def transfer(architecture: Architecture, skeleton: Skeleton) -> Architecture:
    """Put the block of an architecture at every place of another skeleton.

    All blocks of the architecture must be the same, as the share space gives, and not empty. A
    reduction block of the result has each convolution that any reduction block of the source has
    kept, or both if the source has none.

    Example:
        >>> from dsonas.graph.spaces import cifar_space, imagenet_space
        >>> found = cifar_space(channels=8, blocks=(1, 1)).complete()
        >>> larger = transfer(found, imagenet_space(channels=8).skeleton)
        >>> len(larger.blocks), set(larger.blocks) == set(found.blocks)
        (23, True)

    Source: arXiv 1811.01567, the network "DSO-NAS-share" found on CIFAR-10 and used on ImageNet.
    """
    blocks = {graph.clean() for graph in architecture.blocks}
    if len(blocks) > 1:
        raise TransferError(
            f"to transfer a block all blocks of the architecture must be the same, got "
            f"{len(blocks)} different ones: search with --search.space share"
        )
    (block,) = blocks
    if not block.kept_nodes:
        raise TransferError(
            "to transfer a block it must have at least one operation, got none: give another "
            "architecture"
        )
    kept = tuple(any(flags) for flags in zip(*architecture.reductions, strict=True))
    return Architecture(
        skeleton,
        (block,) * skeleton.num_blocks,
        (kept or (True,) * len(REDUCTION_OPERATIONS),) * (len(skeleton.blocks) - 1),
        "share",
    )


def transferred(
    architecture: Architecture,
    config: RunConfig,
    data: ImageData,
    measures: Measures,
    held: Architecture | None = None,
) -> Architecture:
    """Make the network that ``network.transfer`` asks for; its width meets the budget.

    A run that goes on is about the architecture ``held``, whose width stays: a latency that is
    measured again would lead to another one. See ``transfer`` and ``fit_width``.
    """
    whole = transfer(architecture, config.space(data).skeleton)
    if held is not None and held.with_channels(whole.skeleton.channels) == whole:
        return held
    network = config.network
    options = {"multiple": network.channel_multiple, "growth": GROWTH}
    found = fit_width(whole, config.budget, measures=measures, **options)
    say_rest(whole, found, config, measures)
    return found
