"""A block that was found on one data set as the block of a network for another."""

from __future__ import annotations

from dsonas.cost import Measures, fit_width
from dsonas.data import ImageData
from dsonas.graph import REDUCTION_OPERATIONS, Architecture, Skeleton
from dsonas.run.fitting import say_rest
from dsonas.run.run_config import RunConfig


class TransferError(ValueError):
    """An architecture whose block cannot be put into another network."""


def transfer(architecture: Architecture, skeleton: Skeleton) -> Architecture:
    """Put the block of an architecture at every place of another skeleton.

    A reduction block of the result has each convolution that any reduction block of the source
    has kept, or both if the source has none.

    Args:
        architecture: one whose blocks are all the same, as the share space gives.
        skeleton: stem, stages, channels and head of the network wanted.

    Raises:
        TransferError: if the blocks differ, or are empty.

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
    measured again would lead to another one.

    Raises:
        TransferError: if the block cannot be transferred.
        InfeasibleBudgetError: if the fewest channels are too much already.
    """
    whole = transfer(architecture, config.space(data).skeleton)
    if held is not None and held.with_channels(whole.skeleton.channels) == whole:
        return held
    network = config.network
    options = {"multiple": network.channel_multiple, "growth": network.growth}
    found = fit_width(whole, config.budget, measures=measures, **options)
    say_rest(whole, found, config, measures)
    return found
