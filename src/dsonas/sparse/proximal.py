"""The proximal method that presses scaling factors to exactly zero (eq. 6-8 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dsonas._utils import send, write_back


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Proximal operator of ``threshold * ||x||_1``, elementwise.

    Args:
        values: scaling factors, any shape, dimensionless.
        threshold: step size times penalty, >= 0; a number or a tensor of the shape of ``values``.

    Returns:
        A tensor of the same shape; entries with ``|value| <= threshold`` are exactly 0.

    Raises:
        ValueError: if a numeric ``threshold`` is negative. (A tensor is not looked at: that would
            make an accelerator wait.)

    Example:
        >>> soft_threshold(torch.tensor([1.5, 0.2]), 0.5)
        tensor([1., 0.])

    Source: arXiv 1811.01567, eq. 6-8.
    """
    if not isinstance(threshold, Tensor) and not threshold >= 0:
        raise ValueError(f"threshold must be >= 0, got {threshold}")
    return values.sign() * (values.abs() - threshold).clamp(min=0)


class ProximalNAG(Optimizer):
    """Accelerated proximal gradient with Nesterov momentum for scaling factors ("APG-NAG").

    With g the (elementwise clipped) gradient, S the soft threshold, and v the momentum::

        z      <- S_{lr * penalty}( lambda - lr * g )
        v      <- z - lambda + momentum * v
        lambda <- max(0, z + momentum * v)

    The projection comes last and v is not projected. Momentum 0 is the plain proximal gradient
    step. There is no weight decay.

    Args:
        params: scaling factors, any shapes, or parameter groups.
        lr: step size, > 0.
        penalty: L1 weight per scaling factor, >= 0; a number, or a tensor that broadcasts to the
            parameter. Set ``group["penalty"]`` to change it while training.
        momentum: in [0, 1).
        clip: gradients are clipped to [-clip, clip] elementwise; ``None`` does not clip.

    Raises:
        ValueError: if a value is outside its range.

    Example:
        >>> factor = torch.nn.Parameter(torch.tensor([1.0, 0.01]))
        >>> optimizer = ProximalNAG([factor], lr=0.1, penalty=0.5, momentum=0.0)
        >>> factor.sum().backward()
        >>> optimizer.step()
        >>> factor.data
        tensor([0.8500, 0.0000])

    Source: arXiv 1811.01567, eq. 6-8.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        penalty: float | Tensor = 1e-3,
        momentum: float = 0.9,
        clip: float | None = 2.0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be > 0 or None, got {clip}")
        if not bool((torch.as_tensor(penalty) >= 0).all()):
            raise ValueError(f"penalty must be >= 0, got {penalty}")
        defaults = {"lr": lr, "penalty": penalty, "momentum": momentum, "clip": clip}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every scaling factor that has a gradient.

        Args:
            closure: recomputes the loss, with gradients enabled; optional.

        Returns:
            The closure's value, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [(p, group) for group in self.param_groups for p in group["params"]]
        found = [(param, group) for param, group in found if param.grad is not None]
        if len(found) > FEW and len({_alike(param, group) for param, group in found}) == 1:
            self._update_together(found)
        else:
            for param, group in found:
                penalty = group["penalty"]
                penalty = penalty.to(param) if isinstance(penalty, Tensor) else penalty
                _proximal_step(param, param.grad, self._momentum(param), penalty, group)
        return loss

    def _update_together(self, found: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Do the same for many small vectors as for one long one: a few calls in all."""
        params = [param for param, _ in found]
        buffers = [self._momentum(param) for param in params]
        flat, momenta = _flat(params), _flat(buffers)
        sizes = [param.numel() for param in params]
        _proximal_step(
            flat, _flat([p.grad for p in params]), momenta, _penalties(found, sizes), found[0][1]
        )
        for targets, values in ((params, flat), (buffers, momenta)):
            write_back(values, targets)

    def _momentum(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state["momentum_buffer"]


FEW = 8  # vectors, up to which one after the other is as fast


def _proximal_step(
    param: Tensor,
    grad: Tensor | None,
    buffer: Tensor,
    penalty: float | Tensor,
    group: dict[str, Any],
) -> None:
    """Update factors and their momenta in place."""
    lr, momentum, clip = group["lr"], group["momentum"], group["clip"]
    assert grad is not None
    if clip is not None:
        grad = grad.clamp(-clip, clip)
    proximal = soft_threshold(param - lr * grad, lr * penalty)
    buffer.mul_(momentum).add_(proximal).sub_(param)
    param.copy_((proximal + momentum * buffer).clamp_(min=0))


def _alike(param: Tensor, group: dict[str, Any]) -> tuple[Any, ...]:
    return param.dtype, param.device, group["lr"], group["momentum"], group["clip"]


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    found = [tensor for tensor in tensors if tensor is not None]
    vectors = all(tensor.ndim == 1 for tensor in found)
    return torch.cat(found if vectors else [tensor.reshape(-1) for tensor in found])


def _penalties(found: Sequence[tuple[Tensor, dict[str, Any]]], sizes: Sequence[int]) -> Tensor:
    """The penalty of every entry, of all vectors one after the other."""
    values = [group["penalty"] for _, group in found]
    if any(isinstance(value, Tensor) for value in values):
        pairs = zip(values, (param for param, _ in found), strict=True)
        return _flat([torch.as_tensor(v).to(p).expand_as(p) for v, p in pairs])
    like = found[0][0]
    repeated = [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
    return send(torch.tensor(repeated, dtype=like.dtype), like.device)
