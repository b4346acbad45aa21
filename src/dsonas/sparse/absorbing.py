"""Layers that take over what pruning leaves beside them: a factor, or dropped channels.

A constant factor before or after a linear layer is the same layer with other weights. Channels that
are always the same need not be computed: the layers that read them lose those columns, and what
they gave moves into the bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import stochastic_depth

from dsonas.sparse.tracing import Observed, in_evaluation, module_of

_LINEAR = (nn.Linear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
_CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Hardsigmoid, nn.Sigmoid, nn.Softplus, nn.Identity, _DropoutNd, nn.MaxPool1d, nn.MaxPool2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample,
)  # fmt: skip
LARGEST_WINDOW = 32  # of a pool with padding
_CHANNELWISE_NAMES = {
    "relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "mish", "hardswish", "tanh",
    "hardsigmoid", "sigmoid", "softplus", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "contiguous", "clone",
}  # fmt: skip


def owns_weights(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a torch module whose parameters nothing else uses or computes."""
    layer = module_of(model, node)
    if layer is None or not type(layer).__module__.startswith("torch.nn"):
        return False
    if is_parametrized(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        return False
    uses: Counter[int] = Counter()
    for other in model.graph.nodes:
        if other.op == "call_module":
            module = model.get_submodule(str(other.target))
            uses.update({id(parameter) for parameter in module.parameters()})
        elif other.op == "get_attr" and other.target != "training":
            uses[id(_attribute(model, str(other.target)))] += 1
    return all(uses[id(parameter)] == 1 for parameter in layer.parameters())


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


@torch.no_grad()
def scale_output(model: fx.GraphModule, node: fx.Node, factor: float) -> bool:
    """Let the layer that gives a value multiply it by a factor; False if it cannot.

    Args:
        model: the traced model.
        node: the value, read only where it is to be scaled.
        factor: any number.
    """
    module = module_of(model, node)
    while len(node.users) == 1 and (
        isinstance(module, _DropoutNd | nn.Identity) or node.target is stochastic_depth
    ):
        node = node.all_input_nodes[0]
        module = module_of(model, node)
    if not isinstance(module, _LINEAR) or len(node.users) != 1 or not owns_weights(model, node):
        return False
    if module.weight is None:
        return False
    module.weight.mul_(factor)
    if module.bias is not None:
        module.bias.mul_(factor)
    return True


@torch.no_grad()
def scale_inputs(model: fx.GraphModule, node: fx.Node, factors: Tensor, ndim: int) -> bool:
    """Let the layers that read a value scale its channels (dimension 1); False if one cannot.

    Args:
        model: the traced model.
        node: the value.
        factors: one for each channel, not 0.
        ndim: number of dimensions of the value.
    """
    layers = [_reader(model, user, node, ndim) for user in node.users]
    if not layers or any(layer is None for layer in layers):
        return False
    normalised = any(isinstance(layer, _BatchNorm) for layer in layers)
    if normalised and bool((factors <= 0).any()):  # a BN has no place for a sign
        return False
    for layer in layers:
        if isinstance(layer, _BatchNorm):  # the statistics are those of the unscaled channels
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.div_(factors)
            layer.running_var.add_(layer.eps).div_(factors.square()).sub_(layer.eps)
        else:
            assert isinstance(layer, nn.Linear | _ConvNd)
            layer.weight.mul_(factors.view(1, -1, *[1] * (layer.weight.ndim - 2)))
    return True


def _reader(model: fx.GraphModule, user: fx.Node, node: fx.Node, ndim: int) -> nn.Module | None:
    """The layer of its own weights that reads the channels of a value; None if it is another."""
    layer = module_of(model, user)
    if user.all_input_nodes != [node] or not owns_weights(model, user):
        return None
    if isinstance(layer, _BatchNorm):
        return layer if layer.running_mean is not None else None
    if isinstance(layer, nn.Linear):
        return layer if ndim == 2 else None
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return None
    return layer if layer.groups == 1 else None


@dataclass
class ChannelDropper:
    """Drops channels of a value that never change, if all that reads them can do without.

    Args:
        model: the traced model.
        observed: what its nodes gave on an example.
    """

    model: fx.GraphModule
    observed: dict[fx.Node, Observed]
    changes: list[Callable[[], None]] = field(default_factory=list)

    @torch.no_grad()
    def drop(self, node: fx.Node, keep: Tensor) -> bool:
        """Adapt everything that reads a value to its loss of channels that are 0.

        Args:
            node: a value with channels in dimension 1; the caller gives it fewer channels.
            keep: a flag for each channel before.

        Returns:
            Whether it is done; if False, nothing has changed.
        """
        self.changes = []
        zeros = keep.new_zeros(int((~keep).sum()), dtype=torch.get_default_dtype())
        if not node.users or not all(self._plan(user, node, keep, zeros) for user in node.users):
            return False
        for change in self.changes:
            change()
        return True

    def _plan(self, user: fx.Node, node: fx.Node, keep: Tensor, constant: Tensor) -> bool:
        """Plan for one reader; ``constant`` holds what each dropped channel always is."""
        shape = self.observed[node].shape
        layer = _reader(self.model, user, node, len(shape))
        if isinstance(layer, _BatchNorm):
            self.changes.append(partial(_narrow_norm, layer, keep))
            return self._plan_readers(user, keep, _normalised(layer, ~keep, constant))
        if isinstance(layer, nn.Linear | _ConvNd):
            padded = isinstance(layer, _ConvNd) and (
                isinstance(layer.padding, str) or any(layer.padding)
            )
            self.changes.append(partial(_narrow_columns, layer, keep, constant))
            return not (padded and bool(constant.any()))
        if self._is_flattening(user, node):
            repeats = keep.new_ones((), dtype=torch.int) * _numel(shape[2:])
            flat = keep.repeat_interleave(int(repeats))
            return self._plan_readers(user, flat, constant.repeat_interleave(int(repeats)))
        after = self._mapped(user, node, constant)
        return after is not None and self._plan_readers(user, keep, after)

    def _plan_readers(self, node: fx.Node, keep: Tensor, constant: Tensor) -> bool:
        return all(self._plan(user, node, keep, constant) for user in node.users)

    def _is_flattening(self, user: fx.Node, node: fx.Node) -> bool:
        layer = module_of(self.model, user)
        if isinstance(layer, nn.Flatten):
            return (layer.start_dim, layer.end_dim) == (1, -1)
        named = getattr(user.target, "__name__", user.target) == "flatten"
        return named and (*user.args, *user.kwargs.values()) in ((node, 1), (node, 1, -1))

    def _mapped(self, user: fx.Node, node: fx.Node, constant: Tensor) -> Tensor | None:
        """What a channelwise operation makes of constant channels; None if it is none."""
        layer = module_of(self.model, user)
        name = getattr(user.target, "__name__", user.target)
        known = isinstance(layer, _CHANNELWISE) or (layer is None and name in _CHANNELWISE_NAMES)
        if not known or user.all_input_nodes != [node]:
            return None
        # larger than any window with padding, whose borders small features would not show
        sizes = [size + LARGEST_WINDOW for size in self.observed[node].shape[2:]]
        view = constant.view(1, -1, *[1] * len(sizes))
        interpreter = fx.Interpreter(self.model)
        interpreter.env[node] = view.expand(1, -1, *sizes).clone()
        result = in_evaluation(self.model, lambda: interpreter.run_node(user))
        flat = result.reshape(len(constant), -1)
        return flat[:, 0] if bool((flat == flat[:, :1]).all()) else None


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape).prod()) if shape else 1


