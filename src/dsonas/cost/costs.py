"""What an architecture costs, counted exactly and without running it.

``macs`` are multiply-adds of convolutions and the classifier for one image (half of what
``torch.utils.flop_counter`` calls flops); ``params`` are the parameters of the final network (no
scaling factors, no auxiliary head), BN included. ``memory_bytes`` is the memory access for one
image in float32: what every convolution, pool, sum and the classifier reads (features, weights) and
writes, with BN and ReLU folded into the operation before them, as an inference engine runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dsonas.graph import Architecture, BlockGraph
from dsonas.nn import build_operation

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Cost:
    """Multiply-adds and memory access for one image, and parameters.

    Args:
        macs: multiply-adds of convolutions and classifier, >= 0.
        params: parameters of the final network, >= 0.
        memory_bytes: bytes that are read and written in float32, >= 0.

    Example:
        >>> Cost(10, 2, 8) + Cost(5, 1, 4)
        Cost(macs=15, params=3, memory_bytes=12)
    """

    macs: int = 0
    params: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Any) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.params + other.params,
            self.memory_bytes + other.memory_bytes,
        )

    def __sub__(self, other: Any) -> Cost:
        return Cost(
            self.macs - other.macs,
            self.params - other.params,
            self.memory_bytes - other.memory_bytes,
        )


def architecture_cost(architecture: Architecture) -> Cost:
    """The cost of the network that ``dsonas.build`` makes of an architecture.

    Args:
        architecture: any; what is dead in it costs nothing.

    Returns:
        Multiply-adds and bytes of memory access for one image, and parameters.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> round(architecture_cost(cifar_space().complete()).macs / 1e9, 4)
        1.4845
    """
    skeleton = architecture.skeleton
    sizes, channels = skeleton.stage_sizes, skeleton.channels
    total = stem_cost(architecture)
    previous = None
    for graph, stage in zip(architecture.blocks, skeleton.block_stages, strict=True):
        total += block_cost(graph, channels[stage], sizes[stage], stage != previous)
        previous = stage
    for stage, live in enumerate(architecture.reductions):
        total += reduction_cost(live, channels[stage], channels[stage + 1], sizes[stage + 1])
    return total + head_cost(architecture)


def stem_cost(architecture: Architecture) -> Cost:
    """The first convolutions."""
    skeleton = architecture.skeleton
    inputs, first, size = skeleton.input_channels, skeleton.channels[0], skeleton.image_size
    if skeleton.stem == "cifar":
        return _conv_bn(inputs, first, 3, size)
    half = max(1, first // 2)
    start = _conv_bn(inputs, half, 3, (size + 1) // 2, 2)
    return start + _conv_bn(half, first, 3, skeleton.stage_sizes[0], 2)


def head_cost(architecture: Architecture) -> Cost:
    """The last BN and the classifier."""
    skeleton = architecture.skeleton
    width, classes = skeleton.channels[-1], skeleton.num_classes
    pixels = skeleton.stage_sizes[-1] ** 2
    weights = width * classes + classes
    moved = width * pixels + 2 * width + weights + classes
    return Cost(width * classes, 2 * width + weights, BYTES * moved)


def reduction_cost(live: tuple[bool, ...], inputs: int, outputs: int, size: int) -> Cost:
    """A reduction block to features of ``size`` x ``size`` pixels."""
    total = _sum_cost(sum(live), outputs * size * size)
    for kernel_size, alive in zip((1, 3), live, strict=True):
        total += _conv_bn(inputs, outputs, kernel_size, size, 2) if alive else Cost()
    return total


@lru_cache(maxsize=4096)
def block_cost(graph: BlockGraph, channels: int, size: int, projecting: bool) -> Cost:
    """A block at C channels on ``size`` x ``size`` features; operations not kept cost nothing."""
    graph = graph.clean()
    total = _conv_bn(channels, channels, 1, size) if projecting else Cost()
    if not graph.kept_nodes:
        return total
    plane = channels * size * size
    for node in graph.kept_nodes:
        total += operation_cost(graph.operation(node), channels, size)
        total += _sum_cost(len(graph.inputs[node]), plane)
    total += _sum_cost(2, plane)  # the shortcut
    width = channels * len(graph.inputs[graph.output_node])
    return total + _conv_bn(width, channels, 1, size)


@lru_cache(maxsize=4096)
def operation_cost(name: str, channels: int, size: int) -> Cost:
    """An operation with its BN, counted on the meta device, so it serves any registered one."""
    with torch.device("meta"):
        module = build_operation(name, channels).eval()
        features = torch.empty(1, channels, size, size)
    with FlopCounterMode(display=False) as counter, _ElementCounter() as moved, torch.no_grad():
        module(features)
    params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(counter.get_total_flops() // 2, params + 2 * channels, BYTES * moved.total)


class _ElementCounter(TorchDispatchMode):
    """Counts the floating-point elements that tensor operations read and write."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            self.total += sum(x.numel() for x in tensors if x.is_floating_point())
        return result


def _sum_cost(num_inputs: int, plane: int) -> Cost:
    """A sum of feature maps: it reads its inputs and writes its result; one input is no sum."""
    return Cost(memory_bytes=BYTES * plane * (num_inputs + 1) if num_inputs > 1 else 0)


def _conv_bn(inputs: int, outputs: int, kernel_size: int, size: int, stride: int = 1) -> Cost:
    """A convolution to features of ``size`` x ``size`` pixels, with its BN."""
    weights = inputs * outputs * kernel_size**2
    moved = inputs * (stride * size) ** 2 + weights + outputs * size * size
    return Cost(weights * size * size, weights + 2 * outputs, BYTES * moved)
