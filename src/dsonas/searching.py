"""Steps 1 and 2: pretrain the supernet, then search it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dsonas.architecture import Architecture
from dsonas.budgets import Budget, CostFunction, cost_function
from dsonas.control import Measure, Plan, Worth, follow_plan
from dsonas.costs import architecture_cost
from dsonas.data import Batches, ImageData, split_for_search
from dsonas.engine import Engine
from dsonas.loop import Journal, Row, run_stage
from dsonas.network import Network
from dsonas.penalties import PENALTIES, block_penalties
from dsonas.proximal import ProximalNAG
from dsonas.schedules import Schedule, constant, cosine
from dsonas.seeding import derive_seed
from dsonas.sensitivity import loss_without
from dsonas.shrinking import shrink
from dsonas.spaces import SHARINGS, SearchSpace
from dsonas.steps import factor_step, weight_step

logger = logging.getLogger(__name__)

SCHEDULES = ("constant", "cosine")
RANKS = ("loss", "flow")
IDLE_DISTANCE = 3.0


def _check(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Step 1: train the supernet with all scaling factors at 1.

    Args:
        epochs: passes over the weight part of the training set, >= 0.
        lr: learning rate of Nesterov SGD with momentum 0.9, > 0, constant.
        weight_decay: >= 0.
        batch_size: images, >= 2.
    """

    epochs: int = 20
    lr: float = 0.05
    weight_decay: float = 1e-4
    batch_size: int = 128

    def __post_init__(self) -> None:
        _check(self.epochs >= 0, "pretrain.epochs", "at least 0", self.epochs)
        _check(self.lr > 0, "pretrain.lr", "above 0", self.lr)
        _check(self.weight_decay >= 0, "pretrain.weight_decay", "at least 0", self.weight_decay)
        _check(self.batch_size >= 2, "pretrain.batch_size", "at least 2", self.batch_size)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Step 2: train weights and scaling factors together and remove what reaches zero.

    Args:
        space: ``share`` has one set of scaling factors for all blocks, ``full`` one for each.
        epochs: passes over the weight part, >= 1.
        lr: learning rate of weights and scaling factors, > 0.
        schedule: of the learning rate: ``constant`` (paper) or ``cosine`` to a tenth.
        momentum: of weights and scaling factors, in [0, 1).
        weight_decay: of the weights, >= 0.
        batch_size: images, >= 2.
        clip: gradients are clipped to [-clip, clip] elementwise, > 0.
        ratio: weight steps for each scaling-factor step, >= 1.
        penalty: gamma, the L1 weight, >= 0. None: so strong that a factor without gradient would
            move by 3 in all over the search.
        penalty_kind: ``uniform`` or ``adaptive_macs``.
        normalise: whether to rescale the factors of every target to a mean square of 1 after each
            step, so that the penalty acts on shares (the scale of a vector is free).
        rank: what an operation is worth to the plan: ``loss`` measures the loss without it on
            images of the factor part, ``flow`` judges by the scaling factors alone.
        rebuild_every: epochs between two rebuilds, >= 1.
        structure: share of the cost of the supernet's blocks that the search keeps, in (0, 1];
            the rest of a budget is met by the width. None leaves the sparsity to the penalty
            alone (paper).
        connections: share of the supernet's connections that the search keeps, in (0, 1].
        reached_at: part of the search after which the structure is held, in (0, 1].
        shrink: whether rebuilds remove dead operations physically (faster; the same result).
    """

    space: str = "share"
    epochs: int = 40
    lr: float = 0.1
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    clip: float = 2.0
    ratio: int = 1
    penalty: float | None = None
    penalty_kind: str = "adaptive_macs"
    normalise: bool = True
    rank: str = "loss"
    rebuild_every: int = 1
    structure: float | None = 0.35
    connections: float = 0.35
    reached_at: float = 0.75
    shrink: bool = True

    def __post_init__(self) -> None:
        _check(self.space in SHARINGS, "search.space", f"one of {SHARINGS}", self.space)
        _check(self.epochs >= 1, "search.epochs", "at least 1", self.epochs)
        _check(self.lr > 0, "search.lr", "above 0", self.lr)
        _check(self.schedule in SCHEDULES, "search.schedule", f"one of {SCHEDULES}", self.schedule)
        _check(0 <= self.momentum < 1, "search.momentum", "in [0, 1)", self.momentum)
        _check(self.weight_decay >= 0, "search.weight_decay", "at least 0", self.weight_decay)
        _check(self.batch_size >= 2, "search.batch_size", "at least 2", self.batch_size)
        _check(self.clip > 0, "search.clip", "above 0", self.clip)
        _check(self.ratio >= 1, "search.ratio", "at least 1", self.ratio)
        _check(self.penalty is None or self.penalty >= 0, "search.penalty", ">= 0", self.penalty)
        _check(self.rank in RANKS, "search.rank", f"one of {RANKS}", self.rank)
        kinds = f"one of {PENALTIES}"
        _check(self.penalty_kind in PENALTIES, "search.penalty_kind", kinds, self.penalty_kind)
        _check(self.rebuild_every >= 1, "search.rebuild_every", "at least 1", self.rebuild_every)
        shares = [
            self.connections,
            self.reached_at,
            1 if self.structure is None else self.structure,
        ]
        for name, value in zip(("connections", "reached_at", "structure"), shares, strict=True):
            _check(0 < value <= 1, f"search.{name}", "in (0, 1]", value)


@dataclass
class SearchResult:
    """What a search found.

    Args:
        architecture: the cleaned result, at the supernet's channels.
        supernet: the complete architecture it was found in.
        factors: the packed scaling factors of each set of blocks.
        network: the live supernet with its weights.
        rows: the log, one entry per epoch.
    """

    architecture: Architecture
    supernet: Architecture
    factors: list[list[float]]
    network: Network
    rows: list[Row] = field(default_factory=list)


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


class Pretraining:
    """Step 1 as a stage of the loop."""

    name = "pretrain"

    def __init__(
        self, network: Network, batches: Batches, config: PretrainConfig, engine: Engine
    ) -> None:
        self.network, self.engine = network, engine
        self.source = batches
        self.num_epochs, self.num_batches = config.epochs, len(batches)
        self.optimizer = sgd(network, config.lr, config.weight_decay, 0.9)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Batches of the weight part."""
        return self.source.epoch(epoch, start)

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A weight step."""
        images, labels = batch
        self.network.train()
        with self.engine.autocast():
            loss, logits = weight_step(self.network, self.optimizer, images, labels)
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
        self.optimizer.load_state_dict(state["optimizer"])


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
    ) -> None:
        assert network.scaling is not None
        self.network, self.scaling = network, network.scaling
        self.config, self.engine, self.cost = config, engine, cost
        self.supernet = self.live = network.architecture
        self.weight_batches, self.factor_batches = weight_batches, factor_batches
        self.num_epochs = config.epochs
        self.kinds = alternation(len(weight_batches), len(factor_batches), config.ratio)
        self.num_batches = len(self.kinds)
        self.schedule = _schedule(config, self.num_epochs * self.num_batches)
        self.weight_optimizer = sgd(network, config.lr, config.weight_decay, config.momentum)
        self.factor_optimizer = self._factor_optimizer()
        self.pressure = 1.0

    def _factor_optimizer(self) -> ProximalNAG:
        groups = [{"params": [vector]} for vector in self.scaling.parameters()]
        config = self.config
        return ProximalNAG(
            groups, lr=config.lr, penalty=self.penalty, momentum=config.momentum, clip=config.clip
        )

    @property
    def penalty(self) -> float:
        """Gamma as configured, or so that idle factors would move by ``IDLE_DISTANCE`` in all."""
        config = self.config
        if config.penalty is not None:
            return config.penalty
        steps = self.num_epochs * self.kinds.count("factors")
        return IDLE_DISTANCE * (1 - config.momentum) / (config.lr * max(1, steps))

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
                    self.network, self.weight_optimizer, images, labels, clip=self.config.clip
                )
            else:
                set_lr(self.factor_optimizer, lr)
                loss, logits = factor_step(self.network, self.factor_optimizer, images, labels)
                if not self.config.shrink:  # what a rebuild removed must not come back
                    self.scaling.write_zeros(self.live, self.factor_optimizer)
                if self.config.normalise:
                    self.scaling.normalise(self.live, self.factor_optimizer)
        return loss, logits, labels

    def end_epoch(self, epoch: int) -> Row:
        """Rebuild if it is due; log what is live and what it costs."""
        if (epoch + 1) % self.config.rebuild_every == 0 or epoch + 1 == self.num_epochs:
            self._rebuild(epoch)
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
        plan, progress = self.plan, (epoch + 1) / self.num_epochs
        if plan is None:
            self._remove(self.scaling.architecture(self.live))
        else:
            positive = self.scaling.architecture(self.live).num_live
            factors = [vector.tolist() for vector in self.scaling.blocks]
            worth = self._measured_worth(epoch) if self.config.rank == "loss" else None
            self._remove(
                follow_plan(plan, progress, self.supernet, self.live, factors, worth, self.cost)
            )
            self.pressure = plan.adapt(self.pressure, self.live.num_live, positive)
        held = plan is not None and plan.is_held(progress)
        self._set_penalties(0.0 if held else self.penalty * self.pressure)

    def _measured_worth(self, epoch: int) -> Worth:
        """What an operation is worth: the loss without it, on images of the factor part."""
        images, labels = next(self.factor_batches.epoch(epoch))

        def worth(current: Architecture) -> dict[tuple[int, int], float]:
            with self.engine.autocast():
                return loss_without(self.network, current, images, labels)

        return worth

    @property
    def plan(self) -> Plan | None:
        """The planned shares; None leaves the sparsity to the penalty alone."""
        config = self.config
        if config.structure is None:
            return None
        return Plan(
            structure=config.structure,
            connections=config.connections,
            reached_at=config.reached_at,
        )

    def _set_penalties(self, penalty: float) -> None:
        penalties = block_penalties(
            self.config.penalty_kind, penalty, self.supernet, self.live, self.config.space
        )
        penalties += [penalty] * len(self.scaling.reductions)
        for group, value in zip(self.factor_optimizer.param_groups, penalties, strict=True):
            group["penalty"] = value

    def _remove(self, live: Architecture) -> None:
        self.live = live
        if self.config.shrink:  # first, for it needs the factors of the operations that go
            shrink(self.network, live, self.weight_optimizer)
        self.scaling.write_zeros(live, self.factor_optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Live architecture, weights, factors and momenta."""
        return {
            "live": self.live.to_json(),
            "pressure": self.pressure,
            "network": self.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "factor_optimizer": self.factor_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict`` into a supernet that is still complete."""
        self.live = Architecture.from_json(state["live"])
        self.pressure = state["pressure"]
        if self.config.shrink:
            shrink(self.network, self.live, self.weight_optimizer)
        self.network.load_state_dict(state["network"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.factor_optimizer.load_state_dict(state["factor_optimizer"])

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
        )


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


def _schedule(config: SearchConfig, total_steps: int) -> Schedule:
    if config.schedule == "constant":
        return constant(config.lr)
    return cosine(config.lr, 0.1 * config.lr, total_steps)


def search(
    space: SearchSpace,
    data: ImageData,
    *,
    budget: Budget | None = None,
    cost: CostFunction | None = None,
    seed: int = 0,
    lambda_fraction: float = 0.5,
    pretrain: PretrainConfig | None = None,
    config: SearchConfig | None = None,
    engine: Engine | None = None,
    journal: Journal | None = None,
    resume: dict[str, Any] | None = None,
) -> SearchResult:
    """Pretrain a supernet and search it (steps 1 and 2).

    Args:
        space: what to search; its sharing overrides that of ``config``.
        data: images; only the training part is used.
        budget: its first bound leads the search: macs, latency, memory access, or parameters.
        cost: all measures of an architecture; needed for a latency bound. None: the exact counts.
        seed: of weights, split, order and augmentation; it fixes the result on one machine.
        lambda_fraction: share of the training images that updates the scaling factors, in [0, 1);
            0 does not split.
        pretrain: step 1.
        config: step 2.
        engine: device and precision.
        journal: log, checkpoints and progress.
        resume: a checkpoint of either step.

    Returns:
        The architecture found, with the live supernet.
    """
    pretrain = pretrain or PretrainConfig()
    config = replace(config or SearchConfig(), space=space.sharing)
    engine, journal = engine or Engine(), journal or Journal()
    torch.manual_seed(derive_seed(seed, "supernet"))
    network = Network(space.complete(), sharing=space.sharing)
    engine.place(network)
    parts = split_for_search(data.train, lambda_fraction, derive_seed(seed, "split"))

    def batches(part: int, size: int, name: str) -> Batches:
        return Batches(
            parts[part],
            data,
            batch_size=size,
            augmentation=data.search_augmentation,
            shuffle=True,
            drop_last=True,
            seed=derive_seed(seed, name),
            device=engine.device,
        )

    stage = resume["stage"] if resume else "pretrain"
    if stage == "pretrain" and pretrain.epochs:
        source = batches(0, pretrain.batch_size, "pretrain")
        first = Pretraining(network, source, pretrain, engine)
        run_stage(first, journal, engine.device, resume)
        resume = None
    leading = (budget or Budget()).leading
    measures = cost or cost_function()
    second = Searching(
        network,
        batches(0, config.batch_size, "weights"),
        batches(1, config.batch_size, "factors"),
        config,
        engine,
        lambda architecture: measures(architecture)[leading],
    )
    run_stage(second, journal, engine.device, resume if stage == "search" else None)
    return second.result(journal.rows)
