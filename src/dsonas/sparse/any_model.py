"""Scaling factors on the connections of any PyTorch model."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dsonas.sparse.connections import ScaledConcat, ScaledSum
from dsonas.sparse.observing import Observed, module_of, observe, require_equal
from dsonas.sparse.recording import Leaves, has_effect, unwrap
from dsonas.sparse.tracing import trace

_SUMS: dict[Any, int] = {  # the sign of the second operand
    operator.add: 1, torch.add: 1, "add": 1,
    operator.sub: -1, torch.sub: -1, torch.subtract: -1, "sub": -1, "subtract": -1,
}  # fmt: skip
_REDUCTIONS = (torch.sum, "sum", torch.mean, "mean")
_CONCATENATIONS: dict[Any, int | None] = {  # their dimension, where the name says it
    torch.cat: None, torch.concat: None, torch.concatenate: None, torch.hstack: 1, torch.dstack: 2,
}  # fmt: skip

_REMEDY = "a part overwrites what others read through a view; keep its module whole by leaves"


def scale_connections(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """Put a scaling factor on every connection of a model that joins others in a sum or concat.

    A connection is an input of a sum of features of equal shape (``a + b``, ``a - b``,
    ``torch.stack([a, b]).sum(0)``) or of a concatenation along another dimension than the first.
    All factors are 1, so the result computes what the model computes. The weights are shared with
    the model, which stays as it is: training ``model.parameters()`` trains both.

    Args:
        model: any module whose code does not depend on the numbers in its tensors.
        example: an input of the size that the model will be used with, a mapping of keyword
            arguments, or a tuple of inputs; one image suffices. Smaller ones can hide what padding
            does at borders.
        leaves: classes of modules to keep whole, where the code cannot be followed.

    Returns:
        The traced model. ``model.scaling.parameters()`` are its factors, one vector for each sum or
        concatenation; ``prune_model`` removes what they have cut.

    Raises:
        ValueError: if the model cannot be traced, or has no such connection.

    Warns:
        UserWarning: of concatenations that only batch normalisation reads, as in DenseNet. It takes
            out the scale of every channel, so that their factors get no gradient and what a penalty
            presses to 0 is chance.

    Example:
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return x + self.linear(x)
        >>> model = scale_connections(Residual(), torch.zeros(1, 2))
        >>> [(link.source, link.target, link.factor) for link in list_connections(model)]
        [('x', 'add', 1.0), ('linear', 'add', 1.0)]

    Source: arXiv 1811.01567, eq. 3.
    """
    model = unwrap(model)
    traced = trace(model, example, leaves)
    require_equal(model, traced, example, _REMEDY)
    joins = find_joins(traced, example)
    if not joins:
        raise ValueError(
            "model must have a sum of features of equal shape or a concatenation of channels, but "
            "none was found: those inside torch.nn modules and leaves are not seen; write "
            "dsonas.sparse.connections.ScaledSum into your forward instead"
        )
    unfelt = [node.name for node, _, _ in joins if is_unfelt(traced, node)]
    if unfelt:
        warnings.warn(
            f"only batch normalisation reads {', '.join(unfelt)}, and takes the scale of every "
            "channel out: the factors there get no gradient, so a penalty cannot tell what is "
            "useful; normalise the parts before they are concatenated",
            stacklevel=2,
        )
    scale_joins(traced, joins)
    require_equal(model, traced, example, _REMEDY)
    return traced


def find_joins(traced: fx.GraphModule, example: Any) -> list[Join]:
    """Find the sums and concatenations of a traced model, in the order in which it runs."""
    observed = observe(traced, example)
    joins = [*_sums(traced.graph, observed), *_concatenations(traced.graph, observed)]
    return sorted(joins, key=itemgetter(0))


def scale_joins(traced: fx.GraphModule, joins: list[Join]) -> None:
    """Put a scaling factor on every input of some sums and concatenations, in place."""
    home = "scaling" + "_" * hasattr(traced, "scaling")
    device = next((p.device for p in traced.parameters()), None)
    replaced: dict[fx.Node, fx.Node] = {}
    for node, inputs, scaled in joins:
        sources = [replaced.get(x, x) for x in inputs]
        name = f"{home}.{node.name}"
        traced.add_submodule(name, scaled.to(device))
        with traced.graph.inserting_before(node):
            replaced[node] = traced.graph.call_module(name, tuple(sources))
        node.replace_all_uses_with(replaced[node])
    traced.graph.eliminate_dead_code(has_effect)
    traced.recompile()


def is_unfelt(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether only batch normalisation reads a concatenation."""
    concatenates = node.target in _CONCATENATIONS and len(node.users) > 0
    return concatenates and all(isinstance(module_of(traced, x), _BatchNorm) for x in node.users)


