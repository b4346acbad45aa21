"""What the loss of a supernet would be without each of its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas._utils import mask_like
from dsonas.cost import without_node
from dsonas.graph import Architecture
from dsonas.nn import Network


@torch.no_grad()
def loss_without(
    network: Network,
    current: Architecture,
    images: Tensor,
    labels: Tensor,
    mean: Callable[[Tensor], Tensor] | None = None,
) -> dict[tuple[int, int], float]:
    """How much the loss grows if one operation goes, with all that goes with it.

    BN uses the statistics of the batch, as it will while training goes on, and keeps its running
    statistics. The scaling factors are restored.

    Args:
        network: a supernet; connections that it has and ``current`` has not count as removed.
        current: the live architecture.
        images: (B, C, H, W), normalised, not used for training the weights.
        labels: (B,).
        mean: of the losses over processes that each have a part of the batch; None: there is one.

    Returns:
        For each graph (one in the share space) and kept operation the increase of the mean cross
        entropy, at least 0; dimensionless.
    """
    scaling = network.scaling
    assert scaling is not None
    shared = len(scaling.blocks) == 1
    graphs = current.blocks[:1] if shared else current.blocks
    vectors = list(scaling.blocks)
    before = [vector.clone() for vector in vectors]
    losses: dict[tuple[int, int], Tensor] = {}
    with _batch_statistics(network):
        for vector, graph in zip(vectors, graphs, strict=True):
            vector.mul_(mask_like(graph.live, vector))
        start = _loss(network, images, labels)
        for place, (vector, graph) in enumerate(zip(vectors, graphs, strict=True)):
            kept = vector.clone()
            for node in graph.kept_nodes:
                vector.copy_(kept * mask_like(without_node(graph, node).live, vector))
                losses[place, node] = _loss(network, images, labels)
            vector.copy_(kept)
        for vector, values in zip(vectors, before, strict=True):
            vector.copy_(values)
    found = torch.stack([start, *losses.values()])
    found = mean(found) if mean else found
    growth = found - found[0]
    return dict(zip(losses, growth[1:].clamp(min=0).tolist(), strict=True))


def _loss(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images).float(), labels)


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Training mode in which BN does not touch its running statistics."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training, momenta = network.training, [norm.momentum for norm in norms]
    counters = [c for norm in norms if (c := norm.num_batches_tracked) is not None]
    counts = [counter.clone() for counter in counters]
    network.train()
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        network.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)
