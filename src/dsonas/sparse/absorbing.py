"""Layers that take over what pruning leaves beside them: a factor, or dropped channels.

A constant factor before or behind a linear layer is the same layer with other weights. Channels
that are always the same need not be computed: the layers that read them lose those columns, and
what they gave moves into the bias.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from dsonas.sparse.observing import Observed, in_evaluation, is_product, module_of
from dsonas.sparse.recording import LAYERS, attribute

Change = Callable[[], Any]
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
# f(c x) = c f(x) for any c, by the names of functions, methods and classes of modules
_HOMOGENEOUS = {
    "permute", "transpose", "swapaxes", "reshape", "view", "flatten", "unflatten", "contiguous",
    "clone", "roll", "squeeze", "unsqueeze", "movedim", "neg", "mean", "expand", "interpolate",
    "pixel_shuffle", "pixel_unshuffle", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "stochastic_depth", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d",
    "Identity", "Flatten", "Unflatten", "AvgPool1d", "AvgPool2d", "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d", "Upsample", "PixelShuffle", "StochasticDepth", "DropPath", "Permute",
}  # fmt: skip
# and for c > 0
_POSITIVE = {
    "relu", "leaky_relu", "max_pool1d", "max_pool2d", "adaptive_max_pool2d", "ReLU", "LeakyReLU",
    "MaxPool1d", "MaxPool2d", "AdaptiveMaxPool2d",
}  # fmt: skip


class Absorber:
    """Moves factors and dropped channels of values into the layers of a traced model around them.

    ``observed`` is what its nodes gave on an example.
    """

    def __init__(self, model: fx.GraphModule, observed: dict[fx.Node, Observed]) -> None:
        self.model, self.observed = model, observed
        self.uses: Counter[int] = Counter()  # of parameters; one that has been narrowed is new
        for node in model.graph.nodes:
            module = module_of(model, node)
            if module is not None:
                self.uses.update({id(parameter) for parameter in module.parameters()})
            elif node.op == "get_attr" and node.target != "training":
                self.uses[id(attribute(model, str(node.target)))] += 1

    def _layer(self, node: fx.Node) -> Any:
        """The layer that a node calls, if it has a weight that nothing else reads."""
        layer = module_of(self.model, node)
        if not isinstance(layer, LAYERS) or len(node.all_input_nodes) != 1:
            return None
        if layer._forward_pre_hooks or layer._forward_hooks:
            return None
        own = {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}
        return layer if own and self._is_alone(layer) else None

    def _is_alone(self, layer: nn.Module) -> bool:
        """Whether nothing else reads its parameters."""
        return all(self.uses[id(parameter)] <= 1 for parameter in layer.parameters())

    def _torch_layer(self, node: fx.Node, kinds: Any) -> Any:
        """The same, if it is just what torch.nn has."""
        layer = self._layer(node)
        plain = type(layer).__module__.startswith("torch.nn")
        return layer if isinstance(layer, kinds) and plain else None

    def _try(
        self, node: fx.Node, change: Callable[[Any, Tensor], None], probe: Tensor, out: bool
    ) -> bool:
        """Whether a changed layer gives for x what it gave for probe * x, or probe times as much.

        So layers of other libraries need not be known: those that standardise their weights, say,
        are found out.
        """
        layer, source = module_of(self.model, node), self.observed.get(node.all_input_nodes[0])
        assert layer is not None
        if source is None:
            return False
        like = next(layer.parameters(), torch.empty(0))
        shape = list(source.shape)
        if isinstance(layer, nn.Linear):
            shape[-1] = layer.in_features  # some may have gone since
        elif isinstance(layer, _ConvNd | _BatchNorm):
            shape[1] = layer.in_channels if isinstance(layer, _ConvNd) else layer.num_features
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)
        factor = probe.to(like)
        if factor.ndim:
            factor = factor.view(-1, *[1] * (x.ndim - 2))
        changed = deepcopy(layer)
        with torch.no_grad():
            change(changed, probe)
        try:
            found = in_evaluation(changed, lambda: changed(x))
            wanted = in_evaluation(layer, lambda: layer(x) * factor if out else layer(x * factor))
        except ValueError:
            return False
        size = float(wanted.abs().max())
        return bool(torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * size))

    @torch.no_grad()
    def scale_back(self, node: fx.Node, factor: float) -> bool:
        """Let what gives a value multiply it by a factor; False if it cannot.

        The value is read only where it is to be scaled.
        """
        if len(node.users) != 1:
            return False
        layer = self._layer(node)
        if layer is not None and layer.weight is not None:
            if not self._try(node, _scale_weights, torch.tensor(2.0 if factor > 0 else -2.0), True):
                return False
            _scale_weights(layer, torch.tensor(factor))
            return True
        if node.op == "get_attr":
            found = attribute(self.model, str(node.target))
            alone = isinstance(found, nn.Parameter) and self.uses[id(found)] <= 1
            if alone:
                found.mul_(factor)
            return alone
        first = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
        attention = module_of(self.model, first) if isinstance(first, fx.Node) else None
        if isinstance(attention, nn.MultiheadAttention):
            if self._is_alone(attention):
                _scale_weights(attention.out_proj, torch.tensor(factor))
            return self._is_alone(attention)
        if is_product(node):
            once = [x for x in node.args if isinstance(x, fx.Node) and node.args.count(x) == 1]
            return any(self.scale_back(x, factor) for x in once)
        if self._is_homogeneous(node, factor > 0):
            return self.scale_back(node.all_input_nodes[0], factor)
        return False

    def _is_homogeneous(self, node: fx.Node, positive: bool) -> bool:
        module = module_of(self.model, node)
        name = getattr(node.target, "__name__", node.target)
        name = name if module is None else type(module).__name__
        found = name in _HOMOGENEOUS or (positive and name in _POSITIVE)
        return found and len(node.all_input_nodes) > 0 and node.args[0] is node.all_input_nodes[0]

    @torch.no_grad()
    def scale_readers(self, node: fx.Node, factors: Tensor, sums: dict[fx.Node, Any]) -> bool:
        """Let all that reads a value scale it; False if something cannot, and nothing has changed.

        ``factors``, not 0, are one, or one for each channel (dimension 1); those of ``sums``, not
        yet written, can change.
        """
        changes = self._scaling(node, factors, sums)
        for change in changes or []:
            change()
        return changes is not None

    def _scaling(
        self, node: fx.Node, factors: Tensor, sums: dict[fx.Node, Any]
    ) -> list[Change] | None:
        """The changes of all that reads a value; None if something cannot scale it."""
        return _together(self._scaling_of(user, node, factors, sums) for user in node.users)

    def _scaling_of(
        self, user: fx.Node, node: fx.Node, factors: Tensor, sums: dict[fx.Node, Any]
    ) -> list[Change] | None:
        each, positive = factors.ndim == 1, bool((factors > 0).all())
        layer = self._layer(user)
        if layer is not None:
            linear = isinstance(layer, nn.Linear | _ConvNd)
            if each and not (
                self._reads_channels(layer, node) if linear else _has_statistics(layer)
            ):
                return None
            change = _scale_columns if linear else _scale_norm
            probe = factors.sign() * (2 + torch.arange(factors.numel()).view(factors.shape) % 3)
            fits = (linear or positive) and self._try(user, change, probe, out=False)
            return [partial(change, layer, factors)] if fits else None
        name = getattr(user.target, "__name__", user.target)
        if not each and user in sums:
            return [partial(sums[user].scale, node, float(factors))]
        if not each and is_product(user) and [*user.args].count(node) == 1:
            return self._scaling(user, factors, sums)
        elementwise = name in _POSITIVE | {"contiguous", "clone"} or (
            isinstance(module_of(self.model, user), _CHANNELWISE)
        )
        if self._is_homogeneous(user, positive) and (not each or elementwise):
            return self._scaling(user, factors, sums)
        return None

    def _reads_channels(self, layer: nn.Module, node: fx.Node) -> bool:
        """Whether a layer has a column of weights for each channel (dimension 1) of a value."""
        if isinstance(layer, nn.Linear):
            return len(self.observed[node].shape) == 2
        return (
            isinstance(layer, _ConvNd)
            and not isinstance(layer, _ConvTransposeNd)
            and layer.groups == 1
        )

    @torch.no_grad()
    def drop_channels(self, node: fx.Node, keep: Tensor) -> bool:
        """Adapt all that reads a value to its loss of channels (dimension 1) that are 0.

        ``keep`` has a flag for each channel before. False if something cannot, and nothing has
        changed.
        """
        zeros = torch.zeros(int((~keep).sum()), dtype=self.observed[node].dtype)
        changes = self._dropping(node, keep, zeros)
        for change in changes or []:
            change()
        return changes is not None

    def _dropping(self, node: fx.Node, keep: Tensor, constant: Tensor) -> list[Change] | None:
        """The changes of all that reads a value, whose dropped channels are always ``constant``."""
        return _together(self._dropping_of(user, node, keep, constant) for user in node.users)

    def _dropping_of(
        self, user: fx.Node, node: fx.Node, keep: Tensor, constant: Tensor
    ) -> list[Change] | None:
        shape = self.observed[node].shape
        norm = self._torch_layer(user, _BatchNorm)
        if norm is not None and norm.running_mean is not None:
            after = self._dropping(user, keep, _normalised(norm, ~keep, constant))
            return None if after is None else [partial(narrow_outputs, norm, keep), *after]
        layer = self._torch_layer(user, nn.Linear | _ConvNd)
        if layer is not None and self._reads_channels(layer, node):
            padded = isinstance(layer, _ConvNd) and (
                isinstance(layer.padding, str) or any(layer.padding)
            )
            if padded and bool(constant.any()):
                return None
            return [partial(_narrow_columns, layer, keep, constant)]
        if self._is_flattening(user, node):
            repeats = prod(shape[2:])
            flat = keep.repeat_interleave(repeats)
            return self._dropping(user, flat, constant.repeat_interleave(repeats))
        mapped = self._mapped(user, node, constant)
        return None if mapped is None else self._dropping(user, keep, mapped)

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
        result = in_evaluation(layer or nn.Identity(), lambda: interpreter.run_node(user))
        flat = result.reshape(len(constant), -1)
        return flat[:, 0] if bool((flat == flat[:, :1]).all()) else None


def _together(parts: Iterable[list[Change] | None]) -> list[Change] | None:
    """All changes; None if there are none, or one part cannot change."""
    found: list[Change] = []
    for changes in parts:
        if changes is None:
            return None
        found += changes
    return found or None


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _scale_weights(layer: nn.Module, factor: Tensor) -> None:
    for parameter in layer.parameters():
        parameter.mul_(factor.to(parameter))


def _scale_columns(layer: nn.Module, factors: Tensor) -> None:
    weight = cast(Tensor, layer.weight)
    view = (1, -1, *[1] * (weight.ndim - 2)) if factors.ndim else ()
    weight.mul_(factors.view(view).to(weight))


def _scale_norm(norm: nn.Module, factors: Tensor) -> None:
    """Let a norm give for unscaled features what it gave for scaled ones.

    One factor is taken up by eps, exactly in training too. Channels share their eps: the variances
    take theirs.
    """
    eps = cast(Any, norm).eps
    shared = factors.ndim == 0
    if shared:
        cast(Any, norm).eps = eps / float(factors) ** 2
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        mean, var = norm.running_mean, cast(Tensor, norm.running_var)
        divisor = factors.to(mean)
        mean.div_(divisor)
        if shared:
            var.div_(divisor.square())
        else:
            var.add_(eps).div_(divisor.square()).sub_(eps)


def _normalised(layer: _BatchNorm, dropped: Tensor, constant: Tensor) -> Tensor:
    """What batch normalisation makes, in evaluation mode, of channels that are constant."""
    mean, var = cast(Tensor, layer.running_mean)[dropped], cast(Tensor, layer.running_var)[dropped]
    result = (constant.to(mean) - mean) / (var + layer.eps).sqrt()
    return result * layer.weight[dropped] + layer.bias[dropped] if layer.affine else result


def _narrow_columns(layer: nn.Linear | _ConvNd, keep: Tensor, constant: Tensor) -> None:
    """Keep some inputs of a layer; what the others always gave goes into the bias."""
    weight = layer.weight
    if bool(constant.any()):
        offset = weight[:, ~keep].flatten(2).sum(2) if weight.ndim > 2 else weight[:, ~keep]
        offset = offset @ constant.to(weight)
        bias = offset if layer.bias is None else layer.bias + offset
        layer.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
    narrow_inputs(layer, keep)


def narrow_inputs(layer: Any, keep: Tensor) -> None:
    """Take inputs from a linear layer or a convolution."""
    _replace_tensor(layer, "weight", layer.weight[:, keep.to(layer.weight.device)])
    if isinstance(layer, nn.Linear):
        layer.in_features = int(keep.sum())
    else:
        layer.in_channels = int(keep.sum())


def narrow_outputs(layer: Any, keep: Tensor) -> None:
    """Take outputs from a layer; from one that treats each channel by itself, inputs with them."""
    count, size = int(keep.sum()), len(keep)
    for name, value in [*layer._parameters.items(), *layer._buffers.items()]:
        if value is not None and value.ndim and len(value) == size:
            _replace_tensor(layer, name, value[keep.to(value.device)])
    if is_depthwise(layer):
        layer.in_channels = layer.groups = count
    for name in ("num_features", "num_parameters", "out_features", "out_channels"):
        if hasattr(layer, name):
            setattr(layer, name, count)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of every channel by itself."""
    return (
        isinstance(layer, _ConvNd)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def _replace_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put a copy of other numbers in the place of a parameter or buffer."""
    old = getattr(layer, name)
    value = value.detach().clone()
    if old.ndim == 4 and not old.is_contiguous():
        value = value.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(layer, name, value)
