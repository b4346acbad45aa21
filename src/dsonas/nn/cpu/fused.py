"""The fast path: a whole block of a supernet as one node of the autograd graph.

The plain path in ``blocks.Block`` is the reference. Here the same maths runs over one buffer that
holds all node features of the block as planes (node, B, H, W, C):

* the sums of a level are ONE matrix product  factors (n x P) @ planes (P x BHWC);
* operations write their results into the buffer, so nothing is stacked or concatenated;
* the output convolution is a running product over the planes with the factors folded into its
  weights;
* the backward pass accumulates into one gradient buffer, and computes the gradients of weights or
  of scaling factors only where autograd asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dsonas._utils import send
from dsonas.nn.cpu import mixing
from dsonas.nn.cpu.batchnorm import is_synchronised
from dsonas.nn.cpu.buffers import BufferPool
from dsonas.nn.cpu.layout import Layout, Level
from dsonas.nn.cpu.nodes import NodeRun, run_nodes, run_nodes_backward


def fused_block(
    x: Tensor,
    factors: Tensor,
    output_weight: Tensor,
    layout: Layout,
    nodes: Sequence[NodeRun],
    pool: BufferPool,
) -> Tensor:
    """All nodes of a block and its output convolution (eq. 3 and 4), before the block's BN.

    Args:
        x: block input (B, C, H, W).
        factors: packed scaling factors of the block.
        output_weight: (C, K * C, 1, 1), K nodes that feed the output.
        layout: the block's layout.
        nodes: for each kept node its operation with BN and ReLU, fresh for this pass.
        pool: where the buffers come from.

    Returns:
        (B, C, H, W), channels_last.
    """
    flat = [parameter for node in nodes for parameter in node.parameters]
    call = _Call(layout, tuple(nodes), pool)
    return _FusedBlock.apply(call, x, factors, output_weight, *flat)  # type: ignore[no-any-return]


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


@dataclass
class _Call:
    """What one forward pass leaves for its backward pass."""

    layout: Layout
    nodes: tuple[NodeRun, ...]
    pool: BufferPool
    sums: list[Tensor] = field(default_factory=list)
    matrices: list[Tensor] = field(default_factory=list)
    planes: Tensor | None = None
    folded: Tensor | None = None

    def together(self, level: Level) -> list[list[int]]:
        """The planes of a level, in groups that run side by side.

        Each alone, while its features are in the cache; or all at once, if processes must exchange
        the sums of their batch normalisations.
        """
        planes = list(range(*level.planes))
        synchronised = is_synchronised(self.nodes[planes[0] - 1].bn)
        return [planes] if synchronised else [[plane] for plane in planes]

    def of(self, planes: Sequence[int]) -> list[NodeRun]:
        """The nodes that write these planes."""
        return [self.nodes[plane - 1] for plane in planes]


class _FusedBlock(torch.autograd.Function):
    """The block as one node of the outer autograd graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, factors: Tensor, weight: Tensor, *flat: Tensor):
        layout, dtype = call.layout, _compute_dtype(x)
        batch, channels, height, width = x.shape
        planes = call.pool.take(x, (1 + len(call.nodes), batch, height, width, channels), dtype)
        planes[0].copy_(x.to(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        start = planes.data[0]  # .data: what is written to other planes leaves this one valid
        call.matrices = mixing.level_matrices(layout, factors, dtype)
        mixed = iter(call.matrices)
        for level in layout.levels:
            first = level.planes[0]
            sums = _sums(call, next(mixed), planes[:first]) if level.positions else None
            for some in call.together(level):
                zs = [start if sums is None else sums[plane - first] for plane in some]
                run_nodes(call.of(some), zs, [planes[plane] for plane in some])
        ctx.save_for_backward(factors, weight, *flat)
        call.planes = planes
        call.folded = mixing.fold(weight, factors[_output_places(layout, factors)], dtype)
        ctx.call = call
        return mixing.project(planes, layout.output_planes, call.folded).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        call: _Call = ctx.call
        factors, weight, *_ = ctx.saved_tensors
        planes, folded = call.planes, call.folded
        if planes is None or folded is None:
            raise RuntimeError("a fused block can be differentiated only once per forward pass")
        _, wants_x, wants_factors, wants_weight, *wants_flat = ctx.needs_input_grad
        outgoing = gradient.permute(0, 2, 3, 1).to(planes.dtype).contiguous()
        gradients = call.pool.scratch("gradients", planes, planes.shape)
        mixing.project_backward(gradients, call.layout.output_planes, outgoing, folded)
        factor_gradient = factors.new_zeros(factors.numel() + 1) if wants_factors else None
        weight_gradient = None
        if wants_factors or wants_weight:
            weight_gradient = _output_gradients(call, outgoing, weight, factors, factor_gradient)
        found = _levels_backward(call, gradients, wants_x or any(wants_flat), factor_gradient)
        x_gradient = gradients[0].clone().permute(0, 3, 1, 2) if wants_x else None
        call.pool.give(planes, *call.sums)
        call.planes = call.folded = None
        call.sums.clear()
        return (
            None,
            x_gradient,
            None if factor_gradient is None else factor_gradient[:-1],
            weight_gradient if wants_weight else None,
            *found,
        )


def _output_places(layout: Layout, factors: Tensor) -> Tensor:
    """Where the factors of the output stand among all."""
    return send(torch.tensor(layout.output_positions, dtype=torch.long), factors.device)


def _sums(call: _Call, matrix: Tensor, planes: Tensor) -> Tensor:
    sums = call.pool.take(planes, (matrix.shape[0], *planes.shape[1:]), planes.dtype)
    call.sums.append(sums)
    mixing.mix(matrix, planes, sums)
    return sums


def _output_gradients(
    call: _Call,
    outgoing: Tensor,
    weight: Tensor,
    factors: Tensor,
    factor_gradient: Tensor | None,
) -> Tensor:
    """Gradient of the output weight; writes that of the output factors too."""
    assert call.planes is not None
    layout, channels = call.layout, weight.shape[0]
    product = mixing.output_products(call.planes, layout.output_planes, outgoing).to(weight.dtype)
    places = _output_places(layout, factors)
    if factor_gradient is not None:
        split = weight.view(channels, -1, channels).permute(1, 2, 0)
        factor_gradient[places] = (product * split).sum((1, 2))
    return (product * factors[places].view(-1, 1, 1)).permute(2, 0, 1).reshape(weight.shape)


def _levels_backward(
    call: _Call, gradients: Tensor, wants_level1: bool, factor_gradient: Tensor | None
) -> list[Tensor | None]:
    """Walk the levels from the last to the first; the gradients of the nodes' parameters."""
    assert call.planes is not None
    found: list[list[Tensor | None]] = [[None] * len(node.parameters) for node in call.nodes]
    for level in reversed(call.layout.levels):
        if level.positions:
            _mixed_level_backward(call, level, gradients, found, factor_gradient)
        elif wants_level1:  # in the first block of a lambda step nobody asks for these
            for _, z_gradient in _nodes_backward(call, level, gradients, found):
                if z_gradient is not None:
                    gradients[0].add_(z_gradient.permute(0, 2, 3, 1))
    return [value for values in found for value in values]


def _nodes_backward(
    call: _Call, level: Level, gradients: Tensor, found: list[list[Tensor | None]]
) -> Iterator[tuple[int, Tensor | None]]:
    """For each plane of a level the gradient of its sum; writes those of parameters too."""
    assert call.planes is not None
    for some in reversed(call.together(level)):
        arriving, outs = [gradients[p] for p in some], [call.planes[p] for p in some]
        results = run_nodes_backward(call.of(some), arriving, outs)
        for plane, (z_gradient, parameters) in zip(some, results, strict=True):
            found[plane - 1] = parameters
            yield plane, z_gradient


def _mixed_level_backward(
    call: _Call,
    level: Level,
    gradients: Tensor,
    found: list[list[Tensor | None]],
    factor_gradient: Tensor | None,
) -> None:
    """A level above the first: its nodes, then its sums."""
    planes = call.planes
    assert planes is not None
    first, end = level.planes
    arriving = call.pool.scratch("arriving", planes, planes[first:end].shape)
    for plane, z_gradient in _nodes_backward(call, level, gradients, found):
        target = arriving[plane - first]
        _ = target.zero_() if z_gradient is None else target.copy_(z_gradient.permute(0, 2, 3, 1))
    mixing.mix_backward(call.matrices.pop(), arriving, gradients[:first])
    if factor_gradient is not None:
        mixing.mix_factor_gradient(level, planes[:first], arriving, factor_gradient)
