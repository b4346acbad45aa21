"""Physical removal of dead connections and operations; weights and momenta go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas._utils import send
from dsonas.graph import REDUCTION_OPERATIONS, Architecture, BlockGraph
from dsonas.nn import Block, Layout, Network, ReductionBlock
from dsonas.sparse import evaluating


@torch.no_grad()
def shrink(
    network: Network,
    architecture: Architecture,
    *optimizers: torch.optim.Optimizer,
) -> None:
    """Remove from a supernet, in place, what an architecture no longer has.

    Outputs stay equal if the removed connections have a factor of 0 and the block keeps an
    operation (an emptied one loses the constant ReLU(beta) of its BN): in training mode, and in
    evaluation mode because the constant that an operation without inputs gave to the block output
    is taken out of the running mean of the block's BN. (Where such an operation also feeds another
    operation, the border pixels of a padded convolution make that correction inexact.)

    Args:
        network: the supernet.
        architecture: a cleaned sub-architecture of ``network.architecture``.
        optimizers: of the weights; parameters are replaced in them, and their state goes on.

    Raises:
        ValueError: if the architecture has a connection that the network lacks.

    Example:
        >>> from dataclasses import replace
        >>> from dsonas.graph.spaces import cifar_space
        >>> network = Network(cifar_space(channels=8, blocks=(1,)).complete(), scaled=True)
        >>> supernet = network.architecture
        >>> keeps = [i % 2 == 1 for i in range(supernet.blocks[0].num_live)]
        >>> fewer = replace(supernet, blocks=(supernet.blocks[0].prune(keeps),))
        >>> shrink(network, fewer)
        >>> network.architecture.num_live < supernet.num_live
        True
    """
    architecture = architecture.clean()
    if not _is_contained(architecture, network.architecture):
        raise ValueError("architecture must be contained in the network's; it can only shrink")
    sizes = architecture.skeleton.stage_sizes
    for i, stage in enumerate(architecture.skeleton.block_stages):
        factors = network.scaling.for_block(i) if network.scaling else None
        block = network.blocks[i]
        assert isinstance(block, Block)
        _shrink_block(block, architecture.blocks[i], factors, sizes[stage], optimizers)
    for block, live in zip(network.reductions, architecture.reductions, strict=True):
        assert isinstance(block, ReductionBlock)
        for name, alive in zip(REDUCTION_OPERATIONS, live, strict=True):
            if not alive and name in block.branches:
                forget_modules(optimizers, [block.branches.pop(name)])
        block.live = live
    network.architecture = architecture
    network.pool.clear()  # the buffers of the larger architecture


def _is_contained(new: Architecture, old: Architecture) -> bool:
    kinds = [(one.skeleton, one.operations, one.num_levels) for one in (new, old)]
    flags = [
        [flag for row in (*(graph.live for graph in one.blocks), *one.reductions) for flag in row]
        for one in (new, old)
    ]
    return kinds[0] == kinds[1] and all(a <= b for a, b in zip(*flags, strict=True))


def _shrink_block(
    block: Block,
    graph: BlockGraph,
    factors: Tensor | None,
    size: int,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    if graph == block.graph:
        return
    old = block.graph
    if old.kept_nodes:
        if factors is not None:
            mean = block.output_bn.running_mean
            assert mean is not None
            mean -= _lost_constant(block, graph, factors, size)
        for node in set(old.kept_nodes) - set(graph.kept_nodes):
            forget_modules(optimizers, [block.nodes.pop(str(node))])
        _narrow_output(block, graph, optimizers)
    block.graph = graph
    block.layout = Layout.of(graph)


def _narrow_output(
    block: Block, graph: BlockGraph, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Keep those columns of the output convolution whose connection is live."""
    before = block.graph.inputs[block.graph.output_node]
    after = graph.inputs[graph.output_node]
    if not after:
        forget_modules(optimizers, [block.output, block.output_bn])
        del block.output, block.output_bn
        return
    channels = block.output.out_channels
    columns = send(torch.tensor([before.index(s) for s in after]), block.output.weight.device)

    def select(weight: Tensor) -> Tensor:
        split = weight.view(channels, len(before), channels, 1, 1)
        return split.index_select(1, columns).reshape(channels, -1, 1, 1)

    old, block.output.in_channels = block.output.weight, channels * len(after)
    block.output.weight = nn.Parameter(select(old), requires_grad=old.requires_grad)
    for optimizer in optimizers:
        _replace(optimizer, old, block.output.weight, select)


def _lost_constant(block: Block, graph: BlockGraph, factors: Tensor, size: int) -> Tensor:
    """What operations that lose all their inputs gave to the block output, per channel (C,)."""
    old, end = block.graph, block.graph.output_node
    fed = old.prune((factors > 0).tolist()).reached_nodes
    lost = [node for node in old.kept_nodes if node not in fed]
    weight = block.output.weight
    total = weight.new_zeros(weight.shape[0])
    features: dict[int, Tensor] = {}
    with evaluating(block):
        for node in lost:
            z = weight.new_zeros(1, weight.shape[0], size, size)
            for source in old.inputs[node]:
                if source in features:
                    z = z + factors[block.positions[source, node]] * features[source]
            features[node] = F.relu(block.nodes[str(node)](z))
    columns = weight.view(weight.shape[0], -1, weight.shape[0])
    for k, node in enumerate(old.inputs[end]):
        if node in features and node not in graph.kept_nodes:
            factor = factors[block.positions[node, end]]
            total += columns[:, k] @ (factor * features[node].mean((0, 2, 3)))
    return total


def forget_modules(
    optimizers: Iterable[torch.optim.Optimizer],
    modules: Sequence[nn.Module],
    left: Set[int] = frozenset(),
) -> None:
    """Take the parameters of removed modules out of optimizers, so that they hold no memory.

    ``left`` are the ids of parameters that stay: a module may stand in several places.
    """
    every = (parameter for module in modules for parameter in module.parameters())
    gone = {id(parameter): parameter for parameter in every if id(parameter) not in left}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        for parameter in gone.values():
            optimizer.state.pop(parameter, None)


def _replace(
    optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, select: Callable[[Tensor], Tensor]
) -> None:
    """Put a parameter in another's place; its per-element state is selected alike."""
    if not any(p is old for group in optimizer.param_groups for p in group["params"]):
        return
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, {})
    optimizer.state[new] = {
        key: select(value) if isinstance(value, Tensor) and value.shape == old.shape else value
        for key, value in state.items()
    }
