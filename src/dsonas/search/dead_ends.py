"""Combinations of choices in which something computes for nobody, or nothing for anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dsonas.cost import Candidate
from dsonas.sparse import (
    LayerChoice,
    Zero,
    arguments,
    bad_example,
    choices_of,
    copied,
    leaves_of,
)


def find_dead_end(
    model: nn.Module, structure: Mapping[str, Sequence[str]], example: Any
) -> frozenset[Candidate] | None:
    """Find a candidate that nothing reaches or nothing reads, because of ``Zero`` around it.

    A copy of the model, without biases and what normalisations have seen, gets the example, in
    which real numbers and pixels (uint8) that are all 0 become random, and so does what stands for
    padding. Then exactly the factors of such candidates have no gradient, and where nothing comes
    through at all the outputs are 0. No random state changes.

    Returns:
        That candidate, if there is one, and all of the ``structure`` that are ``Zero``, by label
        and name; None: there is no dead end, or it cannot be told, for no factor of the whole model
        is felt either.

    Raises:
        ValueError: if the model cannot run on the example.

    Example:
        >>> names = lambda: {"fc": nn.Linear(2, 2), "none": Zero()}
        >>> model = nn.Sequential(*(LayerChoice(names(), label=label) for label in "ab"))
        >>> sorted(find_dead_end(model, {"a": ["fc"], "b": ["none"]}, torch.zeros(4, 2)))
        [('a', 'fc'), ('b', 'none')]
        >>> find_dead_end(model, {"a": ["fc"], "b": ["fc"]}, torch.zeros(4, 2))
    """
    layers = _layers(model)
    kept = [(label, name) for label in layers for name in structure[label]]
    zeros = {(label, name) for label, name in kept if isinstance(layers[label][name], Zero)}
    if not zeros:
        return None
    felt, speaks = _run(model, structure, example)
    dead = [key for key, is_felt in felt.items() if not is_felt and key not in zeros]
    if speaks and not dead:
        return None
    whole = {label: layer.live for label, layer in layers.items()}
    if not any(felt.values()) and not any(_run(model, whole, example)[0].values()):
        return None
    return frozenset({*dead[:1], *(zeros & felt.keys())})


def _layers(model: nn.Module) -> dict[str, LayerChoice]:
    """The choices among layers, by label."""
    choices = {label: places[0][1] for label, places in choices_of(model).items()}
    return {label: found for label, found in choices.items() if isinstance(found, LayerChoice)}


def _run(
    model: nn.Module, structure: Mapping[str, Sequence[str]], example: Any
) -> tuple[dict[Candidate, bool], bool]:
    """For the candidates that stay whether outputs depend on their factors; whether any is not 0.

    What stays in a candidate that goes is not among them.
    """
    model = _unbiased(model, structure)
    layers = _layers(model)
    device = next(iter(layers.values())).factors.device
    generator = torch.Generator().manual_seed(0)

    def fill(x: Any) -> Any:
        if isinstance(x, Tensor) and not x.any():
            if x.is_floating_point():
                return torch.randn(x.shape, generator=generator).to(device, x.dtype)
            if x.dtype == torch.uint8:
                return torch.randint(256, x.shape, generator=generator).to(device, x.dtype)
        return x.to(device) if isinstance(x, Tensor) else x

    # recurrent layers of cuDNN have no way back in evaluation
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        args, kwargs = tree_map(fill, arguments(model, example))
        try:
            given = model(*args, **kwargs)
        except (RuntimeError, IndexError) as error:
            raise bad_example(error) from error
        outputs = [y for y in leaves_of(given) if isinstance(y, Tensor)]
        torch.autograd.backward(
            [y.sin().sum() for y in outputs if y.is_floating_point() and y.requires_grad]
        )
    felt = {
        (label, name): gradient != 0
        for label, layer in layers.items()
        for name, gradient in zip(layer.names, _gradient(layer.factors), strict=True)
        if name in layer.live
    }
    return felt, any(bool(y.any()) for y in outputs)


def _gradient(factors: Tensor) -> list[float]:
    return (torch.zeros_like(factors) if factors.grad is None else factors.grad).tolist()


def _unbiased(model: nn.Module, structure: Mapping[str, Sequence[str]]) -> nn.Module:
    """A copy of a model with what stays alone, without biases and what normalisations have seen."""
    model = copied(model).eval().requires_grad_(False)
    for label, places in choices_of(model).items():
        for _, choice in places:
            if isinstance(choice, LayerChoice):
                choice.drop([name for name in choice.names if name not in structure[label]])
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.rpartition(".")[2] in ("bias", "running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1)
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            row = part.weight[part.padding_idx]
            row.copy_(torch.randn(row.shape, generator=generator))
    for layer in _layers(model).values():
        layer.factors.fill_(1).requires_grad_()
    return model
