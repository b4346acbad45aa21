"""Batch normalisation that is fast for few channels on CPUs, too.

The CPU library runs along the channels; with fewer than 16 of them, or another remainder, most of
its vector lanes stay empty (8 channels: up to eight times slower an element than 16). In
channels_last several pixels in a row are one longer row, so we let its kernels see k pixels of C
channels as one pixel of k * C channels, and put the k results for a channel together.

Of processes that train together each has an equal part of a batch. If they are to act as one, the
sums behind the statistics and behind their gradients are added up over them, in one small exchange
in each direction (``torch.nn.SyncBatchNorm`` does the same, but has no CPU version).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsonas.processes import num_processes, sum_over_processes

LANES = 16  # of the CPU library's kernels
ROW = 64  # values in a row, from which longer ones gain nothing
WIDE_ROW = 256  # the same for elementwise work
FEWEST_PIXELS = 10_000  # in a batch, for which a dozen small calls more pay
LARGEST_OFFSET = 20.0  # of a channel's mean, in standard deviations, for sums in one pass


class Statistics(NamedTuple):
    """Mean and 1 / standard deviation of each channel (C,), and how they were found."""

    mean: Tensor
    invstd: Tensor
    folded: bool


class BatchNorm(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, by way of folded rows where that is faster.

    Attributes:
        shortcut: whether rows may be folded.
        synchronised: whether the statistics are those of the parts of all processes.
    """

    shortcut = True
    synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        if self.training and (self.synchronised or self._folds(input)):
            return _OwnBatchNorm.apply(input, self.weight, self.bias, self)  # type: ignore[no-any-return]
        return super().forward(input)

    def _folds(self, input: Tensor) -> bool:
        return torch.is_grad_enabled() and _fold(self, input) is not None


