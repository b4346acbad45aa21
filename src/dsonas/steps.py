"""One optimisation step of the weights or of the scaling factors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsonas.network import Network
from dsonas.proximal import ProximalNAG


def weight_step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Update the weights on one batch; scaling factors get no gradient.

    Args:
        network: a supernet in training mode.
        optimizer: of ``network.weights()``.
        images: (B, C, H, W), normalised.
        labels: (B,) class numbers.
        clip: gradients are clipped to [-clip, clip] elementwise; None does not clip.

    Returns:
        The mean cross entropy and the logits (B, classes), both detached, still on the device.
    """
    network.train_only("weights")
    loss, logits = _backward(network, images, labels)
    if clip is not None:
        torch.nn.utils.clip_grad_value_(network.weights(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss, logits


def factor_step(
    network: Network, optimizer: ProximalNAG, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Update the scaling factors on one batch; weights get no gradient. See ``weight_step``."""
    network.train_only("factors")
    loss, logits = _backward(network, images, labels)
    optimizer.step()
    optimizer.zero_grad()
    return loss, logits


def _backward(network: Network, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return loss.detach(), logits.detach()
