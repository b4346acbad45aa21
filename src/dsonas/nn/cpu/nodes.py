"""Operations of a block with their batch normalisation and ReLU, as the fast path runs them.

The operation itself runs under autograd in a small graph of its own, so any registered operation
works. Batch normalisation and ReLU are differentiated here by hand: they write their result
straight into the block's buffer, the ReLU's mask is read off that result, and the output of the
batch normalisation is never kept. Cheap operations keep nothing but their input: backward runs them
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor, nn

from dsonas.nn.cpu.batchnorm import Found, Statistics, normalise, normalise_backward


class NodeRun:
    """What one operation leaves in the forward pass for the backward pass.

    Args:
        operation: maps (B, C, H, W) to the same shape.
        bn: its batch normalisation, in training mode.
        recompute: run the operation again in backward rather than keep what it would need there;
            operations with a true attribute ``recomputable`` are always treated so.
    """

    statistics: Statistics

    def __init__(self, operation: nn.Module, bn: nn.BatchNorm2d, recompute: bool) -> None:
        self.operation, self.bn = operation, bn
        self.recompute = recompute or getattr(operation, "recomputable", False)
        self.inner = [p for p in operation.parameters() if p.requires_grad]
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
        precision = torch.autocast(self.z.device.type, dtype, enabled=self.autocast)
        with torch.set_grad_enabled(tracked), precision:
            return self.operation(self.z).to(dtype, memory_format=torch.channels_last)

    def take_features(self, dtype: torch.dtype) -> Tensor:
        """The features once more, for backward; they are not kept any longer."""
        kept, self.features = self.features, None
        return self._operate(dtype, tracked=True) if kept is None else kept

    def backward(self, features: Tensor, found: Found) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of z (B, C, H, W) and of ``parameters``; frees what forward left.

        Args:
            features: what ``take_features`` gave.
            found: gradients of the features, and of gamma and beta.
        """
        incoming, *rest = found
        z, outer = self.z, list(compress(rest, self.wants))
        del self.z
        if incoming is None:
            return None, [*[None] * len(self.inner), *outer]
        z_gradient, *inner = torch.autograd.grad(
            features, [z, *self.inner], incoming, allow_unused=True
        )
        return z_gradient, [*inner, *outer]


def run_nodes(nodes: Sequence[NodeRun], zs: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    """Write ReLU(BN(operation(z))) of each node into its ``out``; all are (B, H, W, C)."""
    features = [node.operate(z, out.dtype) for node, z, out in zip(nodes, zs, outs, strict=True)]
    places = [out.permute(0, 3, 1, 2) for out in outs]
    found = normalise([node.bn for node in nodes], features, places)
    for node, statistics, out in zip(nodes, found, outs, strict=True):
        node.statistics = statistics
        out.clamp_(min=0)


def run_nodes_backward(
    nodes: Sequence[NodeRun], gradients: Sequence[Tensor], outs: Sequence[Tensor]
) -> list[tuple[Tensor | None, list[Tensor | None]]]:
    """Gradients of z (B, C, H, W) and of the parameters of each node; see ``NodeRun.backward``.

    Args:
        nodes: as in ``run_nodes``.
        gradients: of ``outs``; they are overwritten.
        outs: what ``run_nodes`` wrote.
    """
    for gradient, out in zip(gradients, outs, strict=True):
        # The ReLU's mask is applied in place: nobody reads this plane's gradient again.
        torch.ops.aten.threshold_backward.grad_input(gradient, out, 0, grad_input=gradient)
    features = [node.take_features(out.dtype) for node, out in zip(nodes, outs, strict=True)]
    # an operation that ignores its input, like a zero, wants no gradient of its features
    wants = [(x.requires_grad, *node.wants) for node, x in zip(nodes, features, strict=True)]
    found = normalise_backward(
        [node.bn for node in nodes],
        features,
        [node.statistics for node in nodes],
        [gradient.permute(0, 3, 1, 2) for gradient in gradients],
        wants,
    )
    return [node.backward(x, one) for node, x, one in zip(nodes, features, found, strict=True)]
