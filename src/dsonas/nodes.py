"""One operation of a block with its batch normalisation and ReLU, as the fast path runs it.

The operation itself runs under autograd in a small graph of its own, so any registered operation
works. Batch normalisation and ReLU are differentiated here by hand: they write their result
straight into the block's buffer, the ReLU's mask is read off that result, and the output of the
batch normalisation is never kept. Cheap operations keep nothing but their input: backward runs them
again.
"""

from __future__ import annotations

from itertools import compress

import torch
from torch import Tensor, nn

from dsonas.batchnorm import normalise, normalise_backward


class NodeRun:
    """What one operation leaves in the forward pass for the backward pass.

    Args:
        operation: maps (B, C, H, W) to the same shape.
        bn: its batch normalisation, in training mode.
        recompute: run the operation again in backward rather than keep what it would need there;
            operations with a true attribute ``recomputable`` are always treated so.
    """

    def __init__(self, operation: nn.Module, bn: nn.BatchNorm2d, recompute: bool) -> None:
        self.operation, self.bn = operation, bn
        self.recompute = recompute or getattr(operation, "recomputable", False)
        self.inner = [p for p in operation.parameters() if p.requires_grad]
        self.wants = (bn.weight.requires_grad, bn.bias.requires_grad)
        self.parameters = [*self.inner, *compress((bn.weight, bn.bias), self.wants)]

    def forward(self, z: Tensor, out: Tensor) -> None:
        """Write ReLU(BN(operation(z))) into ``out``; both are (B, H, W, C)."""
        self.z = z.permute(0, 3, 1, 2).detach().requires_grad_()
        self.autocast = torch.is_autocast_enabled(z.device.type)
        features = self._operate(out.dtype, tracked=not self.recompute)
        self.features = None if self.recompute else features
        self.statistics = normalise(self.bn, features, out.permute(0, 3, 1, 2))
        out.clamp_(min=0)

    def _operate(self, dtype: torch.dtype, tracked: bool) -> Tensor:
        precision = torch.autocast(self.z.device.type, dtype, enabled=self.autocast)
        with torch.set_grad_enabled(tracked), precision:
            return self.operation(self.z).to(dtype, memory_format=torch.channels_last)

    def backward(self, gradient: Tensor, out: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of z (B, C, H, W) and of ``parameters``; frees what forward left.

        Args:
            gradient: of ``out``; it is overwritten.
            out: what forward wrote.
        """
        # The ReLU's mask is applied in place: nobody reads this plane's gradient again.
        torch.ops.aten.threshold_backward.grad_input(gradient, out, 0, grad_input=gradient)
        features, z = self.features, self.z
        if features is None:
            features = self._operate(out.dtype, tracked=True)
        del self.features, self.z
        through = features.requires_grad  # not for an operation that ignores its input, like a zero
        incoming, *rest = normalise_backward(
            self.bn, features, self.statistics, gradient.permute(0, 3, 1, 2), (through, *self.wants)
        )
        found = list(compress(rest, self.wants))
        if not through:
            return None, [*[None] * len(self.inner), *found]
        z_gradient, *inner = torch.autograd.grad(
            features, [z, *self.inner], incoming, allow_unused=True
        )
        return z_gradient, [*inner, *found]
