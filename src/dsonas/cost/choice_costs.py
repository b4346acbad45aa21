"""What a model with choices costs, for every combination of what may be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from dsonas.sparse import (
    BATCH_NORM_RANKS,
    Choice,
    Features,
    LayerChoice,
    Zero,
    arguments,
    bad_example,
    choices_of,
    copied,
)

Candidate = tuple[str, str]
"""A label and the name of a candidate."""
Context = frozenset[Candidate]
"""Candidates all of which must be there."""
Chosen = Mapping[str, Sequence[str]]
"""The names that are left, by label."""


class Item(NamedTuple):
    """A part of the cost."""

    amount: float  # what it costs
    contexts: tuple[Context, ...]  # it is there if all candidates of any of them are

    def is_in(self, chosen: Chosen) -> bool:
        """Whether a combination has this part."""
        return any(
            all(name in chosen.get(label, ()) for label, name in context)
            for context in self.contexts
        )


@dataclass
class ChoiceCosts:
    """The cost of a model with choices, as a sum of parts."""

    # by measure, ``macs`` and ``params``
    parts: dict[str, list[Item]] = field(default_factory=dict)
    # what the candidates of every place give, by its name in the model
    features: dict[str, dict[str, Features]] = field(default_factory=dict)

    def cost(self, chosen: Chosen, measure: str = "macs") -> float:
        """Compute the cost of a combination: ``macs`` of a call with the example, or ``params``."""
        return float(sum(item.amount for item in self.parts[measure] if item.is_in(chosen)))


def count_choices(model: nn.Module, example: Any) -> ChoiceCosts:
    """Count the cost of a model with choices, for all combinations at once.

    The model runs once, on the meta device if it can, with all candidates; every multiply-add is
    told to the candidates it happens in. Batch normalisations that ``LayerChoice`` puts after
    candidates count as parameters, for they stay in the final network.

    ``macs`` are those of one call with the example.

    Raises:
        ValueError: if the model cannot run on the example.

    Example:
        >>> model = nn.Sequential(LayerChoice([nn.Linear(8, 8), nn.Identity()], label="x"))
        >>> costs = count_choices(model, torch.zeros(1, 8))
        >>> costs.cost({"x": ["0"]}), costs.cost({"x": ["1"]})
        (64.0, 0.0)
    """
    given = arguments(model, example)
    try:
        found = _run(copied(model).to("meta"), *tree_map(_to_meta, given))
    except RuntimeError:  # it reads values, or makes tensors on a device
        try:
            found = _run(copied(model), *given)
        except (RuntimeError, IndexError) as error:
            raise bad_example(error) from error
    found.parts["params"] = list(_parameters(model, found.features))
    return found


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _run(replica: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChoiceCosts:
    """Count the multiply-adds of one call of a model, which is thrown away afterwards."""
    counter, found = _Counter(), ChoiceCosts()
    _track(replica, counter, found.features)
    with torch.no_grad(), counter:
        replica.eval()(*args, **kwargs)
    found.parts["macs"] = [Item(n // 2, (context,)) for context, n in counter.flops.items()]
    return found


class _Counter(TorchDispatchMode):
    """Adds up the flops of every set of candidates that a call happens in."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[Context, int] = {}
        self.stack: list[Candidate] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            context = frozenset(self.stack)
            count = flop_registry[packet](*args, **kwargs, out_val=result)
            self.flops[context] = self.flops.get(context, 0) + count
        return result


class _Tracked(nn.Module):
    """A candidate that says when it runs."""

    def __init__(
        self, module: nn.Module, candidate: Candidate, counter: _Counter, note: Callable
    ) -> None:
        super().__init__()
        self.module, self.candidate, self.counter, self.note = module, candidate, counter, note

    def forward(self, x: Tensor) -> Tensor:
        self.counter.stack.append(self.candidate)
        try:
            y = self.module(x)
        finally:
            self.counter.stack.pop()
        self.note(Features.of(y, self.candidate[1]))
        return y


def _track(model: nn.Module, counter: _Counter, features: dict[str, dict[str, Features]]) -> None:
    """Let every candidate of a model, which is thrown away afterwards, say when it runs."""
    for label, places in choices_of(model).items():
        for place, choice in places:
            if not isinstance(choice, LayerChoice):
                continue
            known = features.setdefault(place, {})
            for name in choice.live:
                if not isinstance(choice[name], Zero):
                    note = partial(known.__setitem__, name)
                    choice.replace(name, _Tracked(choice[name], (label, name), counter, note))


def _parameters(model: nn.Module, features: Mapping[str, Mapping[str, Features]]) -> Iterator[Item]:
    """The parameters of the final networks, factors not counted.

    Gamma and beta of the batch normalisations that come after candidates are among them.
    """
    owners: dict[object, tuple[int, list[Context]]] = {}
    found = choices_of(model).items()
    places = {id(choice): (label, place) for label, some in found for place, choice in some}

    def own(key: object, amount: int, context: Context) -> None:
        owners.setdefault(key, (amount, []))[1].append(context)

    def walk(module: nn.Module, context: Context) -> None:
        if not isinstance(module, LayerChoice):
            for parameter in module._parameters.values():
                if parameter is not None and not isinstance(module, Choice):
                    own(id(parameter), parameter.numel(), context)
            for child in module.children():
                walk(child, context)
            return
        label, place = places[id(module)]
        for name in module.live:
            inner = context | {(label, name)}
            known = features.get(place, {}).get(name)
            if module.normalise and known is not None and known.rank in BATCH_NORM_RANKS:
                own((id(module), name), 2 * (known.channels or 0), inner)
            walk(module[name], inner)

    walk(model, frozenset())
    for amount, contexts in owners.values():
        yield Item(amount, tuple(dict.fromkeys(contexts)))
