"""SGD over a network's weights, as the paper's code sets it."""

from __future__ import annotations

import torch

from dsonas.network import Network


def sgd(network: Network, lr: float, weight_decay: float, momentum: float) -> torch.optim.SGD:
    """Nesterov SGD; decay is for convolution and linear weights alone (as the paper's code)."""
    weights = list(network.weights())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
