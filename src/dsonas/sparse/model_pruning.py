"""Physical removal of what scaling factors of 0 have cut from any PyTorch model."""

from __future__ import annotations

import operator
import warnings
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dsonas.sparse.absorbing import Absorber
from dsonas.sparse.connections import ScaledConcat, ScaledSum
from dsonas.sparse.observing import (
    Observed,
    State,
    module_of,
    observe,
    observe_inputs,
    placed,
    require_equal,
)
from dsonas.sparse.recording import Leaves, copied, has_effect, unwrap
from dsonas.sparse.tracing import rebuild, take_attributes, tensor_names, trace


def prune_model(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """Remove from a model everything that its scaling factors of 0 have cut.

    What only feeds a factor of 0 goes, with its weights. Other factors become part of the layers
    beside them where these are linear, a multiplication otherwise. Channels of a concatenation
    that are cut are taken out of the layers that read them where that is exact, and stay as zeros
    otherwise.

    Args:
        model: what ``scale_connections`` has returned, trained; or any traceable module with
            ``dsonas.sparse.connections.ScaledSum`` or ``ScaledConcat`` parts. It is not changed.
        example: an input, or a tuple of inputs, of the usual shape.
        leaves: classes of modules to keep whole, where torch.fx cannot follow.

    Returns:
        An ordinary module, with copied weights and nothing of dsonas in it, that computes the same
        in evaluation mode.

    Raises:
        ValueError: if there are no scaling factors, or the output no longer depends on the input.

    Example:
        >>> from dsonas.sparse.any_model import scale_connections
        >>> from dsonas.sparse.connections import scaling_factors
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return x + self.linear(x)
        >>> model = scale_connections(Residual(), torch.zeros(1, 2))
        >>> (factors,) = scaling_factors(model)
        >>> factors.data = torch.tensor([3.0, 0.0])
        >>> pruned = prune_model(model, torch.zeros(1, 2))
        >>> pruned(torch.tensor([[1.0, 2.0]])), list(pruned.parameters())
        (tensor([[3., 6.]]), [])
    """
    same = copied(unwrap(model))
    traced = same if isinstance(same, fx.GraphModule) else trace(same, example, leaves)
    if not _scaled_nodes(traced):
        raise ValueError(
            "model must have scaling factors, but has none: prune what "
            "dsonas.scale_connections(model, example) has returned"
        )
    for module in traced.modules():  # a sum may become its one live input, which others read too
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    observed = observe(traced, example)
    _require_alive(traced, observed)
    names = tensor_names(traced)
    unread = _unread(traced, names)
    pruning = _Pruning(traced, observed, example)
    pruning.cut()
    pruning.join()
    cut = _unread(traced, names) - unread
    result = rebuild(traced, traced.graph, [name for name in names if name not in cut])
    take_attributes(unwrap(model), result)
    require_equal(
        model,
        result,
        example,
        "a part of the model works in place or at random; keep its module whole by leaves",
    )
    return result


def _unread(model: fx.GraphModule, names: list[str]) -> set[str]:
    """The parameters and buffers that no node reads."""
    read = {str(n.target) for n in model.graph.nodes if n.op in ("get_attr", "call_module")}
    return {name for name in names if read.isdisjoint(accumulate(name.split("."), "{}.{}".format))}


def _scaled_nodes(model: fx.GraphModule) -> list[fx.Node]:
    return [node for node in model.graph.nodes if isinstance(module_of(model, node), ScaledSum)]


def _require_alive(model: fx.GraphModule, observed: dict[fx.Node, Observed]) -> None:
    output = model.graph.output_node()
    if observed[output].state is not State.LIVE:
        raise ValueError(
            "at least one path from the input to the output must be live, but the scaling factors "
            "have cut all: train again from the start with a lower penalty"
        )
    cut = {node for node, value in observed.items() if value.state is State.CUT}
    names = [repr(key) for key, x in _parts(output.args[0]) if cut.intersection(_nodes(x))]
    if names:
        warnings.warn(
            f"outputs {', '.join(names)} no longer depend on the input: the scaling factors have "
            "cut all that leads to them",
            stacklevel=3,
        )


def _parts(given: Any) -> list[tuple[Any, Any]]:
    """What a model gives, by its keys or indices."""
    if isinstance(given, fx.Node):
        if not isinstance(given.target, type):  # a dataclass or a named tuple
            return []
        fields = getattr(given.target, "_fields", range(len(given.args)))
        return [*zip(fields, given.args, strict=False), *given.kwargs.items()]
    return list(given.items() if isinstance(given, dict) else enumerate(given))


def _nodes(x: Any) -> list[fx.Node]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, fx.Node)]


