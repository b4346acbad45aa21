"""What a search is compared with: random architectures of its space, and plain hand-made ones.

Both have the skeleton of the space at the supernet's channels; the width that meets a budget is
fitted afterwards by ``budgets.fit_width``, as it is for the result of a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dsonas._utils import derive_seed
from dsonas.cost import CostFunction
from dsonas.graph import Architecture, SearchSpace
from dsonas.nn import BatchNorm, DepthwiseConv, register_operation
from dsonas.search.removal import MACS, Factors, follow_plan
from dsonas.search.search_config import SearchConfig

RANDOM_KINDS = ("connections", "cost")
EXPANSION = 6
INVERTED_BOTTLENECK = "inverted_bottleneck3x3"


def random_architecture(
    space: SearchSpace,
    generator: torch.Generator,
    kind: str = "connections",
    *,
    share: float | None = None,
) -> Architecture:
    """Draw an architecture of a space at its channels: cleaned, with at least one operation.

    Args:
        space: what to draw from.
        generator: source of randomness, on the CPU.
        kind: ``connections``: every set of live connections, those of the reduction blocks
            included, is equally likely. ``cost``: the share of the blocks' multiply-adds is drawn
            from 0 to 1, and operations and connections are removed at random until it is met;
            reduction blocks stay complete, as they do under a search's plan.
        share: for ``cost``, the share itself, in [0, 1], instead of a drawn one.

    Raises:
        ValueError: if the kind is unknown or the share is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = random_architecture(SearchSpace(), generator)
        >>> net == net.clean(), len(set(net.blocks))
        (True, 1)
    """
    if kind not in RANDOM_KINDS:
        raise ValueError(f"kind must be one of {RANDOM_KINDS}, got {kind!r}")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}: 0.35 keeps about a third")
    if kind == "connections":
        return _random_connections(space, generator)
    if share is None:
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return _random_cost(space, generator, share)


def random_architectures(
    space: SearchSpace,
    seed: int,
    kinds: Sequence[str] = RANDOM_KINDS,
    accept: Callable[[Architecture], bool] = lambda architecture: True,
) -> Iterator[Architecture]:
    """An endless sequence of random architectures, fixed by a seed, the kinds in turn.

    Args:
        space: what to draw from.
        seed: of the sequence.
        kinds: see ``random_architecture``.
        accept: what it refuses is drawn anew, as by ``first_accepted``.

    Example:
        >>> first = random_architectures(SearchSpace(), 0)
        >>> again = random_architectures(SearchSpace(), 0)
        >>> [next(first) == next(again) for _ in range(3)]
        [True, True, True]
    """
    index = 0
    while True:
        kind = kinds[index % len(kinds)]
        generator = torch.Generator().manual_seed(derive_seed(seed, "random", kind, index))
        yield first_accepted(partial(random_architecture, space, generator, kind), accept)
        index += 1


MAX_REFUSED = 1000


def first_accepted(
    draw: Callable[[], Architecture], accept: Callable[[Architecture], bool]
) -> Architecture:
    """The first architecture drawn that is accepted; a ValueError if a thousand are refused."""
    for _ in range(MAX_REFUSED):
        architecture = draw()
        if accept(architecture):
            return architecture
    raise ValueError(
        f"none of {MAX_REFUSED} random architectures meets the budget at its narrowest: raise "
        "the budget, or lower network.channel_multiple or network.levels"
    )


def _random_connections(space: SearchSpace, generator: torch.Generator) -> Architecture:
    supernet = space.complete()

    def coins(size: int) -> list[bool]:
        return (torch.rand(size, generator=generator) < 0.5).tolist()

    while True:
        graphs = [graph.prune(coins(len(graph.live))).clean() for graph in supernet.cells]
        if any(graph.kept_nodes for graph in graphs):
            break
    reductions = []
    for flags in supernet.reductions:
        drawn = coins(len(flags))
        while not any(drawn):
            drawn = coins(len(flags))
        reductions.append(tuple(drawn))
    return replace(supernet.with_cells(graphs), reductions=tuple(reductions))


def _random_cost(space: SearchSpace, generator: torch.Generator, share: float) -> Architecture:
    current = space.complete()
    limit = share * blocks_macs(current)
    while blocks_macs(current) > limit:
        options = [
            *((current.without_connection, place) for place in current.connection_places()),
            *((current.without_operation, place) for place in current.operation_places()),
        ]
        options.sort(key=lambda option: option[1][0])  # by cell
        while options:
            without, place = options.pop(int(torch.randint(len(options), (), generator=generator)))
            smaller = without(place)
            if any(graph.kept_nodes for graph in smaller.cells):
                current = smaller
                break
        else:
            break  # any removal would leave nothing
    return current


def blocks_macs(architecture: Architecture) -> float:
    """Multiply-adds of the operations and outputs of all blocks: what pruning can remove.

    Example:
        >>> space = SearchSpace()
        >>> blocks_macs(space.complete()) < 1.4845e9
        True
    """
    return MACS(architecture) - MACS(architecture.without_blocks())


def follow_epochs(
    config: SearchConfig, supernet: Architecture, factors: Factors, cost: CostFunction = MACS
) -> list[Architecture]:
    """Follow the plan of a search, if it has one, by the same scaling factors in all epochs.

    Returns:
        What is live in each epoch, and last what the search ends with.
    """
    chain = [supernet]
    for epoch in range(1, config.epochs + 1):
        live, progress = chain[-1], epoch / config.epochs
        if config.keep_cost is not None and config.rebuilds_after(epoch):
            live = follow_plan(config, progress, supernet, live, factors, cost=cost)
        chain.append(live)
    return chain


def random_plan_result(
    space: SearchSpace,
    config: SearchConfig,
    generator: torch.Generator,
    cost: CostFunction = MACS,
) -> Architecture:
    """Follow the plan of a search with scaling factors drawn once, uniformly from 0 to 1.

    A plan sets how sparse a network becomes, the search what stays. Networks of the same plan with
    factors drawn at random are as sparse as a search's: what a search does better is its own merit.

    Raises:
        ValueError: if the search has no plan.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> net = random_plan_result(SearchSpace(), SearchConfig(epochs=4), generator)
        >>> len(net.blocks[0].kept_nodes) < len(SearchSpace().complete().blocks[0].kept_nodes)
        True
    """
    supernet = space.complete()
    if config.keep_cost is None:
        raise ValueError("search.keep_cost must be set for networks of the same plan, got null")
    factors = [torch.rand(len(cell.live), generator=generator).tolist() for cell in supernet.cells]
    return follow_epochs(config, supernet, factors, cost)[-1]


@register_operation(INVERTED_BOTTLENECK)
def _inverted_bottleneck3x3(channels: int) -> nn.Module:
    """1x1 to six times the channels, depthwise 3x3, 1x1 back (MobileNetV2, arXiv 1801.04381)."""
    wide = EXPANSION * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False),
        BatchNorm(wide),
        nn.ReLU6(),
        DepthwiseConv(wide, 3),
        BatchNorm(wide),
        nn.ReLU6(),
        nn.Conv2d(wide, channels, 1, bias=False),
    )


_CHAINS = {
    "residual": ("separable_conv3x3", "separable_conv3x3"),
    "mobile": (INVERTED_BOTTLENECK,),
}
HAND_MADE = tuple(_CHAINS)


def hand_made(space: SearchSpace, kind: str) -> Architecture:
    """A plain network on the skeleton of a space: every block the same chain of operations.

    A block keeps what all blocks here have: a 1x1 convolution, BN and ReLU after the chain, and
    the shortcut around it.

    Args:
        space: its skeleton is used; its operations need not hold those of the chain.
        kind: ``residual``: two separable 3x3 convolutions, as a residual block of ResNet has two
            convolutions. ``mobile``: one inverted bottleneck with expansion 6, as in MobileNetV2,
            but with a ReLU after it where MobileNetV2 has none.

    Raises:
        ValueError: if the kind is unknown.

    Example:
        >>> net = hand_made(SearchSpace(), "residual")
        >>> net.blocks[0].inputs
        {1: (0,), 2: (1,), 3: (2,)}
    """
    if kind not in _CHAINS:
        raise ValueError(f"kind must be one of {HAND_MADE}, got {kind!r}")
    chain = _CHAINS[kind]
    complete = Architecture.complete(space.skeleton, chain[:1], len(chain), "share")
    graph = complete.blocks[0]
    chained = graph.prune([target == source + 1 for source, target in graph.connections])
    return complete.with_cells([chained.clean()])
