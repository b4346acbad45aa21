"""The scaled sums and the output convolution of a block, as matrix products over feature planes.

Planes are (P, B, H, W, C) in one buffer: the block input, then its nodes level by level. Everything
here is a pure function of such buffers; ``fused.py`` calls them in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsonas._utils import send
from dsonas.nn.cpu.layout import Layout, Level


def level_matrices(layout: Layout, factors: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The scaling factors of each mixed level as (nodes, planes before it), zeros where dead."""
    padded = torch.cat([factors, factors.new_zeros(1)]).to(dtype)
    mixed = [level for level in layout.levels if level.positions]
    return [padded[send(torch.tensor(level.positions), factors.device)] for level in mixed]


def mix(matrix: Tensor, planes: Tensor, out: Tensor) -> None:
    """Write the sums (n, B, H, W, C) of planes (P, B, H, W, C), weighted by matrix (n, P)."""
    torch.mm(matrix, planes.view(planes.shape[0], -1), out=out.view(matrix.shape[0], -1))


def mix_backward(matrix: Tensor, arriving: Tensor, gradients: Tensor) -> None:
    """Add what the sums' gradients (n, B, H, W, C) mean for the planes' (P, B, H, W, C)."""
    rows = arriving.view(arriving.shape[0], -1)
    gradients.view(gradients.shape[0], -1).addmm_(matrix.t(), rows)


def mix_factor_gradient(
    level: Level, planes: Tensor, arriving: Tensor, factor_gradient: Tensor
) -> None:
    """Write the gradient of a level's scaling factors, from the gradients of its sums.

    A product with a tiny result and a huge inner size is slow; one product per image and a sum over
    images is the same and twice as fast.
    """
    count, batch = planes.shape[:2]
    left = arriving.view(len(arriving), batch, -1).transpose(0, 1)
    right = planes.view(count, batch, -1).permute(1, 2, 0)
    product = torch.bmm(left, right).sum(0).to(factor_gradient.dtype)
    places = send(torch.tensor(level.positions), product.device)
    factor_gradient[places.view(-1)] = product.view(-1)


def fold(weight: Tensor, output_factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Output weights with the factors in them, (K, C in, C out)."""
    channels = weight.shape[0]
    split = weight.view(channels, -1, channels).permute(1, 2, 0)
    return (split * output_factors.view(-1, 1, 1)).to(dtype).contiguous()


def project(planes: Tensor, feeding: Sequence[int], folded: Tensor) -> Tensor:
    """Sum over k of planes[feeding[k]] (B, H, W, C) times folded[k] (C, C)."""
    rows = planes.view(planes.shape[0], -1, planes.shape[-1])
    out = torch.mm(rows[feeding[0]], folded[0])
    for plane, matrix in zip(feeding[1:], folded[1:], strict=True):
        out.addmm_(rows[plane], matrix)
    return out.view(planes.shape[1:])


def project_backward(
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


def output_products(planes: Tensor, feeding: Sequence[int], outgoing: Tensor) -> Tensor:
    """For each plane that feeds the output, plane^T outgoing: (K, C in, C out)."""
    channels = planes.shape[-1]
    rows = planes[1:] if len(feeding) == len(planes) - 1 else planes[list(feeding)]
    rows = rows.view(len(feeding), -1, channels)
    wide = outgoing.view(1, -1, channels).expand(len(feeding), -1, -1)
    return torch.bmm(rows.transpose(1, 2), wide)
