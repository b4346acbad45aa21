"""Learning rates as pure functions of the update number.

They have no state, so a resumed run only needs that number. Standard library only. Values out of
the stated ranges are refused before, by the configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]
"""From the number of updates done before, 0 for the first one, to a learning rate."""


def constant(lr: float) -> Schedule:
    """The same learning rate for every update."""
    return lambda update: lr


def multi_step(
    lr: float,
    epochs: Sequence[int],
    steps_per_epoch: int,
    *,
    factor: float = 0.1,
    begin_epoch: int = 0,
) -> Schedule:
    """Multiply the learning rate by a factor at the start of each of some epochs.

    Update 0 is in ``begin_epoch``. Changes at or before its start are over: ``lr`` includes them.

    Example:
        >>> schedule = multi_step(0.1, [30, 60], steps_per_epoch=10, factor=0.5)
        >>> schedule(299), schedule(300), schedule(600)
        (0.1, 0.05, 0.025)
    """
    updates = [(epoch - begin_epoch) * steps_per_epoch for epoch in epochs if epoch > begin_epoch]
    return lambda update: lr * factor ** sum(update >= change for change in updates)


def cosine(lr_max: float, lr_min: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """A linear warm-up, then half a cosine from ``lr_max`` to ``lr_min``.

    Update u of w warm-up updates has ``lr_max * (u + 1) / w``; the next has ``lr_max``, the last of
    all (if that is another one) and every later one ``lr_min``. ``total_steps`` are with warm-up.

    Example:
        >>> schedule = cosine(0.4, 0.0, total_steps=7, warmup_steps=4)
        >>> [round(schedule(update), 3) for update in range(7)]
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.0]
    """

    def schedule(update: int) -> float:
        if update < warmup_steps:
            return lr_max * (update + 1) / warmup_steps
        last = max(1, total_steps - 1 - warmup_steps)
        return _half_cosine(lr_max, lr_min, min(1.0, (update - warmup_steps) / last))

    return schedule


def cosine_restarts(
    lr_max: float,
    lr_min: float,
    first_period: int,
    steps_per_epoch: int,
    *,
    factor: int = 2,
    num_epochs: int | None = None,
) -> Schedule:
    """Half cosines that start again, each ``factor`` times as long; constant in each epoch.

    Epoch t of a period of T epochs has ``lr_min + (lr_max - lr_min) (1 + cos(pi t / T)) / 2``.
    Updates after ``num_epochs`` keep the last planned epoch's value instead of falling into a new
    restart. None: restarts for ever.

    Example:
        >>> schedule = cosine_restarts(0.1, 0.0, first_period=2, steps_per_epoch=1, num_epochs=6)
        >>> [round(schedule(update), 3) for update in range(8)]
        [0.1, 0.05, 0.1, 0.085, 0.05, 0.015, 0.015, 0.015]

    Source: arXiv 1608.03983, eq. 5.
    """

    def schedule(update: int) -> float:
        epoch, period = update // steps_per_epoch, first_period
        if num_epochs is not None:
            epoch = min(epoch, num_epochs - 1)
        while epoch >= period:
            epoch, period = epoch - period, period * factor
        return _half_cosine(lr_max, lr_min, epoch / period)

    return schedule


def linear(
    lr: float, lr_max: float, warmup_epochs: int, total_epochs: int, steps_per_epoch: int
) -> Schedule:
    """A linear warm-up from ``lr`` towards ``lr_max``, then a linear fall to 0.

    With W warm-up updates of T, the n-th update (from 1) has ``lr + n (lr_max - lr) / W`` for
    n < W; from n = W on each update has ``lr_max / (T - W)`` less than the one before, at least 0.
    As published, the fall begins one rise before ``lr_max``, and so reaches 0 a few updates before
    the end. W is less than T.

    Example:
        >>> schedule = linear(0.1, 0.5, warmup_epochs=4, total_epochs=8, steps_per_epoch=1)
        >>> [round(schedule(update), 3) for update in range(8)]
        [0.2, 0.3, 0.4, 0.275, 0.15, 0.025, 0.0, 0.0]
    """
    warmup, total = warmup_epochs * steps_per_epoch, total_epochs * steps_per_epoch
    last_rise = max(warmup - 1, 0)

    def schedule(update: int) -> float:
        rises = min(update + 1, last_rise)
        top = lr_max if warmup == 0 else lr + rises * (lr_max - lr) / warmup
        return max(0.0, top - (update + 1 - rises) * lr_max / (total - warmup))

    return schedule


def _half_cosine(lr_max: float, lr_min: float, progress: float) -> float:
    return lr_min + (lr_max - lr_min) * (1 + math.cos(math.pi * progress)) / 2
