"""The blocks of a network: each runs any graph, with scaling factors or without."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.graph import REDUCTION_OPERATIONS, BlockGraph
from dsonas.nn.cpu.batchnorm import BatchNorm
from dsonas.nn.cpu.buffered import NodeRun, run_buffered
from dsonas.nn.cpu.buffers import BufferPool
from dsonas.nn.cpu.layout import Layout
from dsonas.nn.levels import run_levels
from dsonas.nn.operations import build_operation, run_plainly

BN_EPS = 2e-5
Path = Literal["plain", "levels", "buffer"]
SMALL = 2**14  # values in an operation's features: up to here a step on a CPU waits for the host
DENSE = 3  # live connections an operation, from which products of whole levels pay


def choose_path(
    graph: BlockGraph, x: Tensor, *, training: bool, recompute: bool, asked: Path | None = None
) -> Path:
    """Choose how a block with scaling factors runs; all three ways compute the same.

    ``plain`` (``Block``) takes one connection at a time, by stock PyTorch, so its time follows the
    connections that are live. ``levels`` (``levels.py``) takes the fewest calls, and more memory
    and copies. ``buffer`` (``cpu/buffered.py``) takes the fewest bytes, and the most calls.

    Args:
        graph: the live connections.
        x: the input (B, C, H, W).
        training: whether the batch normalisations are to see the batch.
        recompute: whether memory counts more than time, which only ``buffer`` heeds.
        asked: the way that a test or a benchmark asks for.

    Returns:
        * plain, if nothing is learned: the other two know no running statistics.
        * plain below ``DENSE`` connections an operation, at every size: products of whole levels
          would be full of zeros.
        * buffer, if ``recompute`` asks for it.
        * levels on accelerators: a step waits for the host there. Nobody has measured it on one.
        * levels up to ``SMALL`` values on CPUs, and buffer beyond. Measured: docs/speed.md.
    """
    if not (training and torch.is_grad_enabled()):
        return "plain"
    if asked is not None:
        return asked
    if graph.num_live < DENSE * len(graph.kept_nodes):
        return "plain"
    if recompute:
        return "buffer"
    return "levels" if x.device.type != "cpu" or x.numel() <= SMALL else "buffer"


def batch_norm(channels: int, learn_gamma: bool = True) -> BatchNorm:
    """Batch normalisation as the paper sets it; a fixed gamma is 1 and gets no gradient."""
    module = BatchNorm(channels, eps=BN_EPS, momentum=0.1)
    module.weight.requires_grad_(learn_gamma)
    return module


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, BN, ReLU.

    A 1x1 convolution of stride 2 is taken as a slice and a stride-1 convolution: the same maths,
    and safe in channels_last on CPUs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int = 1,
        learn_gamma: bool = True,
        padding: int | None = None,
    ) -> None:
        self.slice_stride = stride if kernel_size == 1 else 1
        padding = kernel_size // 2 if padding is None else padding
        super().__init__(
            nn.Conv2d(
                inputs,
                outputs,
                kernel_size,
                stride=stride // self.slice_stride,
                padding=padding,
                bias=False,
            ),
            batch_norm(outputs, learn_gamma),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        if self.slice_stride > 1:
            x = x[:, :, :: self.slice_stride, :: self.slice_stride]
        return super().forward(x)


class Candidate(nn.Module):
    """An operation with its batch normalisation; the block applies the ReLU."""

    def __init__(self, operation: str, channels: int, learn_gamma: bool) -> None:
        super().__init__()
        self.operation = build_operation(operation, channels)
        self.bn = batch_norm(channels, learn_gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, before the ReLU."""
        return self.bn(self.operation(x))