def _normalised(layer: _BatchNorm, dropped: Tensor, constant: Tensor) -> Tensor:
    """What batch normalisation makes, in evaluation mode, of channels that are constant."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, var = layer.running_mean[dropped], layer.running_var[dropped]
    result = (constant.to(mean) - mean) / (var + layer.eps).sqrt()
    return result * layer.weight[dropped] + layer.bias[dropped] if layer.affine else result


def _narrow_norm(layer: _BatchNorm, keep: Tensor) -> None:
    layer.num_features = int(keep.sum())
    for name, value in _tensors(layer):
        if value.ndim == 1:
            _set(layer, name, value[keep])


def _narrow_columns(layer: nn.Linear | _ConvNd, keep: Tensor, constant: Tensor) -> None:
    """Keep the columns of some inputs; what the others always gave goes into the bias."""
    weight = layer.weight
    if bool(constant.any()):
        offset = weight[:, ~keep].flatten(2).sum(2) if weight.ndim > 2 else weight[:, ~keep]
        offset = offset @ constant.to(weight)
        bias = offset if layer.bias is None else layer.bias + offset
        layer.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    _set(layer, "weight", weight[:, keep])
    if isinstance(layer, nn.Linear):
        layer.in_features = int(keep.sum())
    else:
        layer.in_channels = int(keep.sum())


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from list(layer.named_parameters(recurse=False))
    yield from list(layer.named_buffers(recurse=False))


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(layer, name)
    value = value.detach().clone()
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(layer, name, value)
