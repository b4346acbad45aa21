"""Any PyTorch model as a graph (torch.fx), traced along an example.

Every proxy carries the value that it has on the example. So code may ask for shapes, loop over
them, unpack tensors and branch on types; only what depends on the numbers in a tensor cannot be
followed.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import Parameter, signature
from itertools import zip_longest
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import proxy as proxies
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from dsonas.sparse.connections import ScaledSum

Leaves = tuple[type[nn.Module], ...]
LAYERS = (nn.Linear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
PLAIN = (type(None), bool, int, float, str)
_CONSTANT = "_tensor_constant"  # what torch.fx calls tensors made while tracing
_RANDOM = ("rand", "randn", "randint", "randperm")
MAKERS = (  # torch.fx sees none of them where sizes are all that comes from the input
    *_RANDOM, "arange", "as_tensor", "empty", "eye", "finfo", "full", "iinfo", "linspace", "ones",
    "tensor", "zeros",
)  # fmt: skip
_READING = ("item", "tolist", "numpy", "equal", "allclose", "is_nonzero")
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d, F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}  # fmt: skip
_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip


def trace(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """Trace a model as a graph of its operations, which shares its layers and tensors.

    The model itself stays as it is. Names in ``state_dict()`` are the model's. What depends on
    ``self.training`` follows ``train()`` and ``eval()`` of the result too: a part that acts by it,
    such as stochastic depth, is kept whole.

    Args:
        model: any module; wrappers such as ``DataParallel`` are taken off.
        example: an input, a mapping of keyword arguments, or a tuple of inputs, whose last may be
            such a mapping; arguments that it lacks get their defaults.
        leaves: classes of modules to keep whole.

    Raises:
        ValueError: if the code cannot be followed; where it stops and the remedy are named.

    Warns:
        UserWarning: of hooks and of methods that the result lacks.

    Example:
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         return x + x.relu()
        >>> [node.op for node in trace(Residual(), torch.zeros(1)).graph.nodes]
        ['placeholder', 'call_method', 'call_function', 'output']
    """
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "model must be a Python module, but is a ScriptModule: give the one it was made of"
        )
    with untouched(model):
        while True:
            training, evaluation = (
                _Tracer(model.train(mode), leaves, example).record() for mode in (True, False)
            )
            whole = _parted(model, training, evaluation)
            if whole is None:
                break
            leaves = (*leaves, whole)
        graph = _merge(model, training, evaluation)
        names = [name for name in tensor_names(model) if _CONSTANT not in name]
        result = rebuild(model, graph, names)
    take_attributes(model, result)
    _warn_of_losses(model, result)
    return result


def rebuild(root: nn.Module, graph: fx.Graph, names: list[str]) -> fx.GraphModule:
    """Make the module of a graph, with some tensors of ``root`` that it need not read.

    Args:
        root: where modules and tensors are found.
        graph: is taken over.
        names: of parameters and buffers, in the order of ``state_dict()``.
    """
    with graph.inserting_before(next(iter(graph.nodes))):
        kept = [graph.create_node("get_attr", name, name="kept") for name in names]
    result = fx.GraphModule(root, graph, type(root).__name__)
    for node in kept:
        result.graph.erase_node(node)
    result.graph.lint()
    result.recompile()
    return result


def tensor_names(model: nn.Module) -> list[str]:
    """List the qualified names of all parameters and buffers."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [name for name, _ in (*parameters, *model.named_buffers(remove_duplicate=False))]


