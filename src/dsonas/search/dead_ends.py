"""Combinations of choices in which something computes for nobody."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dsonas._utils import mask_like
from dsonas.cost import Candidate
from dsonas.sparse import LayerChoice, Zero, choices_of


def find_dead_end(
    model: nn.Module, structure: Mapping[str, Sequence[str]], example: Any
) -> frozenset[Candidate] | None:
    """Find a candidate that nothing reaches or nothing reads, because of ``Zero`` around it.

    A copy of the model, without biases and what normalisations have seen, gets the example: then
    exactly the factors of such candidates have no gradient. No random state changes.

    Args:
        model: with ``LayerChoice``.
        structure: the names that stay, by label; the model has them.
        example: an input, or a tuple of inputs; real numbers that are all 0 become random.

    Returns:
        That candidate and all that are ``Zero``, by label and name; None: there is none, or it
        cannot be told, for no factor of the whole model is felt either.

    Example:
        >>> names = lambda: {"fc": nn.Linear(2, 2), "none": Zero()}
        >>> model = nn.Sequential(*(LayerChoice(names(), label=label) for label in "ab"))
        >>> sorted(find_dead_end(model, {"a": ["fc"], "b": ["none"]}, torch.zeros(4, 2)))
        [('a', 'fc'), ('b', 'none')]
        >>> find_dead_end(model, {"a": ["fc"], "b": ["fc"]}, torch.zeros(4, 2))
    """
    layers = {
        label: places[0][1]
        for label, places in choices_of(model).items()
        if isinstance(places[0][1], LayerChoice)
    }
    kept = [(label, name) for label in layers for name in structure[label]]
    zeros = {(label, name) for label, name in kept if isinstance(layers[label][name], Zero)}
    if not zeros:
        return None
    felt = _felt(copy.deepcopy(model), structure, example)
    dead = [key for key in kept if key not in felt and key not in zeros]
    whole = {label: layer.live for label, layer in layers.items()}
    if not dead or not (felt or _felt(copy.deepcopy(model), whole, example)):
        return None
    return frozenset({dead[0], *zeros})


def _felt(model: nn.Module, structure: Mapping[str, Sequence[str]], example: Any) -> set[Candidate]:
    """The candidates whose factors the outputs depend on; the model is used up."""
    model.eval().requires_grad_(False)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.rpartition(".")[2] in ("bias", "running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1)
    factors = {label: places[0][1] for label, places in choices_of(model).items()}
    for label, choice in factors.items():
        flags = [name in structure.get(label, choice.live) for name in choice.names]
        choice.factors.copy_(mask_like(flags, choice.factors))
        choice.factors.requires_grad_()
    device = next(iter(factors.values())).factors.device
    generator = torch.Generator().manual_seed(0)

    def fill(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point() and not x.any():
            return torch.randn(x.shape, generator=generator).to(device, x.dtype)
        return x.to(device) if isinstance(x, Tensor) else x

    with torch.enable_grad():
        outputs = model(*tree_map(fill, example if isinstance(example, tuple) else (example,)))
        real = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
        sum(y.sin().sum() for y in real).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return {
        (label, name)
        for label, choice in factors.items()
        if choice.factors.grad is not None
        for name, gradient in zip(choice.names, choice.factors.grad.tolist(), strict=True)
        if gradient != 0
    }
