"""Any PyTorch model as a graph (torch.fx) that follows its mode and keeps its names and buffers."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from dsonas.sparse.recording import CONSTANT, PLAIN, Leaves, has_effect, record, unwrap

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d, F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
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
                record(model.train(mode), example, leaves) for mode in (True, False)
            )
            whole = _parted(model, training, evaluation)
            if whole is None:
                break
            leaves = (*leaves, whole)
        graph = _merge(model, training, evaluation)
        names = [name for name in tensor_names(model) if CONSTANT not in name]
        result = rebuild(model, graph, names)
    take_attributes(model, result)
    _warn_of_losses(model, result)
    return result


def rebuild(root: nn.Module, graph: fx.Graph, names: list[str]) -> fx.GraphModule:
    """Make the module of a graph, with some tensors of ``root`` that it need not read.

    ``names`` are those of parameters and buffers, in the order of ``state_dict()``.
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
    if a.op == b.op == "get_attr" and CONSTANT in str(a.target):
        return CONSTANT in str(b.target)
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
