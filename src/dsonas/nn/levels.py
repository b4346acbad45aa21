"""A block of a supernet level by level, in few calls of ordinary autograd.

For devices and sizes at which a step waits for the host: what it takes there is the number of
calls. The features of a level lie side by side as channels, so one batch normalisation and one ReLU
do for all its operations, and one product adds them to all later sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas._utils import write_back
from dsonas.nn.cpu.batchnorm import own_batch_norm
from dsonas.nn.cpu.layout import Layout


def run_levels(
    x: Tensor,
    factors: Tensor,
    output_weight: Tensor,
    layout: Layout,
    operations: Sequence[nn.Module],
    bns: Sequence[nn.BatchNorm2d],
) -> Tensor:
    """Run what ``run_buffered`` runs, by the same arguments but for the parts of the nodes.

    Args:
        operations: of the kept nodes, each from (B, C, H, W) to the same shape.
        bns: their batch normalisations, in training mode.
    """
    batch, channels, height, width = x.shape
    columns, output_factors = layout.columns(factors)
    norms = _JoinedNorms(bns, [end - first for first, end in layout.levels])
    planes, sums, features = x.reshape(batch, 1, -1), None, []
    for level, ((first, end), column) in enumerate(zip(layout.levels, columns, strict=True)):
        some = column.expand(batch, -1, -1)
        sums = torch.bmm(some, planes) if sums is None else torch.baddbmm(sums, some, planes)
        z, sums = sums.split_with_sizes([end - first, len(layout.nodes) + 1 - end], 1)
        z = z.view(batch, -1, height, width)
        y = torch.cat(_operate(operations[first - 1 : end - 1], z), 1)
        features.append(norms(level, y).relu_())
        planes = features[-1].reshape(batch, end - first, -1)
    norms.track()
    y = torch.cat(features, 1)
    if len(layout.output_planes) < len(layout.nodes):
        parts = y.split(channels, 1)
        y = torch.cat([parts[plane - 1] for plane in layout.output_planes], 1)
    weight = output_weight.view(channels, -1, channels) * output_factors.view(-1, 1)
    return F.conv2d(y, weight.view_as(output_weight))


def _operate(operations: Sequence[nn.Module], z: Tensor) -> list[Tensor]:
    """Run operations on their parts of the channels (B, n * C, H, W), like ones together."""
    groups = [(run, list(some)) for run, some in groupby(operations, _side_by_side)]
    channels, found = z.shape[1] // len(operations), []
    parts = z.split_with_sizes([channels * len(some) for _, some in groups], 1)
    for (run, some), part in zip(groups, parts, strict=True):
        if run is not None:
            found += run(some, part)
        else:
            found += [
                operation(x) for operation, x in zip(some, part.split(channels, 1), strict=True)
            ]
    return found


def _side_by_side(operation: nn.Module) -> Any:
    """How several of its kind run together; None if it must be called itself, for its hooks too."""
    hooked = operation._forward_hooks or operation._forward_pre_hooks
    return None if hooked else vars(type(operation)).get("side_by_side")


class _JoinedNorms:
    """The batch normalisations of a block, one call for those of a level.

    Args:
        bns: of all nodes, in training mode; alike but for their values.
        counts: how many belong to each level.
    """

    def __init__(self, bns: Sequence[nn.BatchNorm2d], counts: Sequence[int]) -> None:
        self.bn, sizes = bns[0], [count * bns[0].num_features for count in counts] * 2
        # by the mappings behind them: a module takes as long to find an attribute as cat runs
        own = [bn._parameters for bn in bns]
        kept: list[Any] = [bn._buffers for bn in bns]
        self._running = [part[name] for name in ("running_mean", "running_var") for part in kept]
        self._counts = [part["num_batches_tracked"] for part in kept]
        affine: list[Any] = [part[name] for name in ("weight", "bias") for part in own]
        self._joined = torch.cat(self._running)
        self._affine = torch.cat(affine).split_with_sizes(sizes)
        self._statistics = self._joined.split_with_sizes(sizes)

    def __call__(self, level: int, x: Tensor) -> Tensor:
        """Features of a level (B, n * C, H, W) to the same shape."""
        pair = slice(level, None, len(self._affine) // 2)
        (weight, bias), (mean, variance) = self._affine[pair], self._statistics[pair]
        bn, cudnn = self.bn, torch.backends.cudnn.enabled
        assert bn.momentum is not None
        if not getattr(bn, "synchronised", False):
            return torch.batch_norm(
                x, weight, bias, mean, variance, True, bn.momentum, bn.eps, cudnn
            )
        joined = SimpleNamespace(
            weight=weight, bias=bias, running_mean=mean, running_var=variance,
            momentum=bn.momentum, eps=bn.eps, num_features=len(weight), num_batches_tracked=None,
            synchronised=True,
        )  # fmt: skip
        return own_batch_norm(x, weight, bias, joined)

    @torch.no_grad()
    def track(self) -> None:
        """Write back the running statistics, once all levels have been normalised."""
        write_back(self._joined, self._running)
        torch._foreach_add_(self._counts, 1)  # pyright: ignore[reportPrivateImportUsage]
