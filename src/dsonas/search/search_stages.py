"""Step 2 as a stage of the loop: the search with its rebuilds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dsonas.cost import LatencyFunction, architecture_cost, distinct
from dsonas.data import Batches
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.search.penalties import connection_penalties
from dsonas.search.removal import Measure, Plan, follow_plan
from dsonas.search.search_config import CLIP, MOMENTUM, SearchConfig
from dsonas.search.shrinking import shrink
from dsonas.sparse import ProximalNAG
from dsonas.train import Engine, Row, factor_step, restore, set_lr, sgd, weight_step

logger = logging.getLogger(__name__)

IDLE_DISTANCE = 3.0  # see SearchConfig.penalty


@dataclass
class SearchResult:
    """What a search found.

    Args:
        architecture: the cleaned result, at the supernet's channels.
        supernet: the complete architecture it was found in.
        factors: the packed scaling factors of each set of blocks.
        network: the live supernet with its weights.
        rows: the log, one entry per epoch.
        history: what ``factors`` were after each epoch.
        chain: the nested architectures that it passed through at rebuilds, cleaned, at the
            supernet's channels: from the supernet to ``architecture``, each smaller than the one
            before.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1, 1)).complete()
        >>> result = SearchResult(supernet, supernet, factors=[], network=Network(supernet))
        >>> result.architecture.num_live, result.chain  # as before the first rebuild
        (250, [])
    """

    architecture: Architecture
    supernet: Architecture
    factors: list[list[float]]
    network: Network
    rows: list[Row] = field(default_factory=list)
    history: list[list[list[float]]] = field(default_factory=list)
    chain: list[Architecture] = field(default_factory=list)


class Searching:
    """Step 2 as a stage of the loop: W and lambda steps in turn, and rebuilds."""

    name = "search"

    def __init__(
        self,
        network: Network,
        weight_batches: Batches,
        factor_batches: Batches,
        config: SearchConfig,
        engine: Engine,
        cost: Measure | None = None,
        latency: LatencyFunction | None = None,
        ratio: int = 1,
    ) -> None:
        assert network.scaling is not None
        self.network, self.scaling = network, network.scaling
        self.config, self.engine, self.cost = config, engine, cost
        self.latency = latency
        self.supernet = self.live = network.architecture
        self.weight_batches, self.factor_batches = weight_batches, factor_batches
        self.num_epochs = config.epochs
        self.kinds = alternation(len(weight_batches), len(factor_batches), ratio)
        self.num_batches = len(self.kinds)
        self.schedule = config.learning_rate(self.num_batches)
        self.weight_optimizer = sgd(network, config.lr, config.weight_decay, MOMENTUM)
        self.factor_optimizer = self._factor_optimizer()
        self.pressure = 1.0
        self.history: list[list[list[float]]] = []  # the factors after each epoch
        self.chain: list[Architecture] = [self.supernet]
        if config.penalty_kind == "adaptive_memory":  # the one whose supernet is not uniform
            self._set_penalties(self.penalty)

    def _factor_optimizer(self) -> ProximalNAG:
        config = self.config
        groups = self.scaling.groups(config.reduction_penalty(self.penalty))
        return ProximalNAG(groups, lr=config.lr, penalty=self.penalty, momentum=MOMENTUM, clip=CLIP)

    @property
    def penalty(self) -> float:
        """Gamma as configured, or so that idle factors would move by ``IDLE_DISTANCE`` in all."""
        config = self.config
        if config.penalty is not None:
            return config.penalty
        steps = self.num_epochs * self.kinds.count("factors")
        return IDLE_DISTANCE * (1 - MOMENTUM) / (config.lr * max(1, steps))

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of both parts in the order of ``alternation``, each with its kind."""
        done = self.kinds[:start]
        sources = {
            "weights": self.weight_batches.epoch(epoch, done.count("weights")),
            "factors": self.factor_batches.epoch(epoch, done.count("factors")),
        }
        for kind in self.kinds[start:]:
            yield (kind, *next(sources[kind]))

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A weight step or a scaling-factor step."""
        kind, images, labels = batch
        lr = self.schedule(epoch * self.num_batches + index)
        self.network.train()
        with self.engine.autocast():
            if kind == "weights":
                set_lr(self.weight_optimizer, lr)
                loss, logits = weight_step(
                    self.network,
                    self.weight_optimizer,
                    images,
                    labels,
                    clip=CLIP,
                    engine=self.engine,
                )
            else:
                set_lr(self.factor_optimizer, lr)
                loss, logits = factor_step(
                    self.network, self.factor_optimizer, images, labels, engine=self.engine
                )
                if self.config.normalise:
                    self.scaling.normalise(self.live, self.factor_optimizer)
        return loss, logits, labels

    def end_epoch(self, epoch: int) -> Row:
        """Rebuild if it is due; log what is live and what it costs."""
        if self.config.rebuilds_after(epoch + 1):
            self._rebuild(epoch)
        self.history.append([vector.tolist() for vector in self.scaling.blocks])
        current = self.scaling.architecture(self.live)
        cost = architecture_cost(current)
        mean = sum(float(v.detach().sum()) for v in self.scaling.blocks)
        return {
            "live_connections": current.num_live,
            "macs": cost.macs,
            "params": cost.params,
            "mean_factor": round(mean / sum(v.numel() for v in self.scaling.blocks), 5),
            "pressure": round(self.pressure, 4),
        }

    def _rebuild(self, epoch: int) -> None:
        """Remove what is dead or, under a plan, what is worth least; adapt the penalties."""
        plan, progress = self.config.plan, (epoch + 1) / self.num_epochs
        self.engine.processes.align(self.network)  # so that all come to the same decision
        if plan is None:
            self._remove(self.scaling.architecture(self.live))
        else:
            positive = self.scaling.architecture(self.live).num_live
            self._remove(self._planned(plan, progress))
            self.pressure = plan.adapt(self.pressure, self.live.num_live, positive)
        self.chain = distinct([*self.chain, self.live])
        held = plan is not None and plan.is_held(progress)
        self._set_penalties(0.0 if held else self.penalty * self.pressure)

    def _planned(self, plan: Plan, progress: float) -> Architecture:
        factors = [vector.tolist() for vector in self.scaling.blocks]
        states = self.supernet, self.live
        return follow_plan(plan, progress, *states, factors, cost=self.cost, thrift=0.0)

    def _set_penalties(self, penalty: float) -> None:
        rows = connection_penalties(
            self.config.penalty_kind,
            penalty,
            self.supernet,
            self.live,
            self.config.space,
            self.latency,
        )
        pressed = self.config.reduction_penalty(penalty)
        rows += [[pressed] * len(vector) for vector in self.scaling.reductions]
        vectors = [*self.scaling.blocks, *self.scaling.reductions]
        groups = self.factor_optimizer.param_groups
        for group, row, vector in zip(groups, rows, vectors, strict=True):
            group["penalty"] = vector.new_tensor(row)

    def _remove(self, live: Architecture) -> None:
        """Remove what is not in an architecture, in all processes what the first has chosen."""
        self.live = live = self.engine.processes.decide(lambda: live)
        # first, for it needs the factors of the operations that go
        shrink(self.network, live, self.weight_optimizer)
        self.scaling.write_zeros(live, self.factor_optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Live architecture, weights, factors and momenta."""
        return {
            "live": self.live.to_json(),
            "pressure": self.pressure,
            "history": self.history,
            "chain": [member.to_json() for member in self.chain],
            "network": self.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "factor_optimizer": self.factor_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict`` into a supernet that is still complete."""
        self.live = Architecture.from_json(state["live"])
        self.pressure = float(state["pressure"])
        self.history = _checked(state.get("history", []), self.scaling.blocks)
        self.chain = [Architecture.from_json(t) for t in state.get("chain", [state["live"]])]
        shrink(self.network, self.live, self.weight_optimizer)
        self.network.load_state_dict(state["network"])
        restore(self.weight_optimizer, state["weight_optimizer"])
        restore(self.factor_optimizer, state["factor_optimizer"])

    def result(self, rows: list[Row]) -> SearchResult:
        """The architecture that the scaling factors stand for now."""
        architecture = self.scaling.architecture(self.live)
        if not any(graph.kept_nodes for graph in architecture.blocks):
            logger.warning(
                "the penalty %.3g removed every operation: lower search.penalty, or leave it out",
                self.penalty,
            )
        return SearchResult(
            architecture=architecture,
            supernet=self.supernet,
            factors=[vector.tolist() for vector in self.scaling.blocks],
            network=self.network,
            rows=[row for row in rows if row["stage"] == self.name],
            history=self.history,
            chain=distinct([*self.chain, architecture]),
        )


def _checked(history: Any, blocks: Iterable[Tensor]) -> list[list[list[float]]]:
    """What a checkpoint holds as history, if it is one of these factors."""
    kinds = [[float] * len(vector) for vector in blocks]
    if any([list(map(type, factors)) for factors in epoch] != kinds for epoch in history):
        raise ValueError("the history is of other scaling factors")
    return list(history)


def alternation(num_weight: int, num_factor: int, ratio: int) -> list[str]:
    """The kinds of the batches of a search epoch.

    It starts with a weight batch; after batch n, from 0, the next is a factor batch iff
    (n + 2) mod (ratio + 1) = 0; it ends when the part asked for is exhausted.

    Example:
        >>> alternation(4, 2, 2)
        ['weights', 'weights', 'factors', 'weights', 'weights', 'factors']
    """
    left = {"weights": num_weight, "factors": num_factor}
    kinds: list[str] = []
    while True:
        kind = "factors" if (len(kinds) + 1) % (ratio + 1) == 0 else "weights"
        if left[kind] == 0:
            return kinds
        left[kind] -= 1
        kinds.append(kind)
