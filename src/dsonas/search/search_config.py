"""How to pretrain and search a supernet: the configuration of steps 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsonas._utils import (
    BatchSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check_settings,
)
from dsonas.train import Schedule, constant, cosine, multi_step

MOMENTUM = 0.9  # of weights and scaling factors, as published
CLIP = 2.0  # of each element of a gradient in step 2, as published


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Step 1: train the supernet with all scaling factors at 1.

    Args:
        epochs: passes over the weight part of the training set, >= 0.
        lr: learning rate of Nesterov SGD with momentum 0.9, > 0, constant.
        batch_size: images, >= 2.

    Example:
        >>> PretrainConfig(epochs=5).batch_size
        128
    """

    epochs: NonNegativeInt = 20
    lr: PositiveFloat = 0.05
    batch_size: BatchSize = 128

    def __post_init__(self) -> None:
        check_settings(self, "pretrain")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Step 2: train weights and scaling factors together and remove what reaches zero.

    Args:
        space: ``share`` has one set of scaling factors for all blocks, ``full`` one for each.
        epochs: passes over the weight part, >= 1.
        lr: learning rate of weights and scaling factors, > 0.
        schedule: of the learning rate: ``constant`` (paper), ``cosine`` to a tenth, or ``steps``,
            divided by ten at each quarter of the epochs (the paper's code, ImageNet).
        weight_decay: of the weights, in steps 1 and 2, >= 0.
        batch_size: images, >= 2.
        penalty: gamma, the L1 weight, >= 0. None: so strong that a factor without gradient would
            move by 3 in all over the search. Under a plan, what is due gets more, but for 0, which
            presses nothing and leaves all to a cut at the end.
        penalty_kind: ``uniform``, or ``adaptive_macs``, ``adaptive_memory``, ``adaptive_latency``:
            stronger where a connection, or its block, costs more. It matters where the penalty
            decides alone (``keep_cost`` None, ``normalise`` False); else next to nothing.
        normalise: whether to rescale the factors of every target to a mean square of 1 after each
            step, so that the penalty acts on shares (the scale of a vector is free).
        keep_cost: share of the cost of the supernet's blocks that the search keeps, in (0, 1];
            the rest of a budget is met by the width. None leaves the sparsity to the penalty
            alone (paper).
        keep_connections: share of the supernet's connections that the search keeps, in (0, 1].
        hold_from: part of the search after which the structure is held, in (0, 1].
        rebuild_every: epochs between two rebuilds, which remove dead operations, >= 1.
        recompute: run operations again in the backward pass: less memory, longer steps.

    Example:
        >>> config = SearchConfig(space="full", keep_cost=0.35)
        >>> config.space, config.schedule
        ('full', 'cosine')
    """

    space: Literal["share", "full"] = "share"
    epochs: PositiveInt = 40
    lr: PositiveFloat = 0.1
    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    weight_decay: NonNegativeFloat = 1e-4
    batch_size: BatchSize = 128
    penalty: NonNegativeFloat | None = None
    penalty_kind: Literal["uniform", "adaptive_macs", "adaptive_memory", "adaptive_latency"] = (
        "adaptive_macs"
    )
    normalise: bool = True
    keep_cost: Share | None = 0.25
    keep_connections: Share = 0.1
    hold_from: Share = 0.75
    rebuild_every: PositiveInt = 1
    recompute: bool = False

    def __post_init__(self) -> None:
        check_settings(self, "search")

    def share(self, final: float, progress: float) -> float:
        """Compute a planned share at ``progress`` in [0, 1]: 1, falling in equal ratios, then held.

        Example:
            >>> config = SearchConfig(hold_from=0.5)
            >>> [round(config.share(0.25, progress), 3) for progress in (0, 0.25, 0.5, 1)]
            [1.0, 0.5, 0.25, 0.25]
        """
        return final ** min(1.0, progress / self.hold_from)

    def rebuilds_after(self, epoch: int) -> bool:
        """Whether a rebuild follows an epoch, counted from 1; one always follows the last."""
        return epoch % self.rebuild_every == 0 or epoch == self.epochs

    def learning_rate(self, steps_per_epoch: int) -> Schedule:
        """The learning rate by update number, from 0.

        Args:
            steps_per_epoch: weight and scaling-factor steps together, >= 1.

        Example:
            >>> schedule = SearchConfig(schedule="steps", epochs=8).learning_rate(10)
            >>> round(schedule(19), 6), round(schedule(20), 6)
            (0.1, 0.01)
        """
        if self.schedule == "constant":
            return constant(self.lr)
        if self.schedule == "steps":
            quarters = [self.epochs * quarter // 4 for quarter in (1, 2, 3)]
            return multi_step(self.lr, quarters, steps_per_epoch)
        return cosine(self.lr, 0.1 * self.lr, self.epochs * steps_per_epoch)


def weight_steps_per_factor_step(factor_split: float) -> int:
    """The alternation of step 2: both parts are used up together; 1 where they are one part.

    Args:
        factor_split: share of the training images that updates the scaling factors, in [0, 1).

    Example:
        >>> [weight_steps_per_factor_step(split) for split in (0.5, 0.2, 0)]
        [1, 4, 1]
    """
    return max(1, round((1 - factor_split) / factor_split)) if factor_split else 1
