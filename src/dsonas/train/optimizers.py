"""SGD over a network's weights, as the paper's code sets it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def sgd(
    weights: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float
) -> torch.optim.SGD:
    """Nesterov SGD; decay is for convolution and linear weights alone (as the paper's code).

    All weights of a group are stepped in one call where torch can: a supernet has hundreds.
    """
    weights = list(weights)
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load into a fresh optimizer what ``state_dict()`` gave, after checks that torch leaves out.

    A ValueError if a momentum has not the shape of its parameter, or a value is of a kind that no
    optimizer keeps.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group, fresh in zip(
        state["param_groups"], optimizer.state_dict()["param_groups"], strict=True
    ):
        if group.keys() != fresh.keys() or group["params"] != fresh["params"]:
            raise ValueError("the groups of parameters are others")
        for name in group.keys() - {"params"}:
            _check_kind(name, group[name], [parameters[i].shape for i in fresh["params"]])
    for index, values in state["state"].items():
        for name, value in values.items():
            _check_kind(f"{name} of parameter {index}", value, [parameters[index].shape])
    optimizer.load_state_dict(dict(state))
    for group in optimizer.param_groups:  # torch leaves these tensors where they were saved
        for name, value in group.items():
            if isinstance(value, Tensor):
                group[name] = value.to(group["params"][0].device)


def _check_kind(name: str, value: Any, shapes: list[torch.Size]) -> None:
    if isinstance(value, Tensor):
        if any(value.shape != shape for shape in shapes) or not value.is_floating_point():
            raise ValueError(
                f"{name} must be of shape {tuple(shapes[0])}, got {tuple(value.shape)}"
            )
    elif not isinstance(value, int | float | None):
        raise ValueError(f"{name} must be a number, got {value!r:.50}")