class Block(nn.Module):
    """A block of any graph (eq. 3 and 4): with scaling factors, or plain sums without.

    Args:
        graph: cleaned connections; its kept nodes get modules.
        channels: C of input and output.
        projecting: the shortcut is ReLU(BN(conv 1x1)) rather than the identity.
        learn_gamma: of the BNs in operations and in the projecting shortcut.
        path: how to train with scaling factors; None: what ``choose_path`` finds.
        recompute: with scaling factors, run all operations again in backward to save memory.
        pool: buffers shared with the network's other blocks.
    """

    def __init__(
        self,
        graph: BlockGraph,
        channels: int,
        *,
        projecting: bool = False,
        learn_gamma: bool = True,
        path: Path | None = None,
        recompute: bool = False,
        pool: BufferPool | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.path: Path | None = path
        self.recompute = recompute
        self.pool = pool or BufferPool()
        self.layout = Layout.of(graph)
        self.positions: dict[tuple[int, int], int] = {
            pair: i for i, pair in enumerate(graph.connections)
        }
        self.nodes = nn.ModuleDict(
            {
                str(node): Candidate(graph.operation(node), channels, learn_gamma)
                for node in graph.kept_nodes
            }
        )
        self.shortcut = (
            ConvBNReLU(channels, channels, 1, learn_gamma=learn_gamma)
            if projecting
            else nn.Identity()
        )
        if graph.kept_nodes:
            width = channels * len(graph.inputs[graph.output_node])
            self.output = nn.Conv2d(width, channels, 1, bias=False)
            self.output_bn = batch_norm(channels)
        if path == "plain":
            run_plainly(self)

    def forward(self, x: Tensor, factors: Tensor | None = None, drop_path: float = 0.0) -> Tensor:
        """Run the block.

        Args:
            x: (B, C, H, W).
            factors: packed scaling factors, or None for plain sums.
            drop_path: probability, per sample, of dropping an input or output branch.
        """
        if not self.graph.kept_nodes:
            return self.shortcut(x)
        path = choose_path(
            self.graph, x, training=self.training, recompute=self.recompute, asked=self.path
        )
        if factors is None or path == "plain":
            y = self._plain(x, factors, drop_path if self.training else 0.0)
        elif path == "levels":
            y = run_levels(x, factors, self.output.weight, self.layout, *self._parts())
        else:
            runs = [NodeRun(*pair, self.recompute) for pair in zip(*self._parts(), strict=True)]
            y = run_buffered(x, factors, self.output.weight, self.layout, runs, self.pool)
        return F.relu(self.output_bn(y)) + self.shortcut(x)

    def _parts(self) -> tuple[list[Any], list[Any]]:
        """The operations and their batch normalisations, by the mappings behind the attributes."""
        parts = [node._modules for node in self.nodes.children()]
        return [part["operation"] for part in parts], [part["bn"] for part in parts]

    def _plain(self, x: Tensor, factors: Tensor | None, drop_path: float) -> Tensor:
        features = {0: x}
        for node in self.graph.kept_nodes:
            sources = self.graph.inputs[node]
            if self.graph.level(node) == 1:
                z = x
            else:
                drop = drop_path if len(sources) > 1 else 0.0
                branches = [self._branch(features[s], s, node, factors, drop) for s in sources]
                z = reduce(operator.add, branches)
            features[node] = F.relu(self.nodes[str(node)](z))
        end = self.graph.output_node
        outputs = [
            self._branch(features[s], s, end, factors, drop_path) for s in self.graph.inputs[end]
        ]
        return self._project(outputs)

    def _project(self, branches: list[Tensor]) -> Tensor:
        if self.path == "plain":
            weights = self.output.weight.split(branches[0].shape[1], 1)
            return reduce(operator.add, map(F.conv2d, branches, weights))
        return self.output(branches[0] if len(branches) == 1 else torch.cat(branches, 1))

    def _branch(
        self, x: Tensor, source: int, target: int, factors: Tensor | None, drop_path: float
    ) -> Tensor:
        if factors is not None:
            x = x * factors[self.positions[source, target]]
        if drop_path > 0:
            from torchvision.ops import stochastic_depth  # a second, for this only

            x = stochastic_depth(x, drop_path, "row", True)
        return x


class ReductionBlock(nn.Module):
    """Halve the resolution: the scaled sum of a 1x1 and a 3x3 convolution of stride 2."""

    def __init__(
        self, live: tuple[bool, ...], inputs: int, outputs: int, learn_gamma: bool
    ) -> None:
        super().__init__()
        self.live = live
        self.branches = nn.ModuleDict(
            {
                name: ConvBNReLU(inputs, outputs, kernel, 2, learn_gamma)
                for name, kernel, alive in zip(REDUCTION_OPERATIONS, (1, 3), live, strict=True)
                if alive
            }
        )

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / 2, W / 2), rounded up."""
        outputs = [
            branch(x) if factors is None else branch(x) * factors[REDUCTION_OPERATIONS.index(name)]
            for name, branch in self.branches.items()
        ]
        return reduce(operator.add, outputs)