def unwrap(model: nn.Module) -> nn.Module:
    """Take off what ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` put on."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = cast(nn.Module, model._modules["_orig_mod"])
        else:
            return model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore attributes, modes and buffers of a model and the random numbers at the end."""
    saved: list[tuple[nn.Module, dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]] = [
        (m, vars(m).copy(), [(d, d.copy()) for d in (m._parameters, m._buffers, m._modules)])
        for m in model.modules()
    ]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers()]
    with torch.random.fork_rng(devices={p.device for p in model.parameters() if p.is_cuda}):
        try:
            yield
        finally:
            for module, attributes, dicts in saved:
                vars(module).clear()
                vars(module).update(attributes)
                for now, before in dicts:
                    now.clear()
                    now.update(before)
            for buffer, version, values in buffers:
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(values)


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split an example into the positional and the keyword arguments of a model."""
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    if args and isinstance(args[-1], Mapping) and all(isinstance(key, str) for key in args[-1]):
        with suppress(TypeError):
            signature(model.forward).bind(*args[:-1], **args[-1])
            return args[:-1], dict(args[-1])
    return args, {}


class _Proxy(fx.Proxy):
    """A proxy that knows what it stands for on the example."""

    value: Any = None

    @property
    def __class__(self) -> type:  # so that ``isinstance(x, Tensor)`` holds in the user's code
        return type(self.value) if isinstance(self.value, Tensor) else _Proxy

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
        tracer = cast(_Tracer, self.tracer)
        if self.node.op != "get_attr" and not self.value._is_view():
            copy = tracer.create_proxy("call_method", "clone", (self,), {})
            self.node, self.value = copy.node, copy.value
        tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _define_in_place(name: str) -> None:
    def method(self: _Proxy, other: Any) -> Any:
        if not isinstance(self.value, Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    setattr(_Proxy, f"__{name}__", method)


for _operation in _OUT_OF_PLACE:
    _define_in_place(_operation.__name__)


class _Tracer(fx.Tracer):
    """Records a model and runs it on the example at the same time."""

    proxy_buffer_attributes = True  # else buffers become constants

    def __init__(self, model: nn.Module, leaves: Leaves, example: Any) -> None:
        super().__init__()
        self.model, self.leaves, self.example = model, (ScaledSum, *leaves), example
        self.inside: list[nn.Module] = []
        self.running = False

    def record(self) -> fx.Graph:
        """Trace; the graph writes out of place what the model writes in place."""
        makers: dict[str, Any] = {n: self._recording(n, getattr(torch, n)) for n in MAKERS}
        buffers = [(name, m, m._buffers.copy()) for name, m in self.model.named_modules()]
        try:
            with torch.no_grad(), patch.multiple(torch, **makers):
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
        if self.inside:
            name = type(self.inside[-1]).__name__
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
        if isinstance(m, LAYERS):  # of other libraries too, but no adapters around a layer
            return not any(list(child.parameters()) for child in m.children())
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
        self.running = True
        try:
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
        modes = [(part, part.training) for part in module.modules()]
        try:
            return module.eval()(*args, **kwargs)
        finally:
            for part, mode in modes:
                part.training = mode


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
    return node.op == "placeholder" or (
        node.target in (operator.eq, getattr) and all(map(_is_of_inputs, node.all_input_nodes))
    )


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


def _parted(model: nn.Module, training: fx.Graph, evaluation: fx.Graph) -> type[nn.Module] | None:
    """The class of the smallest module that does something else in training; None if none does."""
    for a, b in zip_longest(training.nodes, evaluation.nodes):
        places = [node for node in (a, b) if node is not None]
        inside = max((node.meta.get("inside", []) for node in places), key=len)
        whole = inside[-1] if inside and not isinstance(inside[-1], type(model)) else None
        if a is None or b is None or not _is_same_call(a, b):
            if whole is not None:
                return type(whole)
            raise ValueError(
                "model must run the same operations in training and in evaluation, but they part "
                f"at {places[0].name!r}: switch such branches off (auxiliary heads, for instance), "
                "or move them into a module of its own"
            )
        same = str((a.args, a.kwargs)) == str((b.args, b.kwargs))
        if whole is not None and not same and not _drops_out(a, b):
            return type(whole)
    return None


def _is_same_call(a: fx.Node, b: fx.Node) -> bool:
    if a.op == b.op == "get_attr" and _CONSTANT in str(a.target):
        return _CONSTANT in str(b.target)
    return (a.op, a.target) == (b.op, b.target)


def _drops_out(a: fx.Node, b: fx.Node) -> bool:
    """Whether a node is ``F.dropout(x, p, training=self.training)``."""
    modes = a.kwargs.get("training"), b.kwargs.get("training")
    return a.target in DROPOUTS and modes == (True, False)


def _merge(model: nn.Module, training: fx.Graph, evaluation: fx.Graph) -> fx.Graph:
    """The graph of training, in which arguments that differ in evaluation follow the mode."""
    twins = dict(zip(evaluation.nodes, training.nodes, strict=True))
    for b, a in list(twins.items()):
        if _drops_out(a, b):
            twins[b] = _call_dropout(model, a)
        else:
            choice = _Choice(training, twins, a)
            a.args, a.kwargs = choice(a.args, b.args), choice(a.kwargs, b.kwargs)
    training.eliminate_dead_code(has_effect)
    return training


def _call_dropout(model: nn.Module, node: fx.Node) -> fx.Node:
    """Let a layer drop out, which follows its mode in every copy and pickle too."""
    given = dict(zip(("input", "p"), node.args, strict=False)) | node.kwargs
    name = node.name
    while hasattr(model, name):
        name += "_"
    model.add_module(name, DROPOUTS[node.target](given.get("p", 0.5)))
    with node.graph.inserting_before(node):
        new = node.graph.call_module(name, (given["input"],))
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


class _Choice:
    """Merges arguments: those that differ become ``(in evaluation, in training)[training]``."""

    def __init__(self, graph: fx.Graph, twins: dict[fx.Node, fx.Node], place: fx.Node) -> None:
        self.graph, self.twins, self.place = graph, twins, place

    def __call__(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and self.twins.get(b) is a:
            return a
        if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
            return type(a)(self(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self(a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(self(getattr(a, k), getattr(b, k)) for k in ("start", "stop", "step")))
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node) and a == b:
            return a
        in_evaluation = self.twins.get(b, b) if isinstance(b, fx.Node) else b
        with self.graph.inserting_before(self.place):
            mode = self.graph.create_node("get_attr", "training")
            return self.graph.call_function(operator.getitem, ((in_evaluation, a), mode))


def take_attributes(model: nn.Module, result: nn.Module) -> None:
    """Copy plain attributes, and the mode, of the modules that are traced through."""
    parts = dict(model.named_modules(remove_duplicate=False))
    for name, part in result.named_modules(remove_duplicate=False):
        original = parts.get(name, part)
        for key, value in vars(original).items():
            plain = all(isinstance(leaf, PLAIN) for leaf in tree_leaves(value))
            if key == "training" or (key not in vars(part) and plain and key[0] != "_"):
                vars(part)[key] = value
        part._non_persistent_buffers_set |= original._non_persistent_buffers_set & set(
            part._buffers
        )


def _warn_of_losses(model: nn.Module, result: nn.Module) -> None:
    parts = dict(result.named_modules(remove_duplicate=False))
    lost = [
        f"hooks of {name or 'the model'}"
        for name, part in model.named_modules()
        if parts.get(name) is not part
        and (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)
    ]
    methods = {
        key
        for base in type(model).__mro__
        if not base.__module__.startswith(("torch.", "builtins"))
        for key, value in vars(base).items()
        if callable(value) and not key.startswith("_") and not hasattr(nn.Module, key)
    }
    if methods:
        lost.append(f"the methods {', '.join(sorted(methods)[:5])} of {type(model).__name__}")
    if lost:
        warnings.warn(
            f"only the forward of a model is traced: {'; '.join(lost)} are not in the result",
            stacklevel=3,
        )