@dataclass
class _Join:
    """A live sum or concatenation, whose node keeps only its live inputs."""

    inputs: list[fx.Node]  # those that are live
    factors: list[float]  # theirs
    signs: list[float]  # what is to stay beside them
    # for each channel before, along the dimension of a concatenation, whether it is live
    keep: Tensor
    widths: list[int]  # channels of the live inputs of a concatenation
    gaps: list[int]  # the dead channels in front of each live input, and behind the last

    def scale(self, x: fx.Node, factor: float) -> None:
        """Multiply the factors of an input."""
        self.factors = [
            f * factor if y is x else f for y, f in zip(self.inputs, self.factors, strict=True)
        ]


Growth = tuple[fx.Node, int, dict[fx.Node, Observed]]
"""An input, the dimension in which it is twice as large, and what the nodes then are."""


class _Pruning:
    """Rewrites the graph of a traced model with scaled sums and concatenations, in place.

    ``observed`` is what its nodes gave on the example.
    """

    def __init__(
        self, model: fx.GraphModule, observed: dict[fx.Node, Observed], example: Any
    ) -> None:
        self.model, self.graph, self.observed = model, model.graph, observed
        self.example = example
        self.joins: dict[fx.Node, _Join] = {}

    def cut(self) -> None:
        """Take inputs that are 0 out of live sums and concatenations, and erase what is dead."""
        scaled = [n for n in _scaled_nodes(self.model) if self.observed[n].state is not State.CUT]
        joins = {node: self._live_inputs(node) for node in scaled}
        settled = {node: None for node, value in self.observed.items() if value.value is not None}
        needed = {
            node: [user for user in node.users
                   if user not in settled and (user not in joins or node in joins[user].inputs)]
            for node in settled
        }  # fmt: skip
        growing = self._growing() if any(needed.values()) else []
        for node, join in joins.items():
            node.args = tuple(join.inputs)
        self.joins = joins
        for node, users in needed.items():
            constant = self._constant(node, growing) if users else node
            for user in users:
                user.replace_input_with(node, constant)
                if user in joins:
                    inputs = joins[user].inputs
                    joins[user].inputs = [constant if x is node else x for x in inputs]
        self.graph.eliminate_dead_code(has_effect)

    def _live_inputs(self, node: fx.Node) -> _Join:
        scaled = module_of(self.model, node)
        assert isinstance(scaled, ScaledSum)
        join = _Join([], [], [], torch.empty(0), [], [0])
        keep: list[bool] = []
        for x, factor, sign in zip(node.args, scaled.factors.tolist(), scaled.signs, strict=True):
            assert isinstance(x, fx.Node)
            alive = factor != 0 and not self.observed[x].is_zero
            width = self.observed[x].shape[scaled.dim] if isinstance(scaled, ScaledConcat) else 0
            keep += [alive] * width
            if alive:
                join.inputs.append(x)
                join.factors.append(factor)
                join.signs.append(sign)
                join.widths.append(width)
                join.gaps.append(0)
            else:
                join.gaps[-1] += width
        join.keep = torch.tensor(keep, dtype=torch.bool)
        return join

    def _growing(self) -> list[Growth]:
        """For every dimension of the inputs: what all is if they are twice as large there."""
        inputs, nodes = placed(self.model, self.example), self.graph.find_nodes(op="placeholder")
        found: list[Growth] = []
        for dim in range(max((x.ndim for x in inputs if isinstance(x, Tensor)), default=0)):
            grown = {
                node: torch.cat([x, x], dim)
                for node, x in zip(nodes, inputs, strict=True)
                if isinstance(x, Tensor) and x.ndim > dim
            }
            larger = [grown.get(node, x) for node, x in zip(nodes, inputs, strict=True)]
            with suppress(ValueError):  # channels cannot grow
                found.append((next(iter(grown)), dim, observe_inputs(self.model, larger)))
        return found

    def _constant(self, node: fx.Node, growing: list[Growth]) -> fx.Node:
        """A node that gives what a cut node always gives, for inputs of any size that allows it."""
        value = self.observed[node].value
        assert value is not None
        whole, shape = value.shape, list[Any](value.shape)
        for dim in range(value.ndim):
            first = value.narrow(dim, 0, 1) if value.shape[dim] else value
            value = first if bool((value == first).all()) else value
        name = f"constant_{node.name}"
        self.model.register_buffer(name, value.clone())
        with self.graph.inserting_before(node):
            constant = self.graph.get_attr(name)
            for source, dim, larger in growing:
                now = self.graph.call_method("size", (source, dim))
                for i, size in enumerate(larger[node].shape):
                    if size == 2 * whole[i] and value.shape[i] == 1:
                        times = self.graph.call_function(operator.mul, (shape[i], now))
                        before = self.observed[source].shape[dim]
                        shape[i] = self.graph.call_function(operator.floordiv, (times, before))
            return self.graph.call_method("expand", (constant, *shape))

    def join(self) -> None:
        """Write sums and concatenations plainly; layers beside them absorb what they can."""
        self.absorber = Absorber(self.model, self.observed)
        for node in _scaled_nodes(self.model):
            join = self.joins.pop(node)
            with self.graph.inserting_before(node):
                concatenates = isinstance(module_of(self.model, node), ScaledConcat)
                new = self._concatenated(node, join) if concatenates else self._summed(node, join)
            node.replace_all_uses_with(new)
            self.graph.erase_node(node)
            for other in self.joins.values():
                other.inputs = [new if x is node else x for x in other.inputs]
            if new not in self.observed:
                self.observed[new] = self.observed[node]
        self.graph.eliminate_dead_code(has_effect)

    def _summed(self, node: fx.Node, join: _Join) -> fx.Node:
        terms: dict[fx.Node, tuple[float, float]] = {}  # the factor and the sign of each input
        for x, factor, sign in zip(join.inputs, join.factors, join.signs, strict=True):
            before, same = terms.get(x, (0.0, sign))
            both = (before + factor, sign) if same == sign else (before * same + factor * sign, 1.0)
            terms[x] = both
        left = {x: self._left(x, factor) for x, (factor, _) in terms.items()}
        common = next((factor for factor in left.values() if factor != 1), 1.0)
        if common != 1 and self.absorber.scale_readers(
            node, torch.tensor(common, dtype=torch.float64), self.joins
        ):
            left = {
                x: factor / common if factor != 1 else self._left(x, 1 / common)
                for x, factor in left.items()
            }
        total: fx.Node | None = None
        for x, (_, sign) in sorted(terms.items(), key=lambda item: -item[1][1]):
            term = self._times(x, left[x] * abs(sign))
            if total is None:
                total = term if sign > 0 else self.graph.call_function(operator.neg, (term,))
            else:
                combine = operator.add if sign > 0 else operator.sub
                total = self.graph.call_function(combine, (total, term))
        assert total is not None
        return total

    def _left(self, x: fx.Node, factor: float) -> float:
        """What is left of a factor after the layer that gives ``x`` has absorbed what it can."""
        return 1.0 if factor == 1 or self.absorber.scale_back(x, factor) else factor

    def _times(self, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1 else self.graph.call_function(operator.mul, (x, factor))

    def _concatenated(self, node: fx.Node, join: _Join) -> fx.Node:
        scaled = module_of(self.model, node)
        assert isinstance(scaled, ScaledConcat)
        inputs, gaps, dim = join.inputs, join.gaps, scaled.dim
        num_after = len(self.observed[node].shape) - 1 - dim
        if any(gaps) and dim == 1 and self.absorber.drop_channels(node, join.keep):
            gaps = [0] * len(gaps)
        left = [
            self._left(x, factor) if inputs.count(x) == 1 else factor
            for x, factor in zip(inputs, join.factors, strict=True)
        ]
        if dim == 1 and set(left) != {1.0}:
            vector = _spread(left, join.widths, gaps)
            if self.absorber.scale_readers(node, vector, self.joins):
                left = [1.0] * len(left)
        parts = [self._times(x, factor) for x, factor in zip(inputs, left, strict=True)]
        parts = [self._padded(x, i, gaps, num_after) for i, x in enumerate(parts)]
        return parts[0] if len(parts) == 1 else self.graph.call_function(torch.cat, (parts, dim))

    def _padded(self, x: fx.Node, index: int, gaps: list[int], num_after: int) -> fx.Node:
        """An input of a concatenation with zeros for the dead ones behind it, or at the front."""
        width = [gaps[0] if index == 0 else 0, gaps[index + 1]]
        if not any(width):
            return x
        return self.graph.call_function(F.pad, (x, [0, 0] * num_after + width))


def _spread(factors: list[float], widths: list[int], gaps: list[int]) -> Tensor:
    """The factor of every channel; 1 for the dead ones."""
    values = [1.0] * gaps[0]
    for factor, width, gap in zip(factors, widths, gaps[1:], strict=True):
        values += [factor] * width + [1.0] * gap
    return torch.tensor(values, dtype=torch.float64)
