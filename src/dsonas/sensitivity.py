"""What the loss of a supernet would be without each of its operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.architecture import Architecture
from dsonas.importance import without_node
from dsonas.network import Network


@torch.no_grad()
def loss_without(
    network: Network, current: Architecture, images: Tensor, labels: Tensor
) -> dict[tuple[int, int], float]:
    """How much the loss grows if one operation goes, with all that goes with it.

    BN uses the statistics of the batch, as it will while training goes on, and keeps its running
    statistics. The scaling factors are restored.

    Args:
        network: a supernet; connections that it has and ``current`` has not count as removed.
        current: the live architecture.
        images: (B, C, H, W), normalised, not used for training the weights.
        labels: (B,).

    Returns:
        For each graph (one in the share space) and kept operation the increase of the mean cross
        entropy, at least 0; dimensionless.
    """
    scaling = network.scaling
    assert scaling is not None
    shared = len(scaling.blocks) == 1
    graphs = current.blocks[:1] if shared else current.blocks
    worth: dict[tuple[int, int], float] = {}
    with _batch_statistics(network):
        losses = {}
        for place, graph in enumerate(graphs):
            vector = scaling.blocks[place]
            kept = vector.clone()
            vector.mul_(_mask(graph.live, vector))
            if "start" not in losses:
                losses["start"] = _loss(network, images, labels)
            for node in graph.kept_nodes:
                vector.copy_(kept * _mask(without_node(graph, node).live, vector))
                losses[place, node] = _loss(network, images, labels)
            vector.copy_(kept)
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    start = values.pop("start")
    for place, value in values.items():
        worth[place] = max(0.0, value - start)
    return worth


def _mask(live: tuple[bool, ...], like: Tensor) -> Tensor:
    return torch.tensor(live, dtype=like.dtype, device=like.device)


def _loss(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images).float(), labels)


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Training mode in which BN does not touch its running statistics."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training, momenta = network.training, [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    network.train()
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        network.train(training)
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
