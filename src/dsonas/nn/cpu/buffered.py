"""The fast path of large supernets on CPUs: a whole block as one node of the autograd graph.

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
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsonas.nn.cpu.batchnorm import (
    Found,
    Statistics,
    exchange,
    gradient_sums,
    moments,
    normalise,
    normalise_backward,
)
from dsonas.nn.cpu.buffers import BufferPool
from dsonas.nn.cpu.layout import Layout, padded


def run_buffered(
    x: Tensor,
    factors: Tensor,
    output_weight: Tensor,
    layout: Layout,
    nodes: Sequence[NodeRun],
    pool: BufferPool,
) -> Tensor:
    """Run all nodes of a block and its output convolution (eq. 3 and 4), up to the block's BN.

    Args:
        x: block input (B, C, H, W); the result is of this shape, channels_last.
        factors: packed scaling factors of the block.
        output_weight: (C, K * C, 1, 1), K nodes that feed the output.
        layout: the block's layout.
        nodes: for each kept node its operation with BN and ReLU, fresh for this pass.
        pool: where the buffers come from.
    """
    flat = [parameter for node in nodes for parameter in node.parameters]
    call = _Call(layout, tuple(nodes), pool)
    return _BufferedBlock.apply(call, x, factors, output_weight, *flat)  # type: ignore[no-any-return]


class NodeRun:
    """An operation with its batch normalisation and ReLU, in one pass.

    The operation runs under autograd in a small graph of its own, so any registered one works. BN
    and ReLU are differentiated by hand: they write straight into the block's buffer, the ReLU's
    mask is read off the result, and the output of the BN, in training mode, is never kept.
    ``recompute``: the operation runs again in backward rather than keep what it would need there;
    those with a true attribute ``recomputable`` always do.
    """

    statistics: Statistics

    def __init__(self, operation: nn.Module, bn: nn.BatchNorm2d, recompute: bool) -> None:
        self.operation, self.bn = operation, bn
        self.recompute = recompute or getattr(operation, "recomputable", False)
        found = {id(p): p for p in _parameters(operation) if p.requires_grad}
        self.inner = list(found.values())
        self.wants = (bn.weight.requires_grad, bn.bias.requires_grad)
        self.parameters = [*self.inner, *compress((bn.weight, bn.bias), self.wants)]

    def operate(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """The operation's features (B, C, H, W) of a type, from z (B, H, W, C)."""
        self.z = z.permute(0, 3, 1, 2).detach().requires_grad_()
        self.autocast = torch.is_autocast_enabled(z.device.type)
        features = self._operate(dtype, tracked=not self.recompute)
        self.features = None if self.recompute else features
        return features

    def _operate(self, dtype: torch.dtype, tracked: bool) -> Tensor:
        device, precision = self.z.device.type, nullcontext()
        if self.autocast != torch.is_autocast_enabled(device):  # backward, after it has ended
            precision = torch.autocast(device, dtype, enabled=self.autocast)
        with torch.set_grad_enabled(tracked), precision:
            return self.operation(self.z).to(dtype, memory_format=torch.channels_last)

    def take_features(self, dtype: torch.dtype) -> Tensor:
        """The features once more, for backward; they are not kept any longer."""
        kept, self.features = self.features, None
        return self._operate(dtype, tracked=True) if kept is None else kept

    def backward(self, features: Tensor, found: Found) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of z (B, H, W, C) and of ``parameters``; frees what forward left.

        ``found`` are those of the features that ``take_features`` gave, of gamma and of beta.
        """
        incoming, *rest = found
        z, outer = self.z, list(compress(rest, self.wants))
        del self.z
        if incoming is None:
            return None, [*[None] * len(self.inner), *outer]
        z_gradient, *inner = torch.autograd.grad(
            features, [z, *self.inner], incoming, allow_unused=True
        )
        return None if z_gradient is None else z_gradient.permute(0, 2, 3, 1), [*inner, *outer]


def _parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Shared ones more than once; ``module.parameters()`` takes a twentieth of a small step."""
    yield from (parameter for parameter in module._parameters.values() if parameter is not None)
    for part in module._modules.values():
        yield from _parameters(part) if part is not None else ()


