"""The candidate operations and their registry.

An operation maps features (B, C, H, W) to features of the same shape. The block appends batch
normalisation and ReLU to every operation, so a registered builder returns only what comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsonas.nn.cpu.batchnorm import BatchNorm

Builder = Callable[[int], nn.Module]
_REGISTRY: dict[str, Builder] = {}


def register_operation(name: str, builder: Builder | None = None) -> Callable[[Builder], Builder]:
    """Make an operation available to every search space, directly or as a decorator.

    Args:
        name: how recipes and architecture files call it; a Python identifier.
        builder: takes the number of channels C and returns a module that keeps (B, C, H, W); batch
            normalisation and ReLU are appended by the block.

    Returns:
        A decorator (which returns the builder unchanged).

    Raises:
        ValueError: if the name is not an identifier, or is taken.

    Example:
        >>> _ = register_operation("identity_for_doctest")(lambda channels: nn.Identity())
        >>> "identity_for_doctest" in operation_names()
        True
    """
    if not name.isidentifier():
        raise ValueError(f"operation name must be a Python identifier, got {name!r}")
    if name in _REGISTRY:
        raise ValueError(f"operation {name!r} is registered already; choose another name")

    def register(function: Builder) -> Builder:
        _REGISTRY[name] = function
        return function

    if builder is not None:
        register(builder)
    return register


def build_operation(name: str, channels: int) -> nn.Module:
    """A new operation for C = ``channels``; a ValueError if the name is unknown."""
    if name not in _REGISTRY:
        raise ValueError(
            f"operation {name!r} is unknown; known are {', '.join(operation_names())}; "
            "register your own with dsonas.register_operation, in a file that --import names"
        )
    return _REGISTRY[name](channels)


def operation_names() -> tuple[str, ...]:
    """The names of all registered operations, in order of registration."""
    return tuple(_REGISTRY)


def run_plainly(module: nn.Module) -> None:
    """Switch off the kernels of our own on CPUs; the modules then run as those of PyTorch do."""
    for part in module.modules():
        if isinstance(part, DepthwiseConv | PointwiseConv | AveragePool | MaxPool | BatchNorm):
            part.fast_kernel = False


class DepthwiseConv(nn.Conv2d):
    """A k x k convolution of every channel by itself, stride 1, same size, no bias."""

    fast_kernel = True

    def __init__(self, channels: int, kernel_size: int) -> None:
        padding = kernel_size // 2
        super().__init__(
            channels, channels, kernel_size, padding=padding, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        wide = self.fast_kernel and self.kernel_size[0] > 3 and self.kernel_size[0] % 2 == 1
        if self.training and wide and self.weight.requires_grad and input.device.type == "cpu":
            return _WideDepthwise.apply(input, self.weight)  # type: ignore[no-any-return]
        return super().forward(input)


class _WideDepthwise(torch.autograd.Function):
    """A depthwise convolution wider than 3, whose weight gradient is put together from 3x3 windows.

    The CPU library has a fast kernel for the weight gradient of 3x3 depthwise convolutions only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        gradient, kernel = gradient.to(x.dtype), weight.to(x.dtype)  # autocast may be over
        x_gradient = None
        if ctx.needs_input_grad[0]:
            flipped, padding = kernel.flip(2, 3), weight.shape[-1] // 2
            x_gradient = F.conv2d(gradient, flipped, padding=padding, groups=len(weight))
        return x_gradient, _wide_weight_gradient(gradient, x, kernel).to(weight.dtype)