class ScaledConnection(NamedTuple):
    """An input of a scaled sum or concatenation."""

    source: str  # the module that gives it, or the name of the operation
    target: str  # the sum or concatenation
    factor: float  # its scaling factor; 0 is cut


def list_connections(model: fx.GraphModule) -> list[ScaledConnection]:
    """All scaled connections of what ``scale_connections`` has returned, in the order of a run."""
    found = []
    for node in model.graph.nodes:
        module = module_of(model, node)
        if isinstance(module, ScaledSum):
            for source, factor in zip(node.args, module.factors.tolist(), strict=True):
                title = source.target if source.op == "call_module" else source.name
                found.append(ScaledConnection(_plain(title), _plain(node.target), factor))
    return found


def _plain(target: str) -> str:
    return target.removeprefix("scaling").lstrip("_").removeprefix(".")


Join = tuple[fx.Node, list[fx.Node], ScaledSum]
"""A sum or concatenation, its inputs, and what takes its place."""
Terms = list[tuple[Any, float]]


def _sums(graph: fx.Graph, observed: dict[fx.Node, Observed]) -> Iterator[Join]:
    """Sums of at least two features, a chain of additions as one sum."""
    inner: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        terms = [] if node in inner else _flat(node, observed, inner)
        if len(terms) > 1:
            yield node, [x for x, _ in terms], ScaledSum(len(terms), [sign for _, sign in terms])


def _flat(node: fx.Node, observed: dict[fx.Node, Observed], inner: set[fx.Node]) -> Terms:
    """The features that a node adds, through additions whose results nobody else reads."""
    found: Terms = []
    for x, sign in _terms(node, observed):
        deeper = _flat(x, observed, inner) if len(x.users) == 1 else []
        if deeper:
            inner.add(x)
        found += [(y, sign * other) for y, other in deeper] or [(x, sign)]
    return found


def _terms(node: fx.Node, observed: dict[fx.Node, Observed]) -> Terms:
    """The features that a node adds and what each is multiplied by; none if it is no sum."""
    terms = _operands(node) or _stacked(node)
    terms = [(x, sign) for x, sign in terms if not (isinstance(x, int) and x == 0)]  # of sum()
    total = observed.get(node)
    for x, _ in terms:
        value = observed.get(x) if isinstance(x, fx.Node) else None
        if total is None or value is None or not value.is_feature:
            return []
        if (value.shape, value.dtype) != (total.shape, total.dtype):
            return []
    return terms if node.users else []


def _operands(node: fx.Node) -> list[tuple[Any, float]]:
    """The operands of an addition or subtraction and their signs."""
    if node.target not in _SUMS:
        return []
    named = [node.kwargs[key] for key in ("input", "other") if key in node.kwargs]
    given, alpha = [*node.args, *named], node.kwargs.get("alpha", 1)
    if len(given) != 2 or not isinstance(alpha, int | float) or not alpha:
        return []
    return [(given[0], 1.0), (given[1], float(_SUMS[node.target] * alpha))]


def _stacked(node: fx.Node) -> list[tuple[Any, float]]:
    """The inputs of a stack that a node adds up along the dimension in which they are stacked."""
    stack = node.args[0] if node.args else node.kwargs.get("input")
    if node.target not in _REDUCTIONS or not isinstance(stack, fx.Node):
        return []
    if (
        stack.target is not torch.stack
        or len(stack.users) > 1
        or set(node.kwargs) - {"dim", "input"}
    ):
        return []
    inputs = stack.args[0] if stack.args else stack.kwargs["tensors"]
    along = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
    reduced = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(inputs, list | tuple) or reduced not in (along, (along,), [along]):
        return []
    scale = 1 / len(inputs) if node.target in (torch.mean, "mean") else 1.0
    return [(x, scale) for x in inputs]


def _concatenations(graph: fx.Graph, observed: dict[fx.Node, Observed]) -> Iterator[Join]:
    for node in graph.nodes:
        if node.target not in _CONCATENATIONS:
            continue
        inputs = node.args[0] if node.args else node.kwargs.get("tensors")
        given = node.kwargs.get("dim", node.kwargs.get("axis", 0))
        dim = _CONCATENATIONS[node.target] or (node.args[1] if len(node.args) > 1 else given)
        if not isinstance(inputs, list | tuple) or not isinstance(dim, int) or len(inputs) < 2:
            continue
        dim %= max(1, len(observed[node].shape))
        fits = [isinstance(x, fx.Node) and observed[x].is_feature for x in inputs]
        if dim > 0 and all(fits):
            yield node, list(inputs), ScaledConcat(len(inputs), dim)
