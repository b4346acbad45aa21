"""What one step of a kind takes: multiply-adds, least bytes and bytes of gradients, counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsonas.cost import (
    BYTES,
    Cost,
    architecture_cost,
    block_cost,
    first_convolution_cost,
    operation_cost,
    stem_cost,
)
from dsonas.graph import Architecture, Skeleton
from dsonas.nn import AuxiliaryHead, Block
from dsonas.run import RunConfig

KINDS = ("pretrain", "weights", "factors", "rebuild", "train", "test")
_FORWARD_ONLY = ("rebuild", "test")
_SEARCH = ("pretrain", "weights", "factors", "rebuild")
_PARAMETER_MOVES = 8  # read forward and backward, gradient written, the optimiser's five


@dataclass(frozen=True)
class Step:
    """One step, of one device.

    Args:
        kind: one of ``KINDS``.
        architecture: what is run.
        batch_size: images.
        macs: multiply-adds of convolutions and the classifier, forward and backward.
        least_bytes: what must be read and written at least.
        gradient_bytes: what processes that share the work have to sum up.
    """

    kind: str
    architecture: Architecture
    batch_size: int
    macs: int
    least_bytes: int
    gradient_bytes: int


class StepCounter:
    """Counts the steps of a run.

    Args:
        config: of the run: auxiliary head, recomputation, precision, space.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> count = StepCounter(RunConfig()).count
        >>> forward = count("test", supernet, 1).macs
        >>> forward == architecture_cost(supernet).macs
        True
        >>> round(count("weights", supernet, 1).macs / forward, 2)
        2.93
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def count(self, kind: str, architecture: Architecture, batch_size: int) -> Step:
        """A step of a kind.

        Args:
            kind: one of ``KINDS``.
            architecture: what is live.
            batch_size: images, >= 1.
        """
        extra = self._auxiliary(kind, architecture)
        cost = architecture_cost(architecture) + extra
        return Step(
            kind=kind,
            architecture=architecture,
            batch_size=batch_size,
            macs=batch_size * self._macs_for_one(kind, architecture, cost.macs),
            least_bytes=self._least_bytes(kind, cost, batch_size),
            gradient_bytes=self._gradient_bytes(kind, architecture, cost),
        )

    def _macs_for_one(self, kind: str, architecture: Architecture, forward: int) -> int:
        """Forward, then the gradients of inputs and of weights, as far as they are asked for."""
        if kind in _FORWARD_ONLY:
            return forward
        again = self._recomputed(kind, architecture)
        if kind == "factors":  # no gradients of weights, none at all before the first factor
            return 2 * forward - macs_before_factors(architecture) + again
        image_gradient = first_convolution_cost(architecture.skeleton).macs  # nobody wants it
        return 3 * forward - image_gradient + again

    def _recomputed(self, kind: str, architecture: Architecture) -> int:
        if not self.config.search.recompute or kind not in _SEARCH:
            return 0
        total, skeleton = 0, architecture.skeleton
        for graph, stage in zip(architecture.blocks, skeleton.block_stages, strict=True):
            if graph.num_live >= Block.crossover * len(graph.kept_nodes):
                names = map(graph.operation, graph.kept_nodes)
                sizes = skeleton.channels[stage], skeleton.stage_sizes[stage]
                total += sum(operation_cost(name, *sizes).macs for name in names)
        return total

    def _auxiliary(self, kind: str, architecture: Architecture) -> Cost:
        if kind == "train" and self.config.train.auxiliary:
            return auxiliary_cost(architecture.skeleton)
        return Cost()

    @property
    def element_bytes(self) -> int:
        """Of a number of a feature map."""
        return 2 if self.config.engine.precision == "bfloat16" else BYTES

    def _least_bytes(self, kind: str, cost: Cost, batch_size: int) -> int:
        """Feature maps once forward and twice backward; parameters once for the whole batch."""
        parameters = BYTES * cost.params
        passes = 1 if kind in _FORWARD_ONLY else 3
        moves = 1 if kind in _FORWARD_ONLY else 2 if kind == "factors" else _PARAMETER_MOVES
        features = max(0, cost.memory_bytes - parameters) * self.element_bytes // BYTES
        return batch_size * passes * features + moves * parameters

    def _gradient_bytes(self, kind: str, architecture: Architecture, cost: Cost) -> int:
        if kind in _FORWARD_ONLY:
            return 0
        if kind != "factors":
            return BYTES * cost.params
        shared = self.config.search.space == "share"
        graphs = architecture.blocks[:1] if shared else architecture.blocks
        return BYTES * (sum(len(g.live) for g in graphs) + 2 * len(architecture.reductions))


def macs_before_factors(architecture: Architecture) -> int:
    """Multiply-adds of what no scaling factor acts on before it: stem and the first block's start.

    The backward pass of a factor step ends there.
    """
    skeleton, graph = architecture.skeleton, architecture.blocks[0]
    channels, size = skeleton.channels[0], skeleton.stage_sizes[0]
    first_level = [node for node in graph.kept_nodes if graph.level(node) == 1]
    empty = graph.prune([False] * len(graph.live))
    shortcut = block_cost(empty, channels, size, True).macs
    operations = sum(operation_cost(graph.operation(n), channels, size).macs for n in first_level)
    return stem_cost(architecture).macs + shortcut + operations


@lru_cache(maxsize=64)
def auxiliary_cost(skeleton: Skeleton) -> Cost:
    """Multiply-adds and parameters of the auxiliary head, counted on the meta device."""
    size = skeleton.stage_sizes[-1]
    with torch.device("meta"):
        head = AuxiliaryHead(skeleton).eval()
        features = torch.empty(1, skeleton.channels[-1], size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(features)
    return Cost(counter.get_total_flops() // 2, sum(p.numel() for p in head.parameters()), 0)
