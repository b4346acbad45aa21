"""Physical removal of what scaling factors of 0 have cut from any PyTorch model."""

from __future__ import annotations

import operator
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsonas.sparse.absorbing import ChannelDropper, scale_inputs, scale_output
from dsonas.sparse.connections import ScaledConcat, ScaledSum
from dsonas.sparse.tracing import Leaves, Observed, State, module_of, observe, require_equal, trace

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def prune_model(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """Remove from a model everything that its scaling factors of 0 have cut.

    What only feeds a factor of 0 goes, with its weights. Other factors become part of the layers
    beside them where these are linear, a multiplication otherwise. Channels of a concatenation
    that are cut are taken out of the layers that read them where that is exact, and stay as zeros
    otherwise. Assertions of the traced code go too.

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
    copy = deepcopy(model)
    traced = copy if isinstance(copy, fx.GraphModule) else trace(copy, example, leaves)
    if not any(_scaled_nodes(traced)):
        raise ValueError(
            "model must have scaling factors, but has none: prune what "
            "dsonas.scale_connections(model, example) has returned"
        )
    _write_out_of_place(traced)
    observed = observe(traced, example)
    _require_alive(traced, observed)
    pruning = _Pruning(traced, observed)
    pruning.cut()
    pruning.join()
    result = fx.GraphModule(traced, traced.graph, type(model).__name__)
    require_equal(
        model,
        result,
        example,
        "a part of the model works in place or at random; keep its module whole by leaves",
    )
    return result


def _scaled_nodes(model: fx.GraphModule) -> list[fx.Node]:
    return [node for node in model.graph.nodes if isinstance(module_of(model, node), ScaledSum)]


def _write_out_of_place(model: fx.GraphModule) -> None:
    """A sum that becomes its one live input must not be overwritten: others may read it."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    for node in model.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
        if not node.users or node.op not in ("call_function", "call_method"):
            continue
        if node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
        elif name.endswith("_") and not name.endswith("__"):
            home: Any = Tensor if node.op == "call_method" else torch
            plain = getattr(home, name[:-1], None)
            if plain is not None:
                node.target = name[:-1] if node.op == "call_method" else plain
    model.recompile()


def _require_alive(model: fx.GraphModule, observed: dict[fx.Node, Observed]) -> None:
    (output,) = model.graph.find_nodes(op="output")
    if observed[output].state is not State.LIVE:
        raise ValueError(
            "at least one path from the input to the output must be live, but the scaling factors "
            "have cut all: train again from the start with a lower penalty"
        )


@dataclass(frozen=True)
class _Join:
    """A live sum or concatenation, whose node keeps only its live inputs.

    Args:
        factors: those of the live inputs.
        keep: for each channel before, along the dimension of a concatenation, whether it is live.
        widths: channels of the live inputs of a concatenation.
        gaps: the dead channels in front of each live input, and behind the last.
    """

    factors: list[float]
    keep: Tensor
    widths: list[int]
    gaps: list[int]


class _Pruning:
    """Rewrites the graph of a model with scaled sums and concatenations.

    Args:
        model: the traced model, changed in place.
        observed: what its nodes gave on an example.
    """

    def __init__(self, model: fx.GraphModule, observed: dict[fx.Node, Observed]) -> None:
        self.model, self.graph, self.observed = model, model.graph, observed
        self.joins: dict[fx.Node, _Join] = {}

    def cut(self) -> None:
        """Take inputs that are 0 out of live sums and concatenations, and erase what is dead."""
        for node in _scaled_nodes(self.model):
            if self.observed[node].state is not State.CUT:
                self._cut_inputs(node)
        settled = [node for node, value in self.observed.items() if value.value is not None]
        for node in settled:
            users = [user for user in node.users if user not in set(settled)]
            if users:
                constant = self._constant(node)
                for user in users:
                    user.replace_input_with(node, constant)
        self._erase_dead()

    def _cut_inputs(self, node: fx.Node) -> None:
        scaled = module_of(self.model, node)
        assert isinstance(scaled, ScaledSum)
        live, factors, keep, widths, gaps = [], [], [], [], [0]
        for x, factor in zip(node.args, scaled.factors.tolist(), strict=True):
            assert isinstance(x, fx.Node)
            alive = factor != 0 and not self.observed[x].is_zero
            width = self.observed[x].shape[scaled.dim] if isinstance(scaled, ScaledConcat) else 0
            keep += [alive] * width
            if alive:
                live.append(x)
                factors.append(factor)
                widths.append(width)
                gaps.append(0)
            else:
                gaps[-1] += width
        node.args = tuple(live)
        self.joins[node] = _Join(factors, torch.tensor(keep, dtype=torch.bool), widths, gaps)

    def _constant(self, node: fx.Node) -> fx.Node:
        """A node that gives what a cut node always gives, for any batch size."""
        value = self.observed[node].value
        assert value is not None
        shape: list[Any] = list(value.shape)
        for dim in range(value.ndim):
            first = value.narrow(dim, 0, 1) if value.shape[dim] else value
            value = first if bool((value == first).all()) else value
        name = f"constant_{node.name}"
        self.model.register_buffer(name, value.clone())
        batch = self.graph.find_nodes(op="placeholder")[0]
        with self.graph.inserting_before(node):
            constant = self.graph.get_attr(name)
            sizes = self.observed[batch].shape if batch in self.observed else ()
            if sizes and shape and shape[0] == sizes[0] and value.shape[0] == 1:
                shape[0] = self.graph.call_method("size", (batch, 0))
            return self.graph.call_method("expand", (constant, *shape))

    def _erase_dead(self) -> None:
        """Erase what the output does not need; checks of the inputs and side effects stay."""

        def has_effect(node: fx.Node) -> bool:
            overwrites = node.op == "call_method" and str(node.target).endswith("_")
            if "_assert" in getattr(node.target, "__name__", ""):
                return self._reads_inputs_only(node)
            return node.op in ("placeholder", "output") or overwrites or _sets_item(node)

        self.graph.eliminate_dead_code(has_effect)

    def _reads_inputs_only(self, node: fx.Node) -> bool:
        return all(
            x.op == "placeholder" or (x not in self.observed and self._reads_inputs_only(x))
            for x in node.all_input_nodes
        )

    def join(self) -> None:
        """Write sums and concatenations plainly; layers beside them absorb what they can."""
        for node in _scaled_nodes(self.model):
            with self.graph.inserting_before(node):
                concatenates = isinstance(module_of(self.model, node), ScaledConcat)
                new = self._concatenated(node) if concatenates else self._summed(node)
            node.replace_all_uses_with(new)
            self.graph.erase_node(node)
        self.graph.lint()

    def _summed(self, node: fx.Node) -> fx.Node:
        factors: dict[fx.Node, float] = {}
        for x, factor in zip(node.args, self.joins[node].factors, strict=True):
            assert isinstance(x, fx.Node)
            factors[x] = factors.get(x, 0.0) + factor
        terms = [self._times(x, self._left(x, factor)) for x, factor in factors.items()]
        return reduce(lambda a, b: self.graph.call_function(operator.add, (a, b)), terms)

    def _left(self, x: fx.Node, factor: float) -> float:
        """What is left of a factor after the layer that gives ``x`` has absorbed what it can."""
        return 1.0 if factor == 1 or scale_output(self.model, x, factor) else factor

    def _times(self, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1 else self.graph.call_function(operator.mul, (x, factor))

    def _concatenated(self, node: fx.Node) -> fx.Node:
        scaled, join = module_of(self.model, node), self.joins[node]
        assert isinstance(scaled, ScaledConcat)
        inputs: list[Any] = list(node.args)
        shape, dim, gaps = self.observed[node].shape, scaled.dim, join.gaps
        dropper = ChannelDropper(self.model, self.observed)
        if any(gaps) and dim == 1 and dropper.drop(node, join.keep):
            gaps = [0] * len(gaps)
        left = [
            self._left(x, factor) if inputs.count(x) == 1 else factor
            for x, factor in zip(inputs, join.factors, strict=True)
        ]
        if dim == 1 and set(left) != {1.0}:
            vector = _spread(left, join.widths, gaps).to(scaled.factors)
            if scale_inputs(self.model, node, vector, len(shape)):
                left = [1.0] * len(left)
        parts = [self._times(x, factor) for x, factor in zip(inputs, left, strict=True)]
        parts = [self._padded(x, i, gaps, len(shape) - 1 - dim) for i, x in enumerate(parts)]
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
    return torch.tensor(values)


def _sets_item(node: fx.Node) -> bool:
    return node.target is operator.setitem
