"""The loop that all stages share: epochs, checkpoints, interruption, log and progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Row = dict[str, float | int | str]
STAGES = ("pretrain", "search", "train")  # in the order of a run


class Interrupted(Exception):  # noqa: N818 - it is an event, not an error
    """The user or the system asked to stop; everything needed to go on has been saved."""


class DivergedError(ValueError):
    """The loss is not a finite number any more.

    Args:
        message: what to do about it.
        stage: name of the stage, whose checkpoints are worthless then.
    """

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class Stage(Protocol):
    """One part of a run that trains: pretraining, search, or training of the result."""

    name: str
    num_epochs: int
    num_batches: int

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from number ``start`` on; a pure function of its arguments."""
        ...

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Train on a batch; returns the mean loss, the logits and the labels."""
        ...

    def end_epoch(self, epoch: int) -> Row:
        """What to do after an epoch; returns what to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that training has changed."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        ...


@dataclass
class Journal:
    """What a run remembers besides its networks: the log and the time spent.

    Args:
        rows: one entry per epoch.
        seconds: wall time spent in each stage.
        save: called with the run's full state; None keeps nothing on disk.
        report: called with ``(stage, epoch, batch, row or None)`` as the work goes on.
        stop: called after every step; True asks for a checkpoint and an end.
        save_every: least time between two checkpoints inside a stage, in seconds.
    """

    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    save: Callable[[dict[str, Any]], None] | None = None
    report: Callable[[Stage, int, int, Row | None], None] | None = None
    stop: Callable[[], bool] = lambda: False
    save_every: float = 20.0


@dataclass
class _Meters:
    """Sums over an epoch, kept on the device so that no step waits for it."""

    loss: Tensor
    errors: Tensor
    images: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> _Meters:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss.float() * len(labels)
        self.errors += (logits.argmax(1) != labels).sum()
        self.images += len(labels)

    def row(self) -> Row:
        loss, errors = torch.stack([self.loss, self.errors]).tolist()
        images = max(1, self.images)
        return {"loss": loss / images, "error": 100 * errors / images}


CHECK_EVERY = 25


def run_stage(
    stage: Stage,
    journal: Journal,
    device: torch.device,
    resume: dict[str, Any] | None = None,
) -> None:
    """Run a stage to its end, or go on with it from a checkpoint.

    Args:
        stage: what to train.
        journal: log, time, and the hooks of the caller.
        device: where the sums are kept.
        resume: what ``journal.save`` was given for this stage.

    Raises:
        Interrupted: after saving, if ``journal.stop()`` says so.
        DivergedError: if the loss is not finite; nothing is saved then.
    """
    meters, epoch, start = _Meters.zero(device), 0, 0
    if resume is not None:
        stage.load_state_dict(resume["state"])
        epoch, start = resume["epoch"], resume["batch"]
        meters = _Meters(resume["loss"].to(device), resume["errors"].to(device), resume["images"])
    clock = _Clock(journal, stage.name)
    for current in range(epoch, stage.num_epochs):
        for index, batch in enumerate(stage.batches(current, start), start):
            meters.add(*stage.step(batch, current, index))
            if journal.report:
                journal.report(stage, current, index + 1, None)
            if (index + 1) % CHECK_EVERY == 0:
                _check_finite(meters, stage, current)
            if journal.stop():
                _check_finite(meters, stage, current)
                clock.tick()
                _save(stage, journal, meters, current, index + 1)
                raise Interrupted
        start = 0
        _check_finite(meters, stage, current)
        row: Row = {"stage": stage.name, "epoch": current + 1, **meters.row()}
        row.update(stage.end_epoch(current))
        clock.tick()
        journal.rows.append({**row, "seconds": round(journal.seconds[stage.name], 3)})
        meters = _Meters.zero(device)
        if journal.report:
            journal.report(stage, current, stage.num_batches, journal.rows[-1])
        if clock.due() or current + 1 == stage.num_epochs:
            _save(stage, journal, meters, current + 1, 0)


class _Clock:
    """Adds wall time to the journal and knows when a checkpoint is due."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.name = journal, name
        self.last = self.saved = time.perf_counter()
        journal.seconds.setdefault(name, 0.0)

    def tick(self) -> None:
        now = time.perf_counter()
        self.journal.seconds[self.name] += now - self.last
        self.last = now

    def due(self) -> bool:
        if time.perf_counter() - self.saved < self.journal.save_every:
            return False
        self.saved = time.perf_counter()
        return True


def _check_finite(meters: _Meters, stage: Stage, epoch: int) -> None:
    loss = meters.loss.item()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in epoch {epoch + 1} of {stage.name}: lower "
            f"--{stage.name}.lr, or check the images for extreme values",
            stage.name,
        )


def _save(stage: Stage, journal: Journal, meters: _Meters, epoch: int, batch: int) -> None:
    if journal.save is None:
        return
    journal.save(
        {
            "stage": stage.name,
            "epoch": epoch,
            "batch": batch,
            "loss": meters.loss.cpu(),
            "errors": meters.errors.cpu(),
            "images": meters.images,
            "rows": journal.rows,
            "seconds": journal.seconds,
            "state": stage.state_dict(),
        }
    )