def _wide_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a k x k depthwise weight, from 3x3 windows of it.

    A window that begins ``row`` and ``column`` later sees the padded image from that pixel on. It
    is taken as a view of the same memory that begins there, without a copy: its lines then end with
    the beginning of the next ones, which meets only the zeros that the gradient is padded with.
    """
    size, edge = weight.shape[-1], weight.shape[-1] // 2
    padded = _framed(x, edge, edge, 1)  # one image more, for the ends of the last lines
    arriving = _framed(gradient, 0, size - 3, 0).permute(0, 3, 1, 2)
    shape = (len(x), *padded.shape[1:])
    result = torch.empty_like(weight)
    for row in range(0, size - 2, 2):
        for column in range(0, size - 2, 2):
            start = row * padded.stride(1) + column * padded.stride(2)
            window = padded.as_strided(shape, padded.stride(), start).permute(0, 3, 1, 2)
            place = result[:, :, row : row + 3, column : column + 3]
            place.copy_(_weight_gradient3x3(arriving, window))
    return result


def _framed(x: Tensor, before: int, after: int, images: int) -> Tensor:
    """Images (B, C, H, W) with zeros before and after, and zero images, as (B, H, W, C).

    Only the frame is filled: ``F.pad`` fills everything first, a third of the whole gradient.
    """
    count, channels, height, width = x.shape
    sides = before + after
    shape = (count + images, height + sides, width + sides, channels)
    result = torch.empty(shape, dtype=x.dtype, device=x.device)
    result[:, :before] = 0
    result[:, before + height :] = 0
    result[:, :, :before] = 0
    result[:, :, before + width :] = 0
    result[count:] = 0
    inner = result[:count, before : before + height, before : before + width]
    inner.copy_(x.permute(0, 2, 3, 1))
    return result


def _weight_gradient3x3(gradient: Tensor, x: Tensor) -> Tensor:
    channels = x.shape[1]
    return torch.ops.aten.convolution_backward(
        gradient, x, x.new_empty(channels, 1, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0],
        channels, [False, True, False],
    )[1]  # fmt: skip


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution, no bias.

    While training on a CPU it runs as a matrix product over the pixels, the same sums: the library
    takes a quarter less time for it, and needs less preparation.
    """

    fast_kernel = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        if self.fast_kernel and self.training and input.device.type == "cpu":
            pixels = input.permute(0, 2, 3, 1)
            return F.linear(pixels, self.weight.flatten(1)).permute(0, 3, 1, 2)
        return super().forward(input)


class SeparableConv(nn.Sequential):
    """Depthwise k x k convolution, then a pointwise one; nothing between, no bias."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(DepthwiseConv(channels, kernel_size), PointwiseConv(channels))

    @staticmethod
    def side_by_side(convs: Sequence[SeparableConv], x: Tensor) -> list[Tensor]:
        """Run several, each on its C channels of (B, n * C, H, W), by one depthwise convolution."""
        weights: list[list[Any]] = [[part._parameters["weight"] for part in conv] for conv in convs]
        size = max(wide.shape[-1] for wide, _ in weights)
        kernels = []
        for wide, _ in weights:
            edge = (size - wide.shape[-1]) // 2
            kernels.append(F.pad(wide, (edge,) * 4) if edge else wide)
        if x.device.type == "cpu":  # whose library else reorders the features there and back
            x = x.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, torch.cat(kernels), padding=size // 2, groups=x.shape[1])
        parts = y.chunk(len(convs), 1)
        return [F.conv2d(part, point) for part, (_, point) in zip(parts, weights, strict=True)]


class AveragePool(nn.Module):
    """Average of a 3x3 window, stride 1; the padding counts, so it always divides by 9.

    While training on a CPU it runs as a depthwise convolution, which is four times faster there
    and the same sum.
    """

    fast_kernel = recomputable = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        if self.fast_kernel and self.training and x.device.type == "cpu":
            kernel = x.new_full((self.channels, 1, 3, 3), 1 / 9)
            return F.conv2d(x, kernel, padding=1, groups=self.channels)
        return F.avg_pool2d(x, 3, stride=1, padding=1)

    @staticmethod
    def side_by_side(pools: Sequence[AveragePool], x: Tensor) -> list[Tensor]:
        """Run several, each on its channels of (B, n * C, H, W)."""
        return [F.avg_pool2d(x, 3, stride=1, padding=1)]


class MaxPool(nn.MaxPool2d):
    """Maximum of a 3x3 window, stride 1.

    While training on a CPU it keeps its indices in two bytes each rather than the library's eight,
    which are twice the size of the features.
    """

    fast_kernel = True

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, C, H, W) to the same shape."""
        short = input.shape[-2] * input.shape[-1] <= torch.iinfo(torch.int16).max
        if self.fast_kernel and self.training and short and input.device.type == "cpu":
            return _ShortIndexMaxPool.apply(input)  # type: ignore[no-any-return]
        return super().forward(input)  # type: ignore[return-value]

    @staticmethod
    def side_by_side(pools: Sequence[MaxPool], x: Tensor) -> list[Tensor]:
        """Run several, each on its channels of (B, n * C, H, W)."""
        return [F.max_pool2d(x, 3, stride=1, padding=1)]


class _ShortIndexMaxPool(torch.autograd.Function):
    """Maximum of a 3x3 window, with indices of two bytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result, indices = torch.ops.aten.max_pool2d_with_indices(x, [3, 3], [1, 1], [1, 1])
        ctx.save_for_backward(x, indices.short())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, indices = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, x, [3, 3], [1, 1], [1, 1], [1, 1], False, indices.long()
        )


register_operation("separable_conv3x3", lambda channels: SeparableConv(channels, 3))
register_operation("separable_conv5x5", lambda channels: SeparableConv(channels, 5))
register_operation("max_pool3x3", lambda channels: MaxPool())
register_operation("average_pool3x3", AveragePool)
