"""Peak memory of a step, estimated from what the forward pass keeps for the backward pass."""

from __future__ import annotations

from functools import lru_cache

import torch

from dsonas.commands.planning.counting import Step, StepCounter
from dsonas.cost import BYTES, architecture_cost
from dsonas.graph import BlockGraph
from dsonas.nn import Block, build_operation
from dsonas.run import RunConfig

_STATE = 3  # a weight, its gradient and its momentum
_BLOCK_PLANES = 4  # of a block's end: output before and after BN, ReLU, the sum with the shortcut
_STEM_PLANES = 3  # convolution, BN, ReLU
_FORWARD_ONLY = ("rebuild", "test")


def peak_memory(step: Step, config: RunConfig) -> int:
    """Bytes that a step needs on its device at its height: parameters, feature maps, gradients.

    An estimate: what libraries take for themselves, and what an allocator wastes, is not in it.

    Args:
        step: what is run.
        config: precision, recomputation.
    """
    architecture, skeleton = step.architecture, step.architecture.skeleton
    wide = StepCounter(config).element_bytes
    backward, searching = step.kind not in _FORWARD_ONLY, step.kind not in ("train", "test")
    kept = largest = 0
    for graph, stage in zip(architecture.blocks, skeleton.block_stages, strict=True):
        plane = skeleton.channels[stage] * skeleton.stage_sizes[stage] ** 2
        if not backward:  # every block's features are freed before the next block
            largest = max(largest, plane * _forward_planes(graph, searching))
            continue
        dense = searching and graph.num_live >= Block.crossover * len(graph.kept_nodes)
        planes = _kept_planes(graph, dense, searching and config.search.recompute)
        kept += plane * (planes + _BLOCK_PLANES)
        largest = max(largest, plane * _gradient_planes(graph, dense))
    stem = _STEM_PLANES * skeleton.channels[0] * skeleton.stage_sizes[0] ** 2
    images = BYTES * 2 * skeleton.input_channels * skeleton.image_size**2
    parameters = step.gradient_bytes if step.kind != "factors" else 0
    state = _STATE * max(parameters, BYTES * architecture_cost(architecture).params)
    return int(state + step.batch_size * (wide * (kept + largest + stem) + images))


def _kept_planes(graph: BlockGraph, dense: bool, recompute: bool) -> float:
    """Feature maps of the block's size that its backward pass needs."""
    sums = sum(len(graph.inputs[node]) > 1 or dense for node in graph.kept_nodes)
    first = sum(graph.level(node) == 1 for node in graph.kept_nodes)
    names = [graph.operation(node) for node in graph.kept_nodes]
    if dense:  # one buffer of all features, one of all sums, and what operations keep
        inner = 0.0 if recompute else sum(_operation_planes(name, fused=True) for name in names)
        return 1 + len(names) + sums - first + inner
    # features, sums, and the concatenation that the output convolution reads
    operations = sum(_operation_planes(name, fused=False) for name in names)
    return len(names) + sums + _joined_planes(graph) + operations


def _joined_planes(graph: BlockGraph) -> int:
    """The concatenation that the output convolution reads."""
    joined = len(graph.inputs[graph.output_node])
    return joined if joined > 1 else 0


def _gradient_planes(graph: BlockGraph, dense: bool) -> int:
    """Gradients, of one block at a time."""
    return len(graph.kept_nodes) + 1 + (len(graph.operations) if dense else 2)


def _forward_planes(graph: BlockGraph, scaled: bool) -> int:
    """The features of a block without backward pass: input, operations, output and what it reads.

    Args:
        graph: live connections.
        scaled: whether what the output reads is multiplied by factors first.
    """
    return 2 + len(graph.kept_nodes) + _joined_planes(graph) * (2 if scaled else 1)


@lru_cache(maxsize=256)
def _operation_planes(name: str, *, fused: bool) -> float:
    """What autograd keeps of an operation besides its input, in feature maps, with BN's input."""
    with torch.device("meta"):
        operation = build_operation(name, 8).train()
        features = torch.empty(2, 8, 16, 16, requires_grad=True)
    if fused and getattr(operation, "recomputable", False):
        return 0.0
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(operation(features))
    own = {tensor.untyped_storage()._cdata for tensor in (features, *operation.parameters())}
    total = sum(size for storage, size in sizes.items() if storage not in own)
    return total / (BYTES * features.numel())
