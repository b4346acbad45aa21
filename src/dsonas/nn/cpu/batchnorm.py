"""Batch normalisation: by folded rows for few channels on CPUs, and over several processes.

Of processes that train together each has an equal part of a batch. If they are to act as one, the
sums behind the statistics and behind their gradients are added up over them, in one small exchange
in each direction (``torch.nn.SyncBatchNorm`` does the same, but has no CPU version).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsonas._utils import num_processes, sum_all_over_processes
from dsonas.nn.cpu.rows import (
    as_rows,
    fold,
    folded_moments,
    folded_sums,
    pixels_in_row,
    unfold,
    wide_rows,
)

Wants = tuple[bool, bool, bool]
Found = tuple[Tensor | None, Tensor | None, Tensor | None]


class Statistics(NamedTuple):
    """Mean and 1 / standard deviation of each channel (C,), and how they were found."""

    mean: Tensor
    invstd: Tensor
    folded: bool


class BatchNorm(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, by way of folded rows where that is faster.

    Attributes:
        fast_kernel: whether rows may be folded.
        synchronised: whether the statistics are those of the parts of all processes.
    """

    fast_kernel = True
    synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        folds = self.training and torch.is_grad_enabled() and pixels_in_row(self, input) > 0
        if folds or (self.training and self.synchronised):
            return own_batch_norm(input, self.weight, self.bias, self)
        return super().forward(input)


def own_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, bn: Any) -> Tensor:
    """Batch normalisation in training mode by folded rows, and over the processes.

    Features (B, C, H, W), gamma (C,) and beta (C,); ``bn`` is what has the values of a BatchNorm.
    """
    return _OwnBatchNorm.apply(x, weight, bias, bn)  # type: ignore[no-any-return]


