"""Step 1 as a stage of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dsonas.data import Batches
from dsonas.nn import Network
from dsonas.search.search_config import MOMENTUM, PretrainConfig
from dsonas.train import Engine, Row, restore, sgd, weight_step


class Pretraining:
    """Step 1 as a stage of the loop."""

    name = "pretrain"

    def __init__(
        self,
        network: Network,
        batches: Batches,
        config: PretrainConfig,
        engine: Engine,
        weight_decay: float = 1e-4,
    ) -> None:
        self.network, self.engine = network, engine
        self.source = batches
        self.num_epochs, self.num_batches = config.epochs, len(batches)
        self.optimizer = sgd(network, config.lr, weight_decay, MOMENTUM)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of the weight part."""
        return self.source.epoch(epoch, start)

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A weight step."""
        images, labels = batch
        self.network.train()
        with self.engine.autocast():
            loss, logits = weight_step(
                self.network, self.optimizer, images, labels, engine=self.engine
            )
        return loss, logits, labels

    def end_epoch(self, epoch: int) -> Row:
        """Nothing to add to the log."""
        return {}

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
