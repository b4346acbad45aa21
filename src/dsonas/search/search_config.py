"""How to pretrain and search a supernet: the configuration of steps 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass

from dsonas._utils import require_finite
from dsonas.graph import SHARINGS
from dsonas.search.penalties import PENALTIES
from dsonas.search.removal import Plan
from dsonas.train import Schedule, constant, cosine, multi_step

SCHEDULES = ("constant", "cosine", "steps")
RANKS = ("loss", "flow", "factor")


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

    Example:
        >>> PretrainConfig(epochs=5).batch_size
        128
    """

    epochs: int = 20
    lr: float = 0.05
    weight_decay: float = 1e-4
    batch_size: int = 128

    def __post_init__(self) -> None:
        require_finite(self, "pretrain")
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
        schedule: of the learning rate: ``constant`` (paper), ``cosine`` to a tenth, or ``steps``,
            a tenth of it from each of ``milestones`` on (the paper's code, ImageNet).
        milestones: epochs, counted from 0, at whose start ``steps`` divides by ten, >= 1.
        momentum: of weights and scaling factors, in [0, 1).
        weight_decay: of the weights, >= 0.
        batch_size: images, >= 2.
        clip: gradients are clipped to [-clip, clip] elementwise, > 0.
        ratio: weight steps for each scaling-factor step, >= 1.
        penalty: gamma, the L1 weight, >= 0. None: so strong that a factor without gradient would
            move by 3 in all over the search.
        penalty_kind: ``uniform``, or ``adaptive_macs``, ``adaptive_memory``, ``adaptive_latency``:
            stronger where a connection, or its block, costs more.
        normalise: whether to rescale the factors of every target to a mean square of 1 after each
            step, so that the penalty acts on shares (the scale of a vector is free).
        rank: what an operation is worth to the plan: ``flow`` judges by the scaling factors,
            ``loss`` measures the loss without it on images of the factor part. ``factor``, for
            comparison, removes the connections with the smallest factors, whatever that saves.
        rank_batches: batches of the factor part on which ``loss`` measures, >= 1.
        thrift: how much it counts what an operation costs, >= 0: what it is worth is divided by
            the cost it saves, to this power. 0 does not ask for the cost; 1 is right where the
            worth is a loss that is known well.
        rebuild_every: epochs between two rebuilds, >= 1.
        structure: share of the cost of the supernet's blocks that the search keeps, in (0, 1];
            the rest of a budget is met by the width. None leaves the sparsity to the penalty
            alone (paper).
        connections: share of the supernet's connections that the search keeps, in (0, 1].
        reached_at: part of the search after which the structure is held, in (0, 1].
        trials: structures that are trained briefly, each at the width of the budget, before one is
            chosen, >= 0: members of the search's chain, then neighbours of the best. 0, or no
            budget: the structure that the plan leads to.
        trial_epochs: passes of a trial over the weight part, >= 1; it is measured on the factor
            part.
        recompute: run operations again in the backward pass: less memory, longer steps.
        shrink: whether rebuilds remove dead operations physically (faster; the same result).

    Example:
        >>> config = SearchConfig(space="full", structure=0.35)
        >>> config.rank, config.schedule
        ('flow', 'cosine')
    """

    space: str = "share"
    epochs: int = 40
    lr: float = 0.1
    schedule: str = "cosine"
    milestones: tuple[int, ...] = (30, 60, 90)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 128
    clip: float = 2.0
    ratio: int = 1
    penalty: float | None = None
    penalty_kind: str = "adaptive_macs"
    normalise: bool = True
    rank: str = "flow"
    rank_batches: int = 1
    thrift: float = 0.0
    rebuild_every: int = 1
    structure: float | None = 0.25
    connections: float = 0.1
    reached_at: float = 0.75
    trials: int = 0
    trial_epochs: int = 1
    recompute: bool = False
    shrink: bool = True

    def __post_init__(self) -> None:
        require_finite(self, "search")
        _check(self.space in SHARINGS, "search.space", f"one of {SHARINGS}", self.space)
        _check(self.epochs >= 1, "search.epochs", "at least 1", self.epochs)
        _check(self.lr > 0, "search.lr", "above 0", self.lr)
        _check(self.schedule in SCHEDULES, "search.schedule", f"one of {SCHEDULES}", self.schedule)
        rule = "epochs of at least 1"
        _check(min(self.milestones, default=1) >= 1, "search.milestones", rule, self.milestones)
        _check(0 <= self.momentum < 1, "search.momentum", "in [0, 1)", self.momentum)
        _check(self.weight_decay >= 0, "search.weight_decay", "at least 0", self.weight_decay)
        _check(self.batch_size >= 2, "search.batch_size", "at least 2", self.batch_size)
        _check(self.clip > 0, "search.clip", "above 0", self.clip)
        _check(self.ratio >= 1, "search.ratio", "at least 1", self.ratio)
        _check(self.penalty is None or self.penalty >= 0, "search.penalty", ">= 0", self.penalty)
        _check(self.rank in RANKS, "search.rank", f"one of {RANKS}", self.rank)
        _check(self.rank_batches >= 1, "search.rank_batches", "at least 1", self.rank_batches)
        _check(self.thrift >= 0, "search.thrift", "at least 0", self.thrift)
        kinds = f"one of {PENALTIES}"
        _check(self.penalty_kind in PENALTIES, "search.penalty_kind", kinds, self.penalty_kind)
        _check(self.rebuild_every >= 1, "search.rebuild_every", "at least 1", self.rebuild_every)
        _check(self.trials >= 0, "search.trials", "at least 0", self.trials)
        _check(self.trial_epochs >= 1, "search.trial_epochs", "at least 1", self.trial_epochs)
        shares = [
            self.connections,
            self.reached_at,
            1 if self.structure is None else self.structure,
        ]
        for name, value in zip(("connections", "reached_at", "structure"), shares, strict=True):
            _check(0 < value <= 1, f"search.{name}", "in (0, 1]", value)

    @property
    def plan(self) -> Plan | None:
        """The planned shares; None leaves the sparsity to the penalty alone."""
        if self.structure is None:
            return None
        return Plan(
            structure=self.structure, connections=self.connections, reached_at=self.reached_at
        )

    def reduction_penalty(self, penalty: float) -> float:
        """The penalty of reduction blocks: that of the others where it decides alone, else 0.

        Neither a plan nor normalised factors are about them. Their scale is nearly free and would
        be pressed down, until a step of the factors is larger than they are and a branch goes by
        chance.
        """
        return penalty if self.plan is None and not self.normalise else 0.0

    def rebuilds_after(self, epoch: int) -> bool:
        """Whether a rebuild follows an epoch, counted from 1; one always follows the last."""
        return epoch % self.rebuild_every == 0 or epoch == self.epochs

    def learning_rate(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by update number, from 0.

        Args:
            steps_per_epoch: weight and scaling-factor steps together, >= 1.

        Example:
            >>> schedule = SearchConfig(schedule="steps", milestones=(2,)).learning_rate(10)
            >>> round(schedule(19), 6), round(schedule(20), 6)
            (0.1, 0.01)
        """
        if self.schedule == "constant":
            return constant(self.lr)
        if self.schedule == "steps":
            return multi_step(self.lr, self.milestones, steps_per_epoch)
        return cosine(self.lr, 0.1 * self.lr, self.epochs * steps_per_epoch)
