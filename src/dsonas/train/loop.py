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


CHECK_EVERY = 25  # steps between two looks at the loss
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
    loop = _Loop(stage, journal, device, processes or Processes())
    epoch, start = loop.restore(resume) if resume is not None else (0, 0)
    while epoch < stage.num_epochs:  # which the stage may lower at the end of an epoch
        loop.steps(epoch, start)
        row: Row = {"stage": stage.name, "epoch": epoch + 1, **loop.end_epoch(epoch)}
        row.update(stage.end_epoch(epoch))
        loop.tick()
        journal.rows.append({**row, "seconds": round(journal.seconds[stage.name], 3)})
        if journal.report:
            journal.report(stage, epoch, stage.num_batches, journal.rows[-1])
        start, epoch = 0, epoch + 1
        if loop.is_due() or epoch >= stage.num_epochs:
            loop.save(epoch, 0)


class _Loop:
    """A stage at work: the sums over the epoch so far, and the clock of the checkpoints.

    The sums are kept on the device, so that no step waits for it.
    """

    def __init__(
        self, stage: Stage, journal: Journal, device: torch.device, processes: Processes
    ) -> None:
        self.stage, self.journal, self.device, self.processes = stage, journal, device, processes
        self.last = self.saved = time.perf_counter()
        self.cost = 0.0  # seconds that the last checkpoint took
        journal.seconds.setdefault(stage.name, 0.0)
        self._forget()

    def _forget(self) -> None:
        zero = torch.zeros((), device=self.device)
        self.loss, self.errors, self.images = zero, zero.clone(), 0

    def steps(self, epoch: int, start: int) -> None:
        """The steps of an epoch from a batch on, with the checkpoints that fall due."""
        for index, batch in enumerate(self.stage.batches(epoch, start), start):
            loss, logits, labels = self.stage.step(batch, epoch, index)
            self.loss += loss.float() * len(labels)
            self.errors += (logits.argmax(1) != labels).sum()
            self.images += len(labels)
            if self.journal.report:
                self.journal.report(self.stage, epoch, index + 1, None)
            stopping, due = self.processes.any(self.journal.stop(), self.is_due())
            if stopping or due or (index + 1) % CHECK_EVERY == 0:
                totals = self._totals(epoch)
                if stopping or due:
                    self.save(epoch, index + 1, totals)
            if stopping:
                raise Interrupted

    def _totals(self, epoch: int) -> tuple[Tensor, Tensor, int]:
        """The sums over all processes; refused if the loss is not finite."""
        loss, errors, images = self.loss, self.errors, self.images
        if self.processes.world.size > 1:
            values = torch.stack([loss, errors, loss.new_tensor(images)]).double()
            loss, errors, count = self.processes.sum(values)
            loss, errors, images = loss.float(), errors.float(), int(count)
        if not math.isfinite(found := loss.item()):
            raise DivergedError(
                f"the loss became {found} in epoch {epoch + 1} of {self.stage.name}: lower "
                f"--{self.stage.name}.lr, or check the images for extreme values",
                self.stage.name,
            )
        return loss, errors, images

    def end_epoch(self, epoch: int) -> Row:
        """What an epoch comes to: mean loss, and error in percent; the next begins from 0."""
        loss, errors, images = self._totals(epoch)
        self._forget()
        count = max(1, images)
        return {"loss": loss.item() / count, "error": 100 * errors.item() / count}

    def restore(self, resume: dict[str, Any]) -> tuple[int, int]:
        """Go on from a checkpoint; returns its epoch and batch."""
        try:
            self.stage.load_state_dict(resume["state"])
            if self.processes.is_first:  # the sums so far are kept by one of them
                self.loss, self.errors = (resume[k].to(self.device) for k in ("loss", "errors"))
                self.images = resume["images"]
            return resume["epoch"], resume["batch"]
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"the checkpoint of {self.stage.name} does not fit this run ({reason}): delete the "
                f"folder checkpoints/{self.stage.name} of the run to do this step again"
            ) from None

    def tick(self) -> None:
        """Add the time since the last call to the journal."""
        now = time.perf_counter()
        self.journal.seconds[self.stage.name] += now - self.last
        self.last = now

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough, and its cost small beside its age."""
        if self.journal.save is None:
            return False
        least = self.journal.save_every and max(self.journal.save_every, LEAST_AGE * self.cost)
        return time.perf_counter() - self.saved >= least

    def save(self, epoch: int, batch: int, sums: tuple[Tensor, Tensor, int] | None = None) -> None:
        """Write a checkpoint, with sums over all processes; None: the epoch has not begun."""
        journal = self.journal
        if journal.save is None:
            return
        self.tick()
        begin = time.perf_counter()
        loss, errors, images = sums or (self.loss, self.errors, self.images)
        done = {"stage": self.stage.name, "epoch": epoch, "batch": batch}
        found = {"loss": loss.cpu(), "errors": errors.cpu(), "images": images}
        kept = {"rows": journal.rows, "seconds": journal.seconds}
        journal.save({**done, **found, **kept, "state": self.stage.state_dict()})
        self.saved = time.perf_counter()
        self.cost = self.saved - begin
