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
from dsonas.sparse.tracing import Leaves, Observed, State, module_of, observe, require_equal, trace

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def scale_connections(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """Put a scaling factor on every connection of a model that joins others in a sum or concat.

    A connection is an input of a sum of features of equal shape (``a + b``, ``sum([a, b, c])``,
    residual sums) or of a concatenation along another dimension than the first. All factors are 1,
    so the result computes what the model computes. The weights are shared with the model: training
    ``model.parameters()`` trains both.

    Args:
        model: any module that torch.fx can follow.
        example: an input, or a tuple of inputs, of the size that the model will be used with; one
            image suffices. Smaller ones can hide what padding does at borders.
        leaves: classes of modules to keep whole, where torch.fx cannot follow.

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
    traced = trace(model, example, leaves)
    observed = observe(traced, example)
    joins = [*_sums(traced.graph, observed), *_concatenations(traced.graph, observed)]
    found = sorted(joins, key=itemgetter(0))  # as the model runs
    if not found:
        raise ValueError(
            "model must have a sum of features of equal shape or a concatenation of channels, but "
            "none was found: those inside torch.nn modules and leaves are not seen; write "
            "dsonas.sparse.connections.ScaledSum into your forward instead"
        )
    _warn_of_unfelt(traced, [node for node, _, x in found if isinstance(x, ScaledConcat)])
    home = "scaling" + "_" * hasattr(traced, "scaling")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    replaced: dict[fx.Node, fx.Node] = {}
    for node, inputs, scaled in found:
        sources = [replaced.get(x, x) for x in inputs]
        replaced[node] = _replace(traced, node, sources, f"{home}.{node.name}", scaled.to(device))
    traced.graph.lint()
    traced.recompile()
    require_equal(
        model,
        traced,
        example,
        "an in-place operation or a random one keeps the model from being traced faithfully; "
        "write it out of place, or keep its module whole by leaves",
    )
    return traced


class ScaledConnection(NamedTuple):
    """An input of a scaled sum or concatenation.

    Args:
        source: the module that gives it, or the name of the operation.
        target: the sum or concatenation.
        factor: its scaling factor; 0 is cut.
    """

    source: str
    target: str
    factor: float


def list_connections(model: fx.GraphModule) -> list[ScaledConnection]:
    """All scaled connections of a model, in the order in which it runs.

    Args:
        model: what ``scale_connections`` has returned.
    """
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


Found = tuple[fx.Node, list[fx.Node], ScaledSum]


def _sums(graph: fx.Graph, observed: dict[fx.Node, Observed]) -> Iterator[Found]:
    """Sums of at least two features, a chain of additions as one sum."""
    inner: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in inner or not _is_sum(node, observed):
            continue
        terms = _terms(node, observed, inner)
        if len(terms) > 1:
            yield node, terms, ScaledSum(len(terms))


def _is_sum(node: fx.Node, observed: dict[fx.Node, Observed]) -> bool:
    if node.target not in _SUMS or len(node.args) != 2 or node.kwargs or not node.users:
        return False
    terms = [x for x in node.args if not (isinstance(x, int) and x == 0)]  # as sum() begins
    like = [isinstance(x, fx.Node) and _is_feature(x, node, observed) for x in terms]
    return all(like) and not _is_seen_elsewhere(node)


def _is_feature(x: fx.Node, total: fx.Node, observed: dict[fx.Node, Observed]) -> bool:
    value, result = observed.get(x), observed.get(total)
    if value is None or result is None:
        return False
    return value.state is State.LIVE and value.floating and value.shape == result.shape


def _is_seen_elsewhere(node: fx.Node) -> bool:
    """Whether what an in-place sum overwrites is read later, so that it cannot be replaced."""
    if node.target not in (operator.iadd, "add_") or not isinstance(node.args[0], fx.Node):
        return False
    return any(user > node for user in node.args[0].users if user is not node)


def _terms(node: fx.Node, observed: dict[fx.Node, Observed], inner: set[fx.Node]) -> list[fx.Node]:
    found = []
    for x in node.args:
        if isinstance(x, fx.Node) and len(x.users) == 1 and _is_sum(x, observed):
            inner.add(x)
            found += _terms(x, observed, inner)
        elif isinstance(x, fx.Node):
            found.append(x)
    return found


def _concatenations(graph: fx.Graph, observed: dict[fx.Node, Observed]) -> Iterator[Found]:
    for node in graph.nodes:
        inputs = node.args[0] if node.args else node.kwargs.get("tensors")
        if node.target not in _CONCATENATIONS or not isinstance(inputs, list | tuple):
            continue
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(dim, int) or len(inputs) < 2:
            continue
        dim %= max(1, len(observed[node].shape))
        values = [observed[x] for x in inputs if isinstance(x, fx.Node)]
        if dim > 0 and all(value.state is State.LIVE and value.floating for value in values):
            yield node, list(inputs), ScaledConcat(len(inputs), dim)


def _warn_of_unfelt(model: fx.GraphModule, concatenations: list[fx.Node]) -> None:
    unfelt = [
        node.name
        for node in concatenations
        if node.users and all(isinstance(module_of(model, user), _BatchNorm) for user in node.users)
    ]
    if unfelt:
        warnings.warn(
            f"only batch normalisation reads {', '.join(unfelt)}, and takes the scale of every "
            "channel out: the factors there get no gradient, so a penalty cannot tell what is "
            "useful; normalise the parts before they are concatenated",
            stacklevel=3,
        )


def _replace(
    model: fx.GraphModule, node: fx.Node, inputs: list[fx.Node], name: str, scaled: ScaledSum
) -> fx.Node:
    model.add_submodule(name, scaled)
    with model.graph.inserting_before(node):
        new = model.graph.call_module(name, tuple(inputs))
    node.replace_all_uses_with(new)
    _erase_sum(node)
    return new


def _erase_sum(node: fx.Node) -> None:
    """Erase a node without users, and the additions that have fed only it."""
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for x in inputs:
        if x.target in _SUMS and not x.users:
            _erase_sum(x)
