"""Feature maps as rows of several pixels, for few channels on CPUs.

The CPU library runs along the channels; with fewer than 16 of them, or another remainder, most of
its vector lanes stay empty (8 channels: up to eight times slower an element than 16). In
channels_last several pixels in a row are one longer row, so we let its kernels see k pixels of C
channels as one pixel of k * C channels, and put the k results for a channel together.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

LANES = 16  # of the CPU library's kernels
ROW = 64  # values in a row, from which longer ones gain nothing
WIDE_ROW = 256  # the same for elementwise work
FEWEST_PIXELS = 10_000  # in a batch, for which a dozen small calls more pay
LARGEST_OFFSET = 20.0  # of a channel's mean, in standard deviations, for sums in one pass


def fold(bn: nn.BatchNorm2d, x: Tensor) -> Tensor | None:
    """Features as rows of k pixels (B * H * W / k, k * C); None where that is of no use."""
    k = pixels_in_row(bn, x)
    if k == 0:
        return None
    width = k * x.shape[1]
    return as_rows(x.detach(), torch.Size((x.numel() // width, width)))


def pixels_in_row(bn: nn.BatchNorm2d, x: Tensor) -> int:
    """The k of folded rows; 0 where folding is of no use."""
    channels = x.shape[1]
    pixels, k = x.numel() // channels, 1
    if not getattr(bn, "fast_kernel", False) or x.device.type != "cpu" or bn.momentum is None:
        return 0
    if channels % LANES == 0 or pixels < FEWEST_PIXELS or x.dtype != bn.weight.dtype:
        return 0
    while (k * channels < ROW or k * channels % LANES) and pixels % (2 * k) == 0 and k < LANES:
        k *= 2
    whole = k * channels % LANES == 0 and x.is_contiguous(memory_format=torch.channels_last)
    return k if whole else 0


def as_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """Features (B, C, H, W) in channels_last as rows of a given shape, without a copy."""
    return x.permute(0, 2, 3, 1).view(shape)


def wide_rows(x: Tensor) -> Tensor:
    """Features as rows of so many pixels that elementwise work on them is fast."""
    pixels, k = x.numel() // x.shape[1], 1
    while k * x.shape[1] < WIDE_ROW and pixels % (2 * k) == 0:
        k *= 2
    x = x.detach().contiguous(memory_format=torch.channels_last)
    return as_rows(x, torch.Size((pixels // k, k * x.shape[1])))


def unfold(vector: Tensor, rows: Tensor) -> Tensor:
    """A vector over the channels (C,) as one over a row (k * C,)."""
    return vector.expand(rows.shape[1] // len(vector), -1).reshape(-1)


def folded_moments(bn: nn.BatchNorm2d, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of each channel; None where one pass would not be accurate."""
    count = rows.numel() // bn.num_features
    square, mean = folded_sums(rows, rows, bn.num_features)
    square, mean = square.div_(count), mean.div_(count)
    variance = torch.addcmul(square, mean, mean, value=-1)
    if (square > variance * LARGEST_OFFSET**2).any():
        return None
    return mean, variance


def folded_sums(rows: Tensor, weights: Tensor, channels: int) -> tuple[Tensor, Tensor]:
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
