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
        patience: end after so many epochs without a lower error on the validation part
            (``data.val``), > 0. None: never.

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
    patience: PositiveInt | None = None

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
        network: a network without scaling factors; any module of images to logits, unless
            ``config`` asks for an auxiliary head, drop path or dropout.
        train, test: batches of all training images, and for measuring the error.
        config, engine: how to train; device and precision.
        seed: of what the network draws, such as dropout.
        measurements: about how often the test error is measured; no choice is made by it.
        val: batches by which the best epoch is chosen, see ``keep_best``.
    """

    name = "train"

    def __init__(
        self,
        network: nn.Module,
        train: Batches,
        test: Batches,
        config: TrainConfig,
        engine: Engine,
        seed: int = 0,
        measurements: int = MEASUREMENTS,
        val: Batches | None = None,
    ) -> None:
        self.network, self.train, self.test, self.val = network, train, test, val
        self.config, self.engine, self.seed = config, engine, seed
        self.num_epochs, self.num_batches = config.epochs, len(train)
        self.measured_every = -(-config.epochs // measurements)
        self.schedule = config.learning_rate(self.num_batches)
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = sgd(weights, config.lr, config.weight_decay, 0.9)
        self.best: dict[str, Any] = {}

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of all training images."""
        return self.train.epoch(epoch, start)

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """An SGD step with everything that step 3 adds."""
        images, labels = batch
        update = epoch * self.num_batches + index
        self.engine.seed_step(self.seed, "drop", update)
        self.network.train()
        if isinstance(self.network, Network):
            self.network.drop_path = (
                self.config.drop_path * update / (self.config.epochs * self.num_batches)
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
            assert isinstance(self.network, Network)
            logits, auxiliary = self.network.forward_with_auxiliary(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            extra = F.cross_entropy(auxiliary, labels, label_smoothing=smoothing)
            return loss + self.config.auxiliary * extra, logits

    def end_epoch(self, epoch: int) -> Row:
        """The error on the validation part; that on the test part, if it is due."""
        row: Row = {"lr": self.schedule((epoch + 1) * self.num_batches - 1)}
        if self.val is not None:
            found = classify(self.network, self.val, self.engine)
            row |= {"val_error": found.error, "val_loss": found.loss}
            self._compare(epoch, (found.error, found.loss))
        if (epoch + 1) % self.measured_every == 0 or epoch + 1 == self.num_epochs:
            row |= evaluate(self.network, self.test, self.engine)
        return row

    def _compare(self, epoch: int, found: tuple[float, float]) -> None:
        """Keep a copy of the weights if they are the best so far; end if patience does."""
        if not self.best or found < (self.best["error"], self.best["loss"]):
            weights = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.best = {"epoch": epoch, "error": found[0], "loss": found[1], "network": weights}
        elif self.config.patience and epoch - self.best["epoch"] >= self.config.patience:
            self.num_epochs = epoch + 1

    def keep_best(self) -> dict[str, float]:
        """Give the network the weights of the epoch of least error on the validation part.

        Returns ``best_epoch``, from 1, and ``val_error`` in percent; nothing without that part.
        """
        if not self.best:
            return {}
        self.network.load_state_dict(self.best["network"])
        return {"best_epoch": self.best["epoch"] + 1, "val_error": self.best["error"]}

    def state_dict(self) -> dict[str, Any]:
        """Weights and momenta; with a validation part, the best weights so far."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**state, "best": self.best, "num_epochs": self.num_epochs} if self.best else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.network.load_state_dict(state["network"])
        restore(self.optimizer, state["optimizer"])
        if best := state.get("best"):
            wanted = {name: value.shape for name, value in self.network.state_dict().items()}
            if {name: value.shape for name, value in best["network"].items()} != wanted:
                raise ValueError("the best weights so far are of another network")
            self.best, self.num_epochs = best, int(state["num_epochs"])


@dataclass(frozen=True)
class Outcome:
    """What a network makes of images, in their order."""

    labels: Tensor  # int64 tensor, the true class of each
    predicted: Tensor  # int64 tensor, the most probable class of each
    probability: Tensor  # float tensor, of that class, in [0, 1]
    loss: float  # mean cross entropy

    @property
    def error(self) -> float:
        """Share of wrong answers in percent."""
        return 100 * int((self.predicted != self.labels).sum()) / len(self.labels)


def evaluate(network: nn.Module, batches: Batches, engine: Engine) -> dict[str, float]:
    """``test_error`` in percent and ``test_loss``, the mean cross entropy; see ``classify``."""
    found = classify(network, batches, engine)
    return {"test_error": found.error, "test_loss": found.loss}


@torch.inference_mode()
def classify(network: nn.Module, batches: Batches, engine: Engine) -> Outcome:
    """What a network makes of every image of batches that are in order, in evaluation mode.

    Several processes each take their part of every batch, and all get the whole outcome.
    """
    engine.processes.align(network)
    network.eval()
    loss = torch.zeros((), device=engine.device)
    found = torch.zeros(2, len(batches.labels), device=engine.device)  # exact up to 2**24 classes
    places = batches.places(0)
    for place, (images, labels) in zip(places, batches.epoch(0), strict=True):
        if not len(labels):  # too few for every process to have one
            continue
        with engine.autocast():
            logits = network(images)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        probability, predicted = logits.float().softmax(1).max(1)
        found[:, place[0] : place[-1] + 1] = torch.stack([predicted.float(), probability])
    loss = engine.processes.sum(loss[None])
    predicted, probability = engine.processes.sum(found.flatten()).view_as(found).cpu()
    mean = loss.item() / len(batches.labels)
    return Outcome(batches.labels, predicted.long(), probability, mean)
