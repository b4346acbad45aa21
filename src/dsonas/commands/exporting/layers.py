"""Modules told apart: which a description in JSON can hold, and which batch norms can be fused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dsonas.nn import AveragePool, Block, Candidate, ConvBNReLU, Network, ReductionBlock

_IN_ORDER = (nn.Sequential.forward, Candidate.forward)
_PER_SIDE = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


class ExportError(ValueError):
    """A network that cannot be exported as asked; the message says why and what to do."""


def _calls_in_order(module: nn.Module) -> bool:
    return type(module).forward in _IN_ORDER and not _is_changed(module)


def _is_changed(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn that computes the same in evaluation mode; None if there is none."""
    # our own layers differ from those of torch.nn that they extend in training alone
    kind = next(k for k in type(module).__mro__ if not k.__module__.startswith("dsonas.nn."))
    is_plain = kind is not nn.Module and getattr(nn, kind.__name__, None) is kind
    return None if not is_plain or _is_changed(module) or any(module.children()) else kind


def describe(module: nn.Module) -> Any:
    """A module as JSON values: [class, arguments] of torch.nn, or {name: module} called in order.

    Raises:
        ExportError: if it is neither; the message is a fragment that names the module.

    Example:
        >>> describe(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))["0"]
        ['Conv2d', {'in_channels': 8, 'out_channels': 8, 'kernel_size': 3, 'padding': 1}]
    """
    if _calls_in_order(module):
        children = cast("dict[str, nn.Module]", module._modules)  # one may be there twice
        return {name: describe(child) for name, child in children.items()}
    if type(module) is AveragePool:
        return describe(nn.AvgPool2d(3, stride=1, padding=1))
    kind = _torch_class(module)
    if kind is None:
        raise ExportError(f"its module {type(module).__name__} is not a plain one of torch.nn")
    arguments = {}
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arguments |= _argument(module, parameter)
    return [kind.__name__, arguments]


def _argument(module: nn.Module, parameter: inspect.Parameter) -> dict[str, Any]:
    """What a module was made with, read from its attribute of that name; no defaults."""
    name, default, called = parameter.name, parameter.default, type(module).__name__
    if name in ("device", "dtype"):
        return {}
    if not hasattr(module, name):
        if default is parameter.empty:
            raise ExportError(f"its module {called} does not keep its {name}")
        return {}
    value = getattr(module, name)
    if isinstance(default, bool) and (value is None or isinstance(value, Tensor)):
        value = value is not None  # such as bias
    if name in _PER_SIDE and isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    try:
        json.dumps(value)
    except TypeError as error:
        raise ExportError(f"its module {called}: {name}: {error}") from None
    return {} if value == default else {name: value}


def network_plan(network: Network) -> dict[str, Any]:
    """What ``runtime.py`` builds: stem, stages of blocks, and the layers of their operations.

    Raises:
        ExportError: if an operation is not made of plain layers of torch.nn.
    """
    skeleton = network.architecture.skeleton
    stages: list[dict[str, Any]] = [{"channels": c, "blocks": []} for c in skeleton.channels]
    operations: dict[str, dict[str, Any]] = {}
    for module, stage in zip(network.blocks, skeleton.block_stages, strict=True):
        block, channels, nodes = cast(Block, module), str(skeleton.channels[stage]), {}
        for node in block.graph.kept_nodes:
            name = block.graph.operation(node)
            nodes[str(node)] = {"operation": name, "inputs": list(block.graph.inputs[node])}
            described = _describe_operation(name, block.nodes[str(node)])
            operations.setdefault(name, {})[channels] = described
        output = list(block.graph.inputs[block.graph.output_node])
        stages[stage]["blocks"].append({"nodes": nodes, "output": output})
    for stage, reduction in zip(stages[1:], network.reductions, strict=True):
        stage["reduction"] = list(cast(ReductionBlock, reduction).branches)
    stem = [cast(nn.Conv2d, part[0]) for part in cast("list[ConvBNReLU]", network.stem)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in stem]
    return {"stem": shapes, "stages": stages, "operations": operations}


def _describe_operation(name: str, candidate: nn.Module) -> Any:
    try:
        return describe(candidate)
    except ExportError as error:
        raise ExportError(
            f"operation {name!r} cannot be written for network.py: {error}; build it of "
            "nn.Sequential and layers of torch.nn, or export --format onnx,pt2 only"
        ) from None


def fuse_bn(network: Network) -> Network:
    """Copy a final network without those batch norms that directly follow a convolution.

    A batch norm in evaluation mode is an affine map of every channel, which the convolution's
    weights and bias can take over. Those behind poolings and sums stay.

    Raises:
        ValueError: if the network is in training mode, where a batch norm is no fixed map.

    Example:
        >>> import torch
        >>> from dsonas.graph import SearchSpace, Skeleton
        >>> from dsonas.nn import build
        >>> space = SearchSpace(skeleton=Skeleton(blocks=(1, 1), channels=(4, 8)))
        >>> network = build(space.complete()).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> torch.allclose(fuse_bn(network)(images), network(images), atol=1e-4)
        True
    """
    if network.training:
        raise ValueError("network must be in evaluation mode to fuse its BNs: call .eval() first")
    fused = deepcopy(network)
    for module in list(fused.modules()):
        if isinstance(module, ConvBNReLU | Candidate):
            _fuse_in_order(list(_slots(module)))
        elif isinstance(module, Block) and module.graph.kept_nodes:
            _fuse_in_order([(module, "output"), (module, "output_bn")])
    return fused


def _slots(owner: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where the layers hang that a module calls one after the other."""
    for name, child in owner._modules.items():  # one that is there twice is called twice
        if child is not None and _calls_in_order(child):
            yield from _slots(child)
        else:
            yield owner, name


def _fuse_in_order(slots: list[tuple[nn.Module, str]]) -> None:
    for before, after in pairwise(slots):
        convolution, norm = getattr(*before), getattr(*after)
        kinds = _torch_class(convolution), _torch_class(norm)
        # without running statistics it takes those of the batch: no fixed map
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and norm.running_mean is not None:
            # in float64, so that each weight is rounded once
            exact = fuse_conv_bn_eval(deepcopy(convolution).double(), deepcopy(norm).double())
            setattr(*before, exact.to(convolution.weight.dtype))
            setattr(*after, nn.Identity())