def _run_nodes(nodes: Sequence[NodeRun], zs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """Write ReLU(BN(operation(z))) of each node into its ``out``; all are (B, H, W, C)."""
    features = [node.operate(z, out.dtype) for node, z, out in zip(nodes, zs, outs, strict=True)]
    exchanged = exchange([node.bn for node in nodes], moments, features)
    for node, x, out, sums in zip(nodes, features, outs, exchanged, strict=True):
        node.statistics = normalise(node.bn, x, out.permute(0, 3, 1, 2), sums)
        out.clamp_(min=0)


def _run_nodes_backward(
    nodes: Sequence[NodeRun], gradients: Sequence[Tensor], outs: Sequence[Tensor]
) -> list[tuple[Tensor | None, list[Tensor | None]]]:
    """Gradients of z (B, H, W, C) and of the parameters of each node; see ``NodeRun.backward``.

    Those of ``outs``, which ``_run_nodes`` wrote, are overwritten.
    """
    for gradient, out in zip(gradients, outs, strict=True):
        # The ReLU's mask is applied in place: nobody reads this plane's gradient again.
        torch.ops.aten.threshold_backward.grad_input(gradient, out, 0, grad_input=gradient)
    features = [node.take_features(out.dtype) for node, out in zip(nodes, outs, strict=True)]
    statistics = [node.statistics for node in nodes]
    arriving, found = [gradient.permute(0, 3, 1, 2) for gradient in gradients], []
    exchanged = exchange([node.bn for node in nodes], gradient_sums, features, statistics, arriving)
    for node, x, gradient, sums in zip(nodes, features, arriving, exchanged, strict=True):
        # an operation that ignores its input, like a zero, wants no gradient of its features
        wants = (x.requires_grad, *node.wants)
        parts = normalise_backward(node.bn, x, node.statistics, gradient, wants, sums)
        found.append(node.backward(x, parts))
    return found


@dataclass
class _Call:
    """What one forward pass leaves for its backward pass."""

    layout: Layout
    nodes: tuple[NodeRun, ...]
    pool: BufferPool
    sums: list[Tensor] = field(default_factory=list)
    matrix: Tensor = field(init=False)
    folded: Tensor = field(init=False)
    planes: Tensor | None = None

    def groups(self, first: int, end: int) -> list[range]:
        """The planes of a level, in groups that run side by side.

        Each alone, while its features are in the cache; or all at once, if processes must exchange
        the sums of their batch normalisations.
        """
        synchronised = getattr(self.nodes[first - 1].bn, "synchronised", False)
        return [range(first, end)] if synchronised else [range(p, p + 1) for p in range(first, end)]


class _BufferedBlock(torch.autograd.Function):
    """The block as one node of the outer autograd graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, factors: Tensor, weight: Tensor, *flat: Tensor):
        layout, device = call.layout, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        batch, channels, height, width = x.shape
        planes = call.pool.take(x, (1 + len(call.nodes), batch, height, width, channels), dtype)
        planes[0].copy_(x.permute(0, 2, 3, 1))
        places, output_places, _ = layout.places(x.device)
        call.matrix = padded(factors)[places].to(dtype)
        for first, end in layout.levels:
            if first > layout.num_direct:
                sums = call.pool.take(x, (end - first, *planes.shape[1:]), dtype)
                call.sums.append(sums)
                matrix = call.matrix[first - 1 : end - 1, :first]
                torch.mm(matrix, planes[:first].flatten(1), out=sums.view(end - first, -1))
            else:  # .data: what is written to other planes leaves this one valid
                sums = planes.data[0].expand(end - first, -1, -1, -1, -1)
            for some in call.groups(first, end):
                zs, outs = [sums[p - first] for p in some], [planes[p] for p in some]
                _run_nodes([call.nodes[p - 1] for p in some], zs, outs)
        # output weights with the factors in them, (K, C in, C out)
        split = weight.view(channels, -1, channels).permute(1, 2, 0)
        folded = (split * factors[output_places].view(-1, 1, 1)).to(dtype).contiguous()
        ctx.save_for_backward(factors, weight, *flat)
        ctx.call, call.planes, call.folded = call, planes, folded
        rows, (plane, *others) = planes.view(len(planes), -1, channels), layout.output_planes
        out = torch.mm(rows[plane], folded[0])
        for plane, part in zip(others, folded[1:], strict=True):
            out.addmm_(rows[plane], part)
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        call: _Call = ctx.call
        factors, weight, *_ = ctx.saved_tensors
        planes, layout = call.planes, call.layout
        if planes is None:
            raise RuntimeError("a block can be differentiated only once per forward pass")
        _, wants_x, wants_factors, wants_weight, *wants_flat = ctx.needs_input_grad
        outgoing = gradient.permute(0, 2, 3, 1).to(planes.dtype).contiguous()
        gradients = call.pool.scratch("gradients", planes, planes.shape)
        _project_backward(gradients, layout.output_planes, outgoing, call.folded)
        factor_gradient = factors.new_zeros(factors.numel() + 2) if wants_factors else None
        weight_gradient = None
        if wants_factors or wants_weight:
            product = _output_products(planes, layout.output_planes, outgoing).to(weight.dtype)
            places, channels = layout.places(planes.device)[1], weight.shape[0]
            if factor_gradient is not None:
                split = weight.view(channels, -1, channels).permute(1, 2, 0)
                factor_gradient[places] = (product * split).sum((1, 2))
            product = product * factors[places].view(-1, 1, 1)
            weight_gradient = product.permute(2, 0, 1).reshape(weight.shape)
        found: list[list[Tensor | None]] = [[None] * len(node.parameters) for node in call.nodes]
        for level in reversed(layout.levels):
            # level 1 of the first block in a factor step: nobody asks for its gradients
            if level[0] > layout.num_direct or wants_x or any(wants_flat):
                _level_backward(call, level, gradients, found, factor_gradient)
        x_gradient = gradients[0].clone().permute(0, 3, 1, 2) if wants_x else None
        call.pool.give(planes, *call.sums)
        call.planes = None
        call.sums.clear()
        return (
            None,
            x_gradient,
            None if factor_gradient is None else factor_gradient[:-2],
            weight_gradient if wants_weight else None,
            *(value for values in found for value in values),
        )


def _level_backward(
    call: _Call,
    level: tuple[int, int],
    gradients: Tensor,
    found: list[list[Tensor | None]],
    factor_gradient: Tensor | None,
) -> None:
    """Go back through the nodes of a level and its sums; writes all their gradients."""
    planes, (first, end) = call.planes, level
    assert planes is not None
    mixed = first > call.layout.num_direct
    arriving = call.pool.scratch("arriving", planes, planes[first:end].shape)
    for some in reversed(call.groups(first, end)):
        nodes, outs = [call.nodes[p - 1] for p in some], [planes[p] for p in some]
        results = _run_nodes_backward(nodes, [gradients[p] for p in some], outs)
        for plane, (z_gradient, parameters) in zip(some, results, strict=True):
            found[plane - 1] = parameters
            if mixed:
                target = arriving[plane - first]
                _ = target.zero_() if z_gradient is None else target.copy_(z_gradient)
            elif z_gradient is not None:
                gradients[0].add_(z_gradient)
    if not mixed:
        return
    rows = slice(first - 1, end - 1)
    matrix = call.matrix[rows, :first]
    gradients[:first].flatten(1).addmm_(matrix.t(), arriving.flatten(1))
    if factor_gradient is not None:
        places = call.layout.places(planes.device)[0][rows, :first]
        factor_gradient[places] = _factor_products(planes[:first], arriving).to(factor_gradient)


def _project_backward(
    gradients: Tensor, feeding: Sequence[int], outgoing: Tensor, folded: Tensor
) -> None:
    """Fill the buffer of gradients (P, B, H, W, C) with those that come from the output."""
    rows = gradients.view(gradients.shape[0], -1, gradients.shape[-1])
    arriving = outgoing.view(-1, gradients.shape[-1])
    matrices = dict(zip(feeding, folded, strict=True))
    for plane, row in enumerate(rows):
        if plane in matrices:
            torch.mm(arriving, matrices[plane].t(), out=row)
        else:
            row.zero_()


def _output_products(planes: Tensor, feeding: Sequence[int], outgoing: Tensor) -> Tensor:
    """For each plane that feeds the output, plane^T outgoing: (K, C in, C out)."""
    channels = planes.shape[-1]
    rows = planes[1:] if len(feeding) == len(planes) - 1 else planes[list(feeding)]
    rows = rows.view(len(feeding), -1, channels)
    wide = outgoing.view(1, -1, channels).expand(len(feeding), -1, -1)
    return torch.bmm(rows.transpose(1, 2), wide)


def _factor_products(planes: Tensor, arriving: Tensor) -> Tensor:
    """Gradient of a level's factors (n, P), from the gradients of its sums (n, B, H, W, C).

    A product with a tiny result and a huge inner size is slow; one product per image and a sum over
    images is the same and twice as fast.
    """
    left = arriving.flatten(2).transpose(0, 1)
    return torch.bmm(left, planes.flatten(2).permute(1, 2, 0)).sum(0)
