"""Any PyTorch model as a graph (torch.fx), and which of its values depend on its input."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dsonas.sparse.connections import ScaledSum

Leaves = tuple[type[nn.Module], ...]
_CONSTANT = "_tensor_constant"  # what torch.fx calls tensors made while tracing


def trace(model: nn.Module, example: Any, leaves: Leaves = ()) -> fx.GraphModule:
    """A model as a graph of its operations; parameters and buffers are shared with it.

    What depends on ``self.training``, such as ``F.dropout(x, training=self.training)``, follows
    ``train()`` and ``eval()`` of the result too, although torch.fx alone would fix it.

    Args:
        model: any module; it is left in its mode.
        example: an input, or a tuple of inputs; arguments that it lacks get their defaults.
        leaves: classes of modules to keep whole.

    Raises:
        ValueError: if torch.fx cannot follow the model; what it says and the remedy are named.

    Example:
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         return x + x.relu()
        >>> [node.op for node in trace(Residual(), torch.zeros(1)).graph.nodes]
        ['placeholder', 'call_method', 'call_function', 'output']
    """
    modes = [(module, module.training) for module in model.modules()]
    before = set(vars(model)) | set(model._buffers)
    given = _defaults(model, len(as_inputs(example)))
    try:
        training, evaluation = (_trace(model.train(mode), given, leaves) for mode in (True, False))
        for module, mode in modes:
            module.training = mode
        return fx.GraphModule(model, _merge(training, evaluation), type(model).__name__)
    finally:
        for module, mode in modes:
            module.training = mode
        for name in (set(vars(model)) | set(model._buffers)) - before:
            if name.startswith(_CONSTANT):
                delattr(model, name)


class _Tracer(fx.Tracer):
    """Remembers the module in which it was when it failed."""

    def __init__(self, leaves: Leaves) -> None:
        super().__init__()
        self.leaves = (ScaledSum, *leaves)
        self.inside: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.inside.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result


def _defaults(model: nn.Module, num_inputs: int) -> dict[str, Any]:
    """The defaults of the arguments after the first ones: what the code branches on."""
    parameters = list(signature(model.forward).parameters.values())[num_inputs:]
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def _trace(model: nn.Module, given: dict[str, Any], leaves: Leaves) -> fx.Graph:
    tracer = _Tracer(leaves)
    try:
        return tracer.trace(model, given)
    except Exception as error:  # whatever the user's forward raises when it meets a proxy
        said = str(error).strip().split("\n")[0] or type(error).__name__
        if tracer.inside:
            name = type(tracer.inside[-1]).__name__
            where, remedy = name, f"keep that part whole with leaves=({name},)"
        else:
            where = f"the forward of {type(model).__name__}"
            remedy = "move that code into a module of its own and give its class in leaves"
        raise ValueError(
            f"model must be traceable by torch.fx, but it stops in {where}: {said}; {remedy}"
        ) from error


def _merge(training: fx.Graph, evaluation: fx.Graph) -> fx.Graph:
    """The graph of training, in which arguments that differ in evaluation follow the mode."""
    pairs = list(zip(training.nodes, evaluation.nodes, strict=False))
    other = [a.name for a, b in pairs if not _is_same_call(a, b)]
    if other or len(training.nodes) != len(evaluation.nodes):
        raise ValueError(
            "model must run the same operations in training and in evaluation, but they part at "
            f"{next(iter(other), 'the end')!r}: switch such branches off (auxiliary heads, for "
            "instance), or keep the part that has them whole with leaves=(ITS_CLASS,)"
        )
    choice = _Choice(training, dict(zip(evaluation.nodes, training.nodes, strict=True)))
    for a, b in pairs:
        choice.place = a
        a.args, a.kwargs = choice(a.args, b.args), choice(a.kwargs, b.kwargs)
    training.lint()
    training._tracer_cls = None  # so that a pickle of the model does not need ours
    return training


def _is_same_call(a: fx.Node, b: fx.Node) -> bool:
    if a.op == b.op == "get_attr" and str(a.target).startswith(_CONSTANT):
        return str(b.target).startswith(_CONSTANT)
    return (a.op, a.target) == (b.op, b.target)


class _Choice:
    """Merges arguments: those that differ become ``(in evaluation, in training)[training]``."""

    def __init__(self, graph: fx.Graph, twins: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.twins = graph, twins
        self.place: fx.Node = next(iter(graph.nodes))

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


class State(Enum):
    """What a value of a graph depends on."""

    FIXED = "on parameters, constants and shapes alone"
    LIVE = "on the input of the model"
    CUT = "on the input of the model only through connections that are 0"


@dataclass(frozen=True)
class Observed:
    """What a node gave on an example: a tensor, or several.

    Args:
        shape: its shape; () for several tensors.
        state: what it depends on.
        floating: whether it holds floating-point numbers.
        value: itself, if it is cut; None for anything but a single tensor.
    """

    shape: tuple[int, ...]
    state: State
    floating: bool = True
    value: Tensor | None = None

    @property
    def is_zero(self) -> bool:
        """Whether it is cut, and 0 everywhere."""
        return self.value is not None and not bool(self.value.any())


def observe(model: fx.GraphModule, example: Any) -> dict[fx.Node, Observed]:
    """Run a graph on an example in evaluation mode and note every tensor that its nodes give.

    Args:
        model: a traced model; it is left in its mode.
        example: the input, or a tuple of inputs.
    """
    observer = _Observer(model)
    in_evaluation(model, lambda: observer.run(*as_inputs(example)))
    return observer.found


class _Observer(fx.Interpreter):
    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, Observed] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        state = State.LIVE if n.op == "placeholder" else self._state(n)
        if isinstance(result, Tensor):
            value = result.detach() if state is State.CUT else None
            shape, floating = tuple(result.shape), result.is_floating_point()
            self.found[n] = Observed(shape, state, floating, value)
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.found[n] = Observed((), state, floating=False)  # a tuple of tensors, say
        return result

    def _state(self, node: fx.Node) -> State:
        inputs = [self.found[source] for source in node.all_input_nodes if source in self.found]
        scaled = module_of(self.module, node)
        if isinstance(scaled, ScaledSum):
            fed = zip(node.args, scaled.factors.tolist(), strict=True)
            states = [self.found[x].state if factor else State.CUT for x, factor in fed]  # type: ignore[index]
        else:
            states = [value.state for value in inputs]
        product = getattr(node.target, "__name__", node.target) in ("mul", "mul_", "imul")
        if product and any(value.is_zero for value in inputs):
            return State.CUT
        if State.LIVE in states:
            return State.LIVE
        return State.CUT if State.CUT in states else State.FIXED


def module_of(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None if it calls none."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def as_inputs(example: Any) -> tuple[Any, ...]:
    """The inputs of a model as a tuple."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def in_evaluation(model: nn.Module, call: Callable[[], Any]) -> Any:
    """Call with a model in evaluation mode and without gradients; every mode is restored.

    Raises:
        ValueError: if the model cannot run on the example.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            return call()
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"example must be an input that the model can run on, but it fails: {said}; give a "
            "tensor, or a tuple of the positional arguments"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode


def require_equal(model: nn.Module, other: nn.Module, example: Any, remedy: str) -> None:
    """Check that two models give the same on an example, in evaluation mode.

    Raises:
        ValueError: if they do not, beyond rounding.
    """
    inputs = as_inputs(example)
    pairs = zip(
        tree_leaves(in_evaluation(model, lambda: model(*inputs))),
        tree_leaves(in_evaluation(other, lambda: other(*inputs))),
        strict=True,
    )
    for a, b in pairs:
        if isinstance(a, Tensor) and a.numel():
            x, y = (t.float() if t.dtype == torch.bool else t for t in (a, b))
            difference, size = float((x - y).abs().max()), max(1.0, float(x.abs().max()))
            rounding = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
            if not difference <= min(1e3 * rounding, 0.05) * size:
                raise ValueError(
                    f"outputs must stay equal, but differ by {difference:.3g}: {remedy}"
                )
