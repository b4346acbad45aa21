"""The code of a model, recorded along an example as a graph of torch.fx.

Every proxy carries the value that it has on the example. So code may ask for shapes, loop over
them, unpack tensors and branch on types; only what depends on the numbers in a tensor cannot be
followed.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace, proxy as proxies
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from dsonas.sparse.connections import ScaledSum

M = TypeVar("M", bound=nn.Module)
Leaves = tuple[type[nn.Module], ...]
LAYERS = (nn.Linear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
PLAIN = (type(None), bool, int, float, str)
CONSTANT = "_tensor_constant"  # what torch.fx calls tensors made while tracing
_RANDOM = ("rand", "randn", "randint", "randperm")
MAKERS = (  # torch.fx sees none of them where sizes are all that comes from the input
    *_RANDOM, "arange", "as_tensor", "empty", "eye", "finfo", "full", "iinfo", "linspace", "ones",
    "tensor", "zeros",
)  # fmt: skip
_READING = ("item", "tolist", "numpy", "equal", "allclose", "is_nonzero")
_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip


def unwrap(model: nn.Module) -> nn.Module:
    """Take off what ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` put on."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


def copied(model: M) -> M:
    """Copy a model deeply, with what its last forward pass may have left in its attributes.

    Of such tensors, kept features or a normalised weight, torch refuses the copy: those of the copy
    have no history.
    """
    leaves = [leaf for module in model.modules() for leaf in tree_leaves(vars(module))]
    kept = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_leaf]
    return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split an example into the positional and the keyword arguments of a model."""
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    if args and isinstance(args[-1], Mapping) and all(isinstance(key, str) for key in args[-1]):
        with suppress(TypeError):
            signature(model.forward).bind(*args[:-1], **args[-1])
            return args[:-1], dict(args[-1])
    return args, {}


def record(model: nn.Module, example: Any, leaves: Leaves) -> fx.Graph:
    """Record a model in the mode in which it is; it is left with attributes of torch.fx.

    The graph writes out of place what the model writes in place; what the code assigns to buffers
    is copied into them at the end.

    Raises:
        ValueError: if the code cannot be followed, or fails on the example.
    """
    return _Recorder(model, leaves, example).record()


class _Proxy(fx.Proxy):
    """A proxy that knows what it stands for on the example."""

    value: Any = None

    def __getattr__(self, k: str) -> Any:
        found = getattr(self.value, k)
        if callable(found):
            return proxies.Attribute(self, k)
        if isinstance(found, bool | str) or k == "ndim":
            return found
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def known(self) -> Any:
        """What the code branches on: never the numbers in a tensor."""
        if isinstance(self.value, Tensor):
            raise proxies.TraceError("the code depends on the values of a tensor")
        return self.value

    def __bool__(self) -> bool:
        return bool(self.known())

    def __index__(self) -> int:
        return operator.index(self.known())

    def __int__(self) -> int:
        return int(self.known())

    def __float__(self) -> float:
        return float(self.known())

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.value, Mapping):
            return iter(self.value)
        return iter([self[i] for i in range(len(self.value))])  # pyright: ignore[reportIndexIssue]

    def keys(self) -> Any:
        return self.value.keys()

    def items(self) -> Any:
        return [(key, self[key]) for key in self.value]  # pyright: ignore[reportIndexIssue]

    def __setitem__(self, key: Any, value: Any) -> None:
        tracer = cast(_Recorder, self.tracer)
        if self.node.op != "get_attr" and not self.value._is_view():
            copy = tracer.create_proxy("call_method", "clone", (self,), {})
            self.node, self.value = copy.node, copy.value
        tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


_isinstance = isinstance


def _is_instance(x: Any, kinds: Any) -> bool:
    """``isinstance`` for the user's code, to which a proxy of a tensor is a tensor.

    To say so by ``__class__`` instead would make torch's own code in C++ read it as one.
    """
    return _isinstance(x, kinds) or (
        type(x) is _Proxy and _isinstance(x.value, Tensor) and _isinstance(x.value, kinds)
    )


def _define_in_place(name: str) -> None:
    def method(self: _Proxy, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    setattr(_Proxy, f"__{name}__", method)


for _operation in _OUT_OF_PLACE:
    _define_in_place(_operation.__name__)


class _Recorder(fx.Tracer):
    """Records a model and runs it on the example at the same time."""

    proxy_buffer_attributes = True  # else buffers become constants

    def __init__(self, model: nn.Module, leaves: Leaves, example: Any) -> None:
        super().__init__()
        self.model, self.leaves, self.example = model, (ScaledSum, *leaves), example
        self.inside: list[nn.Module] = []
        self.running = False
        self.autocasts = _autocasts()

    def record(self) -> fx.Graph:
        makers: dict[str, Any] = {n: self._recording(n, getattr(torch, n)) for n in MAKERS}
        buffers = [(name, m, m._buffers.copy()) for name, m in self.model.named_modules()]
        try:
            unwrapped = patch.dict(_symbolic_trace._wrapped_fns_to_patch, clear=True)
            taken = patch.object(builtins, "isinstance", _is_instance)
            with torch.enable_grad(), patch.multiple(torch, **makers), unwrapped, taken:
                graph = self.trace(self.model)
        except Exception as error:  # whatever the user's forward raises when it meets a proxy
            self._refuse(error)
        for node in graph.nodes:
            if "in_place" in node.meta:
                _write_out_of_place(node)
        for name, module, before in buffers:
            self._write_buffers(graph, name, module, before)
        graph.eliminate_dead_code(has_effect)
        graph._tracer_cls = None  # so that a pickle of the model does not need ours
        return graph

    def _write_buffers(
        self, graph: fx.Graph, name: str, module: nn.Module, before: dict[str, Tensor | None]
    ) -> None:
        """Let the graph write to a buffer what the code has assigned to it."""
        for key, value in module._buffers.items():
            if isinstance(value, _Proxy) and value.value is not before.get(key):
                with graph.inserting_before(graph.output_node()):
                    buffer = graph.get_attr(f"{name}.{key}".lstrip("."))
                    graph.call_method("copy_", (buffer, value.node))
        module._buffers.clear()
        module._buffers.update(before)

    def _refuse(self, error: Exception) -> None:
        if not isinstance(error, proxies.TraceError) and not self._runs():
            raise bad_example(error) from error
        followed = [module for module in self.inside if not self.is_leaf_module(module, "")]
        if followed:
            name = type(followed[-1]).__name__
            where, remedy = name, f"keep that part whole with leaves=({name},)"
        else:
            where = f"the forward of {type(self.model).__name__}"
            remedy = "move that code into a module of its own and give its class in leaves"
        raise ValueError(
            f"model must be traceable, but that stops in {where}: {_said(error)}; {remedy}"
        ) from error

    def _runs(self) -> bool:
        """Whether the model runs on the example at all."""
        args, kwargs = arguments(self.model, self.example)
        try:
            with torch.no_grad():
                self.model.eval()(*args, **kwargs)
        except Exception:
            return False
        return True

    def _recording(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            told = name in _RANDOM or tree_any(lambda x: isinstance(x, fx.Proxy), (args, kwargs))
            if self.running or not told:
                return function(*args, **kwargs)
            return self.create_proxy("call_function", function, args, kwargs)

        return call

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Make an input for each argument that is given; the others keep their defaults."""
        given, named = arguments(self.model, self.example)
        try:
            bound = signature(self.model.forward).bind(*given, **named)
        except TypeError as error:
            raise bad_example(error) from error
        parameters = list(bound.signature.parameters.values())
        for p in sorted(parameters, key=lambda p: p.default is not Parameter.empty):
            value: Any = bound.arguments.get(p.name, p.default)
            if value is Parameter.empty:
                continue
            if p.kind is Parameter.VAR_POSITIONAL:
                value = tuple(self._place(f"{p.name}_{i}", x) for i, x in enumerate(value))
            elif p.kind is Parameter.VAR_KEYWORD:
                value = {key: self._place(key, x) for key, x in value.items()}
            else:
                value = self._place(p.name, value, p.default)
            bound.arguments[p.name] = value
        return (lambda root: root_fn(root, *bound.args, **bound.kwargs)), [self.root]

    def _place(self, name: str, value: Any, default: Any = Parameter.empty) -> Any:
        """Make an input; one without tensors can only have the value that it has now."""
        if tree_any(lambda x: isinstance(x, Tensor), value):
            fallback = (
                () if default is Parameter.empty or not isinstance(default, PLAIN) else (default,)
            )
            proxy = self.create_proxy("placeholder", name, fallback, {})
            proxy.value = tree_map(
                lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value
            )
            return proxy
        if isinstance(value, PLAIN):
            node = self.create_node("placeholder", name, (value,), {})
            same = self.create_node("call_function", operator.eq, (node, value), {})
            said = f"{name} must be {value!r}, as when the model was traced"
            self.create_node("call_function", torch._assert, (same, said), {})
        return value

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inner = [p for child in m.children() for p in child.parameters()]
        if (
            isinstance(m, LAYERS) and not inner
        ):  # of other libraries too, but no adapters around one
            return True
        if type(m).__module__ == nn.TransformerEncoder.__module__:  # its sums are worth seeing
            return isinstance(m, self.leaves)
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        if unwrap(m) is not m:
            return unwrap(m)(*args, **kwargs)
        try:
            self.path_of_module(m)
        except NameError:  # made by the forward itself
            return forward(*args, **kwargs)
        self.inside.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self.running or isinstance(attr_val, fx.Proxy):  # a buffer that the code has assigned
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        node.meta["inside"] = self.inside[: -1 if kind == "call_module" else None]
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, *_: Any, **__: Any
    ) -> Any:
        """Record a call and run it. What it overwrites is from now on its result."""
        if kind == "placeholder":
            return super().create_proxy(kind, target, args, kwargs, name)
        fed = [x for x in (*args, *kwargs.values()) if isinstance(x, fx.Proxy)]
        fed = [(x, x.value._version) for x in fed if isinstance(x.value, Tensor)]  # type: ignore[attr-defined]
        if fed and getattr(target, "__name__", target) in _READING:
            raise proxies.TraceError(f"the code depends on the values of a tensor ({target})")
        if _autocasts() != self.autocasts:
            raise proxies.TraceError("the code uses torch.autocast")
        self.running = True
        try:
            with torch.no_grad():
                value = self._run(kind, target, args, kwargs)
        finally:
            self.running = False
        proxy = cast(_Proxy, super().create_proxy(kind, target, args, kwargs, name))
        proxy.value = value
        for x, version in fed:
            if x.value._version != version and x.value is value and x.node.op != "get_attr":
                if not value._is_view():
                    proxy.node.meta["in_place"] = True
                x.node = proxy.node
                return x
        if not torch.is_grad_enabled() and isinstance(
            value, Tensor
        ):  # the code has switched it off
            proxy.node = self.create_node("call_method", "detach", (proxy.node,), {})
        return proxy

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        def valued(x: Any) -> Any:
            return x.value if isinstance(x, _Proxy) else x

        args, kwargs = map_aggregate((args, kwargs), valued)
        if kind == "get_attr":
            return attribute(self.model, target)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "call_function":
            if target is F.batch_norm and args[1] is not None:  # one value a channel is too few
                kwargs = {**kwargs, "training": False}
            return target(*args, **kwargs)
        module = self.model.get_submodule(target)
        with evaluating(module):
            return module(*args, **kwargs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while; each of its parts gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _autocasts() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def bad_example(error: Exception) -> ValueError:
    """The error for an example on which a model fails."""
    return ValueError(
        f"example must be an input that the model can run on, but it fails: {_said(error)}; give a "
        "tensor, a tuple of the positional arguments, or a mapping of keyword arguments"
    )


def _said(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def attribute(model: nn.Module, target: str) -> Any:
    """Get an attribute by its qualified name."""
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def writes(node: fx.Node) -> bool:
    """Whether a function or method overwrites its first argument."""
    name = getattr(node.target, "__name__", str(node.target))
    in_place = name.endswith("_") and not name.endswith("__")
    return node.op in ("call_function", "call_method") and (
        node.target is operator.setitem or node.target in _OUT_OF_PLACE or in_place
    )


def has_effect(node: fx.Node) -> bool:
    """Whether a node must run although nobody reads what it gives: it checks inputs, or writes."""
    if "_assert" in getattr(node.target, "__name__", ""):
        return all(map(_is_of_inputs, node.all_input_nodes))
    return node.op in ("placeholder", "output") or writes(node)


def _is_of_inputs(node: fx.Node) -> bool:
    compares = node.target is getattr or node.target in vars(operator).values()
    return node.op == "placeholder" or (compares and all(map(_is_of_inputs, node.all_input_nodes)))


def _write_out_of_place(node: fx.Node) -> None:
    """Let a function or method that overwrites its input give a new tensor instead."""
    name = getattr(node.target, "__name__", str(node.target))
    if node.kwargs.get("inplace") is True:
        node.update_kwarg("inplace", False)
    elif node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
    elif writes(node):
        home: Any = Tensor if node.op == "call_method" else torch
        plain = getattr(home, name[:-1], None)
        if plain is not None:
            node.target = name[:-1] if node.op == "call_method" else plain
        else:
            with node.graph.inserting_before(node):
                copy = node.graph.call_method("clone", (node.args[0],))
            node.update_arg(0, copy)