class _OwnBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        result = torch.empty_like(x, memory_format=torch.channels_last)
        (sums,) = exchange([bn], moments, [x])
        ctx.statistics, ctx.bn = normalise(bn, x, result, sums), bn
        ctx.save_for_backward(x, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, _ = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        bn, statistics, wants = ctx.bn, ctx.statistics, ctx.needs_input_grad[:3]
        (sums,) = exchange([bn], gradient_sums, [x], [statistics], [gradient])
        return *normalise_backward(bn, x, statistics, gradient, wants, sums), None


def exchange(
    bns: Sequence[nn.BatchNorm2d], sums: Callable[..., Tensor], *values: Sequence[Any]
) -> list[tuple[Tensor, Tensor] | None]:
    """Add up sums over the processes, those of several modules in one exchange.

    ``sums`` is ``moments`` or ``gradient_sums``; ``values`` are their other arguments, one for each
    module. Returns the sums of this process and of all; None for each if they are not synchronised.
    """
    if not getattr(bns[0], "synchronised", False):
        return [None] * len(bns)
    own = [sums(*one) for one in zip(bns, *values, strict=True)]
    return list(zip(own, sum_all_over_processes(own), strict=True))


def normalise(
    bn: nn.BatchNorm2d, x: Tensor, out: Tensor, sums: tuple[Tensor, Tensor] | None = None
) -> Statistics:
    """Batch normalisation in training mode, of (B, C, H, W) into ``out`` in channels_last.

    Updates the running statistics. ``sums`` is what ``exchange`` gave of ``moments``. Returns what
    ``normalise_backward`` needs.
    """
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    if sums is not None:
        return _normalise_by(bn, x, sums[1], out)
    rows = fold(bn, x)
    found = None if rows is None else folded_moments(bn, rows)
    if rows is None or found is None:
        mean, invstd = torch.empty_like(bn.bias), torch.empty_like(bn.bias)
        torch.ops.aten.native_batch_norm.out(
            x.detach(), bn.weight, bn.bias, bn.running_mean, bn.running_var, True,
            bn.momentum, bn.eps, out=out, save_mean=mean, save_invstd=invstd,
        )  # fmt: skip
        return Statistics(mean, invstd, folded=False)
    mean, variance = found
    count = x.numel() // bn.num_features
    _track(bn, mean, variance * (count / (count - 1)))
    statistics = Statistics(mean, (variance + bn.eps).rsqrt_(), folded=True)
    _write_normal(bn, rows, statistics, as_rows(out, rows.shape))
    return statistics


def _normalise_by(bn: nn.BatchNorm2d, x: Tensor, sums: Tensor, out: Tensor) -> Statistics:
    """Normalise by the sums over the processes of what ``_moments`` gives."""
    mean, square = sums / num_processes()
    variance = square - mean.square()
    invstd = (variance + bn.eps).rsqrt().to(bn.weight)
    count = x.numel() // bn.num_features * num_processes()
    statistics = Statistics(mean.to(bn.weight), invstd, folded=False)
    _track(bn, statistics.mean, (variance * (count / (count - 1))).to(bn.weight))
    rows = wide_rows(x)
    _write_normal(bn, rows, statistics, as_rows(out, rows.shape))
    return statistics


def normalise_backward(
    bn: nn.BatchNorm2d,
    x: Tensor,
    statistics: Statistics,
    gradient: Tensor,
    wants: Wants,
    sums: tuple[Tensor, Tensor] | None = None,
) -> Found:
    """Gradients of x, gamma and beta, those that are wanted.

    From that of the result, (B, C, H, W) in channels_last. Of several processes, gamma and beta get
    the part of this one alone, as all other weights do. ``sums`` is what ``exchange`` gave of
    ``gradient_sums``.
    """
    if sums is None:
        return _backward(bn, x, statistics, gradient, wants)
    own, total = sums
    found = _backward_by(bn, x, statistics, gradient, total) if wants[0] else None
    return found, own[0] if wants[1] else None, own[1] if wants[2] else None


def gradient_sums(
    bn: nn.BatchNorm2d, x: Tensor, statistics: Statistics, gradient: Tensor
) -> Tensor:
    """Sums of g * xhat and of g in this process, (2, C): the gradients of gamma and beta."""
    _, along, total = _native_backward(bn, x, statistics, gradient, (False, True, True))
    assert along is not None
    assert total is not None
    return torch.stack([along, total])


def _native_backward(
    bn: nn.BatchNorm2d, x: Tensor, statistics: Statistics, gradient: Tensor, wants: Wants
) -> Found:
    return torch.ops.aten.native_batch_norm_backward(
        gradient, x.detach(), bn.weight, bn.running_mean, bn.running_var, statistics.mean,
        statistics.invstd, True, bn.eps, list(wants),
    )  # fmt: skip


def _backward(
    bn: nn.BatchNorm2d, x: Tensor, statistics: Statistics, gradient: Tensor, wants: Wants
) -> Found:
    mean, invstd, folded = statistics
    rows = fold(bn, x) if folded else None
    if rows is None or not wants[0]:
        return _native_backward(bn, x, statistics, gradient, wants)
    arriving = as_rows(gradient, rows.shape)
    product, total = folded_sums(rows, arriving, len(mean))
    along = torch.addcmul(product, mean, total, value=-1).mul_(invstd)  # sum of g * xhat
    count = x.numel() // len(mean)
    result = torch.empty_like(x)
    found = as_rows(result, rows.shape)
    _input_gradient(bn, rows, arriving, statistics, (along, total, count), found)
    return result, along if wants[1] else None, total if wants[2] else None


def _backward_by(
    bn: nn.BatchNorm2d, x: Tensor, statistics: Statistics, gradient: Tensor, sums: Tensor
) -> Tensor:
    """Gradient of x, from the sums over the processes of those of gamma and beta."""
    count = x.numel() // bn.num_features * num_processes()
    result = torch.empty_like(x, memory_format=torch.channels_last)
    rows, arriving = wide_rows(x), wide_rows(gradient)
    found = as_rows(result, rows.shape)
    _input_gradient(bn, rows, arriving, statistics, (sums[0], sums[1], count), found)
    return result


def _write_normal(bn: nn.BatchNorm2d, rows: Tensor, statistics: Statistics, out: Tensor) -> None:
    """Write gamma * xhat + beta, as one factor of x and an offset; all in rows."""
    scale = bn.weight.detach() * statistics.invstd
    shift = torch.addcmul(bn.bias.detach(), statistics.mean, scale, value=-1)
    torch.addcmul(unfold(shift, rows), rows, unfold(scale, rows), out=out)


def _input_gradient(
    bn: nn.BatchNorm2d,
    rows: Tensor,
    arriving: Tensor,
    statistics: Statistics,
    sums: tuple[Tensor, Tensor, int],
    out: Tensor,
) -> None:
    """Write the gradient of x, from the sums of g * xhat and g over so many pixels; all in rows.

    dx = scale * (g - mean(g) - xhat * mean(g xhat)), as one factor each of g, x and 1.
    """
    along, total, count = sums
    scale = bn.weight.detach() * statistics.invstd
    slope = scale * statistics.invstd * along / -count
    offset = -torch.addcmul(slope * statistics.mean, scale, total, value=1 / count)
    torch.addcmul(unfold(offset, rows), rows, unfold(slope, rows), out=out)
    out.addcmul_(arriving, unfold(scale, rows))


def moments(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Mean and mean square of each channel in this process, (2, C).

    In float64, where the mean of squares holds a variance that is small beside the mean.
    """
    rows = fold(bn, x)
    found = None if rows is None else folded_moments(bn, rows)
    mean, variance = found or torch.batch_norm_update_stats(x.detach(), None, None, 0.0)
    return torch.stack([mean.double(), variance.double() + mean.double().square()])


def _track(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(variance, bn.momentum)
