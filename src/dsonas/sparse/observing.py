"""What the values of a traced model are on an example, and which of them depend on its input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from dsonas.sparse.connections import ScaledSum
from dsonas.sparse.recording import arguments, bad_example, writes
from dsonas.sparse.tracing import untouched


class State(Enum):
    """What a value of a graph depends on."""

    FIXED = "on parameters, constants and shapes alone"
    LIVE = "on the input of the model"
    CUT = "on the input of the model only through connections that are 0"


@dataclass(frozen=True)
class Observed:
    """What a node gave on an example: a tensor, or several."""

    shape: tuple[int, ...]  # its shape; () for several tensors
    state: State  # what it depends on
    dtype: torch.dtype | None = None  # of its numbers; None for several tensors
    value: Tensor | None = None  # itself, if it is cut; None for anything but a single tensor

    @property
    def is_zero(self) -> bool:
        """Whether it is cut, and 0 everywhere."""
        return self.value is not None and not bool(self.value.any())

    @property
    def is_feature(self) -> bool:
        """Whether it is a tensor of floating-point numbers that depends on the input."""
        return self.state is State.LIVE and self.dtype is not None and self.dtype.is_floating_point


def observe(model: fx.GraphModule, example: Any) -> dict[fx.Node, Observed]:
    """Run a graph on an example in evaluation mode and note every tensor that its nodes give."""
    return observe_inputs(model, placed(model, example))


def observe_inputs(model: fx.GraphModule, inputs: list[Any]) -> dict[fx.Node, Observed]:
    """Observe a graph on the values of its inputs, which are not overwritten."""
    observer = _Observer(model)
    copies = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
    in_evaluation(model, lambda: observer.run(*copies))
    return observer.found


def placed(model: fx.GraphModule, example: Any) -> list[Any]:
    """The inputs of an example in the order of a graph's inputs."""
    args, kwargs = arguments(model, example)
    left = iter(args)
    nodes = model.graph.find_nodes(op="placeholder")
    default = [node.args[0] if node.args else None for node in nodes]
    return [
        kwargs[node.target] if node.target in kwargs else next(left, value)
        for node, value in zip(nodes, default, strict=True)
    ]


class _Observer(fx.Interpreter):
    """Runs a graph and notes what its nodes give."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, Observed] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note what it gives."""
        result = super().run_node(n)
        state = State.LIVE if n.op == "placeholder" else self._state(n)
        if isinstance(result, Tensor):
            value = result.detach() if state is State.CUT else None
            self.found[n] = Observed(tuple(result.shape), state, result.dtype, value)
        elif any(isinstance(leaf, Tensor) for leaf in leaves_of(result)) or n.op == "output":
            self.found[n] = Observed((), state)  # a tuple of tensors, say
        if writes(n):
            self._note_written(n, state)
        return result

    def _note_written(self, node: fx.Node, state: State) -> None:
        """What is overwritten, and what it may be a view of, depends on what has been written."""
        base = node.args[0] if node.args else None
        while isinstance(base, fx.Node) and base in self.found:
            before = self.found[base]
            self.found[base] = replace(before, state=joined([before.state, state]), value=None)
            base = base.args[0] if base.op in ("call_function", "call_method") else None

    def _state(self, node: fx.Node) -> State:
        inputs = [self.found[source] for source in node.all_input_nodes if source in self.found]
        scaled = module_of(self.module, node)
        if isinstance(scaled, ScaledSum):
            fed = zip(node.args, scaled.factors.tolist(), strict=True)
            states = [self.found[x].state if factor else State.CUT for x, factor in fed]  # type: ignore[index]
        else:
            states = [value.state for value in inputs]
        if is_product(node) and any(value.is_zero for value in inputs):
            return State.CUT
        return joined(states)


def joined(states: list[State]) -> State:
    """What depends on several values."""
    return next((state for state in (State.LIVE, State.CUT) if state in states), State.FIXED)


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies elementwise."""
    name = getattr(node.target, "__name__", node.target)
    return name in ("mul", "mul_", "imul", "multiply")


def module_of(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None if it calls none."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def in_evaluation(model: nn.Module, call: Callable[[], Any]) -> Any:
    """Call with a model in evaluation mode and without gradients; the model stays as it is.

    A ValueError if it cannot run on the example.
    """
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            return call()
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        raise bad_example(error) from error


def _run(model: nn.Module, example: Any, seed: int) -> list[Any]:
    """What a model gives in evaluation mode, tensor by tensor; the model stays as it is."""
    args, kwargs = arguments(model, example)

    def call() -> Any:
        torch.manual_seed(seed)
        return model(*args, **kwargs)

    return leaves_of(in_evaluation(model, call))


def leaves_of(output: Any) -> list[Any]:
    """What a model gives, tensor by tensor, also of classes that torch does not know."""
    if isinstance(output, dict):
        return tree_leaves(dict(output))
    return tree_leaves(vars(output) if is_dataclass(output) else output)


def require_equal(model: nn.Module, other: nn.Module, example: Any, remedy: str) -> None:
    """Check that two models give the same on an example, in evaluation mode.

    Raises:
        ValueError: if they do not, beyond rounding.

    Warns:
        UserWarning: if what they give is random, so that it cannot be compared.
    """
    pairs = list(zip(_run(model, example, 0), _run(other, example, 0), strict=True))
    difference = max((_difference(a, b) for a, b in pairs), default=0.0)
    if difference <= 1:
        return
    again = _run(model, example, 1)
    if any(_difference(a, b) > 1 for (a, _), b in zip(pairs, again, strict=True)):
        warnings.warn("outputs are random: equality was not checked", stacklevel=3)
        return
    raise ValueError(
        f"outputs must stay equal, but differ by {difference:.3g} times what rounding may do: "
        f"{remedy}"
    )


def _difference(a: Any, b: Any) -> float:
    """The largest difference of two tensors in units of what rounding may do."""
    if not isinstance(a, Tensor) or not a.numel():
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    x, y = (t[~same].to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    finite = a[a.isfinite()].abs()
    size = max(1.0, float(finite.max()) if finite.numel() else 1.0)
    rounding = torch.finfo(a.dtype).eps if a.is_floating_point() or a.is_complex() else 0.0
    allowed = max(1e-30, min(1e3 * rounding, 0.05)) * size
    return torch.nan_to_num((x - y).abs().max() / allowed, nan=float("inf")).item()
