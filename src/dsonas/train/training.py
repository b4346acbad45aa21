"""Step 3: train the derived network, and measure it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas._utils import (
    BatchSize,
    HalfOpenUnit,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_settings,
    derive_seed,
)
from dsonas.data import Batches
from dsonas.nn import Network
from dsonas.train.engine import Engine
from dsonas.train.loop import Row
from dsonas.train.optimizers import restore, set_lr, sgd
from dsonas.train.schedules import Schedule, cosine, cosine_restarts, linear
from dsonas.train.steps import backward

MEASUREMENTS = 10  # of the test error in a training, about


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Step 3.

    Args:
        epochs: passes over all training images, >= 1.
        batch_size: images, >= 2.
        lr: largest learning rate of Nesterov SGD with momentum 0.9, > 0.
        schedule: of the learning rate: ``cosine`` rises for an epoch and falls to 0; ``restarts``
            (paper, CIFAR) falls to ``lr`` / 500 in 10, 20, 40, ... epochs; ``linear`` (paper,
            ImageNet) rises from ``lr`` / 5 for 5 epochs and falls to 0.
        weight_decay: >= 0.
        label_smoothing: in [0, 1).
        auxiliary: weight of the auxiliary head's loss, >= 0; 0 builds none.
        drop_path: probability of dropping a branch of the last block at the end, in [0, 1).
        dropout: probability of dropping a feature before the classifier, in [0, 1).

    Example:
        >>> learning_rate = TrainConfig(epochs=2).learning_rate(steps_per_epoch=4)
        >>> [round(learning_rate(step), 3) for step in (0, 3, 7)]
        [0.025, 0.1, 0.0]
    """

    epochs: PositiveInt = 100
    batch_size: BatchSize = 128
    lr: PositiveFloat = 0.1
    schedule: Literal["cosine", "restarts", "linear"] = "cosine"
    weight_decay: NonNegativeFloat = 3e-4
    label_smoothing: HalfOpenUnit = 0.0
    auxiliary: NonNegativeFloat = 0.0
    drop_path: HalfOpenUnit = 0.0
    dropout: HalfOpenUnit = 0.0

    def __post_init__(self) -> None:
        check_settings(self, "train")

    def learning_rate(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by update number."""
        half = self.epochs / 2  # what a warm-up takes at most
        if self.schedule == "restarts":
            return cosine_restarts(
                self.lr, self.lr / 500, 10, steps_per_epoch, num_epochs=self.epochs
            )
        if self.schedule == "linear":
            warmup = round(min(5, half))
            return linear(self.lr / 5, self.lr, warmup, self.epochs, steps_per_epoch)
        warmup = round(min(1, half) * steps_per_epoch)
        return cosine(self.lr, 0.0, self.epochs * steps_per_epoch, warmup)


class Training:
    """Step 3 as a stage of the loop.

    Args:
        network: a network without scaling factors.
        train: batches of all training images.
        test: batches for measuring the error.
        config: how to train.
        engine: device and precision.
        seed: of dropout and drop path.
        measurements: about how often the test error is measured, the last epoch included; no choice
            is made by it.
    """

    name = "train"

    def __init__(
        self,
        network: Network,
        train: Batches,
        test: Batches,
        config: TrainConfig,
        engine: Engine,
        seed: int = 0,
        measurements: int = MEASUREMENTS,
    ) -> None:
        self.network, self.train, self.test = network, train, test
        self.config, self.engine, self.seed = config, engine, seed
        self.num_epochs, self.num_batches = config.epochs, len(train)
        self.measured_every = -(-config.epochs // measurements)
        self.schedule = config.learning_rate(self.num_batches)
        self.optimizer = sgd(network, config.lr, config.weight_decay, 0.9)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of all training images."""
        return self.train.epoch(epoch, start)

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """An SGD step with everything that step 3 adds."""
        images, labels = batch
        update = epoch * self.num_batches + index
        if self.config.drop_path or self.config.dropout:
            rank = self.engine.processes.world.rank  # other images, so other draws
            torch.manual_seed(derive_seed(self.seed, "drop", update, *[rank] * (rank > 0)))
        self.network.train()
        self.network.drop_path = (
            self.config.drop_path * update / (self.num_epochs * self.num_batches)
        )
        set_lr(self.optimizer, self.schedule(update))
        loss, logits = backward(self.network, self._loss, images, labels, self.engine)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, logits, labels

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        smoothing = self.config.label_smoothing
        with self.engine.autocast():
            if not self.config.auxiliary:
                logits = self.network(images)
                return F.cross_entropy(logits, labels, label_smoothing=smoothing), logits
            logits, auxiliary = self.network.forward_with_auxiliary(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            extra = F.cross_entropy(auxiliary, labels, label_smoothing=smoothing)
            return loss + self.config.auxiliary * extra, logits

    def end_epoch(self, epoch: int) -> Row:
        """The test error, if it is due."""
        due = (epoch + 1) % self.measured_every == 0 or epoch + 1 == self.num_epochs
        lr = self.schedule((epoch + 1) * self.num_batches - 1)
        return {"lr": lr, **(evaluate(self.network, self.test, self.engine) if due else {})}

    def state_dict(self) -> dict[str, Any]:
        """Weights and momenta."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.network.load_state_dict(state["network"])
        restore(self.optimizer, state["optimizer"])


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Batches, engine: Engine) -> dict[str, float]:
    """Error and loss of a network on batches, in evaluation mode.

    Several processes each take their part of every batch.

    Returns:
        ``test_error`` in percent and ``test_loss``, the mean cross entropy.
    """
    engine.processes.align(network)
    network.eval()
    loss = torch.zeros((), device=engine.device)
    errors = torch.zeros((), device=engine.device)
    images_seen = torch.zeros((), device=engine.device)
    for images, labels in batches.epoch(0):
        if not len(labels):  # too few for every process to have one
            continue
        with engine.autocast():
            logits = network(images)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        errors += (logits.argmax(1) != labels).sum()
        images_seen += len(labels)
    sums = engine.processes.sum(torch.stack([loss, errors, images_seen]))
    total_loss, total_errors, num_images = engine.scalars(*sums)
    return {"test_error": 100 * total_errors / num_images, "test_loss": total_loss / num_images}
