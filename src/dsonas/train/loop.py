"""The loop that all stages share: epochs, checkpoints, interruption, log and progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dsonas.train.checkpoints import CheckpointError
from dsonas.train.processes import Processes

Row = dict[str, float | int | str]


class Interrupted(Exception):  # noqa: N818 - it is an event, not an error
    """The user or the system asked to stop; everything needed to go on has been saved."""


class DivergedError(ValueError):
    """The loss is not a finite number any more; checkpoints of its stage are worthless then."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class Stage(Protocol):
    """One part of a run that trains: pretraining, search, or training of the result.

    Its ``num_epochs`` may become less as it goes on: it then ends early.
    """

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
    """What a run remembers besides its networks: the log and the time spent."""

    rows: list[Row] = field(default_factory=list)  # one entry per epoch
    seconds: dict[str, float] = field(default_factory=dict)  # wall time spent in each stage
    # called with the run's full state; None keeps nothing on disk
    save: Callable[[dict[str, Any]], None] | None = None
    # called with ``(stage, epoch, batch, row or None)`` as the work goes on
    report: Callable[[Stage, int, int, Row | None], None] | None = None
    # called after every step; True asks for a checkpoint and an end
    stop: Callable[[], bool] = lambda: False
    # least time between two checkpoints inside a stage, in seconds; it is longer where writing one
    # is slow. 0 saves after every step, whatever that costs
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

    def over(self, processes: Processes) -> _Meters:
        """The sums over all processes."""
        if processes.world.size == 1:
            return self
        images = self.loss.new_tensor(self.images)
        values = torch.stack([self.loss, self.errors, images]).double()
        loss, errors, images = processes.sum(values)
        return _Meters(loss.float(), errors.float(), int(images))

    def row(self) -> Row:
        loss, errors = torch.stack([self.loss, self.errors]).tolist()
        images = max(1, self.images)
        return {"loss": loss / images, "error": 100 * errors / images}


CHECK_EVERY = 25
LEAST_AGE = 20  # times what the last checkpoint took, so that all take 5 % of the time at most


def run_stage(
    stage: Stage,
    journal: Journal,
    device: torch.device,
    resume: dict[str, Any] | None = None,
    processes: Processes | None = None,
) -> None:
    """Run a stage to its end, or go on with it from a checkpoint.

    Several processes act as one: each calls this, and what is logged, saved and decided is about
    all of them.

    Args:
        stage: what to train.
        journal: log, time, and the hooks of the caller.
        device: where the sums are kept.
        resume: what ``journal.save`` was given for this stage.
        processes: those that train together; None: this one alone.

    Raises:
        Interrupted: after saving, if ``journal.stop()`` says so.
        DivergedError: if the loss is not finite; nothing is saved then.
        CheckpointError: if the checkpoint does not fit the stage.
    """
    processes = processes or Processes()
    meters, epoch, start = _Meters.zero(device), 0, 0
    if resume is not None:
        meters, epoch, start = _restore(stage, resume, device)
        if not processes.is_first:  # the sums so far are kept by one of them
            meters = _Meters.zero(device)
    clock = _Clock(journal, stage.name)
    while epoch < stage.num_epochs:  # which the stage may lower at the end of an epoch
        current = epoch
        _steps(stage, journal, clock, processes, meters, current, start)
        start, epoch = 0, epoch + 1
        totals = _totals(meters, processes, stage, current)
        row: Row = {"stage": stage.name, "epoch": current + 1, **totals.row()}
        row.update(stage.end_epoch(current))
        clock.tick()
        journal.rows.append({**row, "seconds": round(journal.seconds[stage.name], 3)})
        meters = _Meters.zero(device)
        if journal.report:
            journal.report(stage, current, stage.num_batches, journal.rows[-1])
        if clock.due() or epoch >= stage.num_epochs:
            _save(stage, journal, clock, meters, epoch, 0)


def _steps(
    stage: Stage,
    journal: Journal,
    clock: _Clock,
    processes: Processes,
    meters: _Meters,
    epoch: int,
    start: int,
) -> None:
    """The steps of an epoch from a batch on, with the checkpoints that fall due."""
    for index, batch in enumerate(stage.batches(epoch, start), start):
        meters.add(*stage.step(batch, epoch, index))
        if journal.report:
            journal.report(stage, epoch, index + 1, None)
        stopping, due = processes.any(journal.stop(), clock.due())
        if stopping or due or (index + 1) % CHECK_EVERY == 0:
            totals = _totals(meters, processes, stage, epoch)
            if stopping or due:
                _save(stage, journal, clock, totals, epoch, index + 1)
        if stopping:
            raise Interrupted


def _restore(
    stage: Stage, resume: dict[str, Any], device: torch.device
) -> tuple[_Meters, int, int]:
    try:
        stage.load_state_dict(resume["state"])
        meters = _Meters(resume["loss"].to(device), resume["errors"].to(device), resume["images"])
        return meters, resume["epoch"], resume["batch"]
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint of {stage.name} does not fit this run ({reason}): delete the folder "
            f"checkpoints/{stage.name} of the run to do this step again"
        ) from None


class _Clock:
    """Adds wall time to the journal and knows when a checkpoint is due."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.name = journal, name
        self.last = self.saved = time.perf_counter()
        self.cost = 0.0
        journal.seconds.setdefault(name, 0.0)

    def tick(self) -> None:
        now = time.perf_counter()
        self.journal.seconds[self.name] += now - self.last
        self.last = now

    def due(self) -> bool:
        """Whether the last checkpoint is old enough, and its cost small beside its age."""
        if self.journal.save is None:
            return False
        least = self.journal.save_every
        if least:
            least = max(least, LEAST_AGE * self.cost)
        return time.perf_counter() - self.saved >= least

    def done(self, began: float) -> None:
        """A checkpoint has been written."""
        self.saved = time.perf_counter()
        self.cost = self.saved - began


def _totals(meters: _Meters, processes: Processes, stage: Stage, epoch: int) -> _Meters:
    """The sums over all processes; refused if the loss is not finite."""
    totals = meters.over(processes)
    loss = totals.loss.item()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in epoch {epoch + 1} of {stage.name}: lower "
            f"--{stage.name}.lr, or check the images for extreme values",
            stage.name,
        )
    return totals


def _save(
    stage: Stage, journal: Journal, clock: _Clock, meters: _Meters, epoch: int, batch: int
) -> None:
    if journal.save is None:
        return
    clock.tick()
    began = time.perf_counter()
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
    clock.done(began)