class _OwnBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        result = torch.empty_like(x, memory_format=torch.channels_last)
        ctx.statistics, ctx.bn = normalise(bn, x, result), bn
        ctx.save_for_backward(x, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, _ = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wants = ctx.needs_input_grad[:3]
        return *normalise_backward(ctx.bn, x, ctx.statistics, gradient, wants), None


def normalise(bn: nn.BatchNorm2d, x: Tensor, out: Tensor) -> Statistics:
    """Batch normalisation in training mode; updates the running statistics.

    Args:
        bn: affine, with running statistics.
        x: (B, C, H, W).
        out: where the result goes, (B, C, H, W) in channels_last.

    Returns:
        What ``normalise_backward`` needs.
    """
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    if getattr(bn, "synchronised", False):
        return _normalise_together(bn, x, out)
    rows = _fold(bn, x)
    statistics = None if rows is None else _statistics(bn, rows)
    if rows is None or statistics is None:
        mean, invstd = torch.empty_like(bn.bias), torch.empty_like(bn.bias)
        torch.ops.aten.native_batch_norm.out(
            x.detach(), bn.weight, bn.bias, bn.running_mean, bn.running_var, True,
            bn.momentum, bn.eps, out=out, save_mean=mean, save_invstd=invstd,
        )  # fmt: skip
        return Statistics(mean, invstd, folded=False)
    mean, invstd, _ = statistics
    scale = bn.weight.detach() * invstd
    shift = torch.addcmul(bn.bias.detach(), mean, scale, value=-1)
    torch.addcmul(_unfold(shift, rows), rows, _unfold(scale, rows), out=_rows(out, rows.shape))
    return statistics


def normalise_backward(
    bn: nn.BatchNorm2d,
    x: Tensor,
    statistics: Statistics,
    gradient: Tensor,
    wants: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, gamma and beta, those that are wanted.

    Args:
        bn: as in ``normalise``.
        x: as in ``normalise``.
        statistics: what ``normalise`` returned.
        gradient: of the result, (B, C, H, W) in channels_last.
        wants: which gradients to compute.
    """
    mean, invstd, folded = statistics
    if getattr(bn, "synchronised", False):
        return _backward_together(bn, x, statistics, gradient, wants)
    rows = _fold(bn, x) if folded else None
    if rows is None or not wants[0]:
        return torch.ops.aten.native_batch_norm_backward(
            gradient, x.detach(), bn.weight, bn.running_mean, bn.running_var, mean, invstd, True,
            bn.eps, list(wants),
        )  # fmt: skip
    arriving = _rows(gradient, rows.shape)
    product, total = _sums(rows, arriving, len(mean))
    along = torch.addcmul(product, mean, total, value=-1).mul_(invstd)  # sum of g * xhat
    count = x.numel() // len(mean)
    result = torch.empty_like(x)
    found = _rows(result, rows.shape)
    _input_gradient(bn, rows, arriving, statistics, (along, total, count), found)
    return result, along if wants[1] else None, total if wants[2] else None


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
    torch.addcmul(_unfold(offset, rows), rows, _unfold(slope, rows), out=out)
    out.addcmul_(arriving, _unfold(scale, rows))


def _normalise_together(bn: nn.BatchNorm2d, x: Tensor, out: Tensor) -> Statistics:
    """``normalise`` by the statistics of all processes."""
    mean, variance = _moments(bn, x)
    # in float64 the mean of squares holds a variance that is small beside the mean
    both = torch.stack([mean.double(), variance.double() + mean.double().square()])
    mean, square = sum_over_processes(both).div_(num_processes())
    variance = square - mean.square()
    invstd = (variance + bn.eps).rsqrt().to(bn.weight)
    count = x.numel() // bn.num_features * num_processes()
    mean = mean.to(bn.weight)
    _track(bn, mean, (variance * (count / (count - 1))).to(bn.weight))
    scale = bn.weight.detach() * invstd
    shift = torch.addcmul(bn.bias.detach(), mean, scale, value=-1)
    rows = _wide_rows(x)
    torch.addcmul(_unfold(shift, rows), rows, _unfold(scale, rows), out=_rows(out, rows.shape))
    return Statistics(mean, invstd, folded=False)


def _backward_together(
    bn: nn.BatchNorm2d,
    x: Tensor,
    statistics: Statistics,
    gradient: Tensor,
    wants: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``normalise_backward`` through the statistics of all processes.

    Gamma and beta get their part of this process alone, as all other weights do.
    """
    mean, invstd, _ = statistics
    _, along, total = torch.ops.aten.native_batch_norm_backward(
        gradient, x.detach(), bn.weight, bn.running_mean, bn.running_var, mean, invstd, True,
        bn.eps, [False, True, True],
    )  # fmt: skip
    result = None
    if wants[0]:
        sums = sum_over_processes(torch.stack([along, total]))
        count = x.numel() // len(mean) * num_processes()
        result = torch.empty_like(x, memory_format=torch.channels_last)
        rows = _wide_rows(x)
        arriving, found = _wide_rows(gradient), _rows(result, rows.shape)
        _input_gradient(bn, rows, arriving, statistics, (sums[0], sums[1], count), found)
    return result, along if wants[1] else None, total if wants[2] else None


def _moments(bn: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (C,) in this process."""
    rows = _fold(bn, x)
    found = None if rows is None else _folded_moments(bn, rows)
    return found or torch.batch_norm_update_stats(x.detach(), None, None, 0.0)


def _track(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(variance, bn.momentum)


def _fold(bn: nn.BatchNorm2d, x: Tensor) -> Tensor | None:
    """Features as rows of k pixels (B * H * W / k, k * C); None where that is of no use."""
    channels = x.shape[1]
    pixels, k = x.numel() // channels, 1
    if not getattr(bn, "shortcut", False) or x.device.type != "cpu" or bn.momentum is None:
        return None
    if channels % LANES == 0 or pixels < FEWEST_PIXELS or x.dtype != bn.weight.dtype:
        return None
    while (k * channels < ROW or k * channels % LANES) and pixels % (2 * k) == 0 and k < LANES:
        k *= 2
    if k * channels % LANES or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    return _rows(x.detach(), torch.Size((pixels // k, k * channels)))


def _rows(x: Tensor, shape: torch.Size) -> Tensor:
    return x.permute(0, 2, 3, 1).view(shape)


def _wide_rows(x: Tensor) -> Tensor:
    """Features as rows of so many pixels that elementwise work on them is fast."""
    pixels, k = x.numel() // x.shape[1], 1
    while k * x.shape[1] < WIDE_ROW and pixels % (2 * k) == 0:
        k *= 2
    x = x.detach().contiguous(memory_format=torch.channels_last)
    return _rows(x, torch.Size((pixels // k, k * x.shape[1])))


def _unfold(vector: Tensor, rows: Tensor) -> Tensor:
    """A vector over the channels (C,) as one over a row (k * C,)."""
    return vector.expand(rows.shape[1] // len(vector), -1).reshape(-1)


def _statistics(bn: nn.BatchNorm2d, rows: Tensor) -> Statistics | None:
    """Statistics of a batch; None where one pass would not be accurate."""
    moments = _folded_moments(bn, rows)
    if moments is None:
        return None
    mean, variance = moments
    count = rows.numel() // bn.num_features
    _track(bn, mean, variance * (count / (count - 1)))
    return Statistics(mean, (variance + bn.eps).rsqrt_(), folded=True)


def _folded_moments(bn: nn.BatchNorm2d, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of each channel; None where one pass would not be accurate."""
    count = rows.numel() // bn.num_features
    square, mean = _sums(rows, rows, bn.num_features)
    square, mean = square.div_(count), mean.div_(count)
    variance = torch.addcmul(square, mean, mean, value=-1)
    if (square > variance * LARGEST_OFFSET**2).any():
        return None
    return mean, variance


def _sums(rows: Tensor, weights: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """For each channel, the sums of weights * x and of weights, two of (C,).

    They are what the library's backward pass computes for gamma and beta, in one pass.
    """
    zero, one = _constants(rows.shape[1], rows.dtype)
    _, product, total = torch.ops.aten.native_batch_norm_backward(
        weights[:, :, None, None], rows[:, :, None, None], one, zero, one, zero, one,
        True, 0.0, [False, True, True],
    )  # fmt: skip
    return product.view(-1, channels).sum(0), total.view(-1, channels).sum(0)


@cache
def _constants(length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(length, dtype=dtype), torch.ones(length, dtype=dtype)
