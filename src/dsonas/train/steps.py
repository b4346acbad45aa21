"""One optimisation step of the weights or of the scaling factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.nn import ScaledModule
from dsonas.train.engine import Engine


def weight_step(
    network: ScaledModule,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    clip: float | None = None,
    engine: Engine | None = None,
) -> tuple[Tensor, Tensor]:
    """Update the weights of a supernet in training mode; scaling factors get no gradient.

    Args:
        network, optimizer: the supernet, and that of its weights.
        images, labels: (B, C, H, W), normalised; (B,) class numbers.
        clip: gradients are clipped to [-clip, clip] elementwise; None does not clip.
        engine: knows the processes that share a batch, and in how many parts to take it; None: one
            process, and the whole batch at once.

    Returns the mean cross entropy and the logits (B, classes), both detached, still on the device.
    """
    network.train_only("weights")
    loss, logits = _backward("weights", network, images, labels, engine)
    if clip is not None:
        torch.nn.utils.clip_grad_value_(network.weights(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss, logits


def factor_gradients(
    network: ScaledModule, images: Tensor, labels: Tensor, *, engine: Engine | None = None
) -> tuple[Tensor, Tensor]:
    """Leave in the scaling factors their gradients on one batch; weights get none.

    Those of several processes are not averaged yet. See ``weight_step``.
    """
    network.train_only("factors")
    return _backward("factors", network, images, labels, engine)


def _backward(
    part: str, network: ScaledModule, images: Tensor, labels: Tensor, engine: Engine | None
) -> tuple[Tensor, Tensor]:
    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(images)
        return F.cross_entropy(logits, labels), logits

    def passes(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return backward(network, loss_of, images, labels, engine, average=part == "weights")

    if engine is None or engine.graphs is None:
        return passes(images, labels)
    return engine.graphs.run(part, network, passes, images, labels)


def backward(
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    engine: Engine | None = None,
    *,
    average: bool = True,
) -> tuple[Tensor, Tensor]:
    """Leave in the parameters the gradients of the mean loss over a batch.

    ``loss_of`` gives the mean loss and the logits of images and labels; ``average``: those of
    several processes are averaged. Returns both for this process, as ``weight_step`` does.
    """
    losses, logits = [], []
    parts = engine.accumulate if engine else 1
    for some, answers in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        loss, outputs = loss_of(some, answers)
        loss = loss * (len(answers) / len(labels))
        loss.backward()
        losses.append(loss.detach())
        logits.append(outputs.detach())
    if engine and average:
        engine.processes.average([p.grad for p in network.parameters() if p.grad is not None])
    return torch.stack(losses).sum(), torch.cat(logits)
