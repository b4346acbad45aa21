"""Modules of ``torch.nn`` as the calls that make them, for any number of channels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from dsonas.commands.exporting.errors import ExportError
from dsonas.commands.exporting.formatting import Group, Keyword, Symbol, literal
from dsonas.nn import AveragePool, operations
from dsonas.nn.cpu import batchnorm

_REQUIRED = inspect.Parameter.empty
_NOT_STATED = ("self", "device", "dtype")
_OWN = (batchnorm.__name__, operations.__name__)
_PER_SIDE = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


class Argument(NamedTuple):
    """A constructor's argument, with the default that it need not repeat."""

    name: str
    value: Any
    default: Any


@dataclass(frozen=True)
class Layer:
    """A call of a ``torch.nn`` class with all its arguments."""

    name: str
    arguments: tuple[Argument, ...]

    def expression(self) -> Group:
        """The call, its defaults left out."""
        items = [
            literal(value) if default is _REQUIRED else Keyword(name, literal(value))
            for name, value, default in self.arguments
            if default is _REQUIRED or isinstance(value, Symbol) or value != default
        ]
        return Group(f"nn.{self.name}", tuple(items))


def leaf_modules(module: nn.Module) -> Iterator[nn.Module]:
    """What nested ``nn.Sequential`` call one after the other; identities are left out."""
    if isinstance(module, nn.Sequential) and _calls_in_order(module):
        for child in module:  # one that is there twice is called twice
            yield from leaf_modules(child)
    elif type(module) is not nn.Identity:
        yield module


def _calls_in_order(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward and not _has_hooks(module)


def layer_of(module: nn.Module) -> Layer:
    """The call that makes a module.

    Args:
        module: of a class of ``torch.nn`` without modules inside, or of one of our own operations.

    Raises:
        ExportError: if no such call is known; the message is a fragment that names the module.

    Example:
        >>> from dsonas.commands.exporting.formatting import render
        >>> render(layer_of(nn.Conv2d(8, 8, 3, padding=1, bias=False)).expression())
        'nn.Conv2d(8, 8, 3, padding=1, bias=False)'
    """
    module, kind = _standard(module)
    known = kind is not nn.Module and getattr(nn, kind.__name__, None) is kind
    if not known or _has_hooks(module) or any(True for _ in module.children()):
        raise ExportError(f"its module {kind.__name__} is not a plain one of torch.nn")
    parameters = inspect.signature(kind).parameters.values()
    arguments = [_argument(module, p) for p in parameters if p.name not in _NOT_STATED]
    return Layer(kind.__name__, tuple(argument for argument in arguments if argument))


def _standard(module: nn.Module) -> tuple[nn.Module, type[nn.Module]]:
    """A module that computes the same in evaluation mode, and the class to take it for."""
    if type(module) is AveragePool:
        module = nn.AvgPool2d(3, stride=1, padding=1)
    kinds = type(module).__mro__
    # our own layers differ from those of torch.nn that they extend in training alone
    own = _OWN if type(module).__module__ in _OWN else ()
    return module, next(kind for kind in kinds if kind.__module__ not in own)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _argument(module: nn.Module, parameter: inspect.Parameter) -> Argument | None:
    """The argument by which a module was made, read from its attribute of that name."""
    name, default = parameter.name, parameter.default
    if not hasattr(module, name):
        if default is _REQUIRED:
            raise ExportError(f"its module {type(module).__name__} does not keep its {name}")
        return None
    value = getattr(module, name)
    if isinstance(default, bool) and (value is None or isinstance(value, Tensor)):
        value = value is not None  # such as bias
    if isinstance(value, list):
        value = tuple(value)
    if name in _PER_SIDE and isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    try:
        literal(value)
    except TypeError as error:
        raise ExportError(f"its module {type(module).__name__}: {name}: {error}") from None
    return Argument(name, value, default)


def general_layer(layers: Mapping[int, Layer]) -> Layer:
    """One call for any number of channels, from the calls for some.

    Args:
        layers: by number of channels; two or more.

    Raises:
        ExportError: if no simple rule in ``channels`` gives them all.

    Example:
        >>> from dsonas.commands.exporting.formatting import render
        >>> made = {c: layer_of(nn.Conv2d(c, 2 * c, 3, groups=c)) for c in (3, 6)}
        >>> render(general_layer(made).expression())
        'nn.Conv2d(channels, 2 * channels, 3, groups=channels)'
    """
    first = next(iter(layers.values()))
    names = {(layer.name, tuple(a.name for a in layer.arguments)) for layer in layers.values()}
    if len(names) != 1:
        raise ExportError("its modules differ between numbers of channels")
    arguments = []
    for i, (name, _, default) in enumerate(first.arguments):
        values = {channels: layer.arguments[i].value for channels, layer in layers.items()}
        arguments.append(Argument(name, _general_value(name, values), default))
    return Layer(first.name, tuple(arguments))


def _general_value(name: str, values: Mapping[int, Any]) -> Any:
    first = next(iter(values.values()))
    if all(value == first for value in values.values()):
        return first
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values.values()):
        places = range(len(first))
        return tuple(_general_value(name, {c: v[i] for c, v in values.items()}) for i in places)
    if all(isinstance(value, int) for value in values.values()):
        for text, rule in _rules(max(values.items())):
            if all(value == rule(channels) for channels, value in values.items()):
                return Symbol(text)
    raise ExportError(f"its {name} follows no simple rule in the channels: {dict(values)}")


def _rules(largest: tuple[int, int]) -> Iterator[tuple[str, Callable[[int], int]]]:
    """Rules that fit the value at the largest number of channels, the simplest first."""
    channels, value = largest
    yield "channels", lambda c: c
    if value > channels:
        yield f"{value // channels} * channels", lambda c: c * (value // channels)
    elif value > 0:
        for part in range(channels // (value + 1) + 1, channels // value + 1):
            yield f"channels // {part}", partial(_divide, part, 0)
            yield f"max(1, channels // {part})", partial(_divide, part, 1)


def _divide(part: int, least: int, channels: int) -> int:
    return max(least, channels // part)
