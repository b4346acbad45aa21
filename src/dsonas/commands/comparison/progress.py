"""How far a study has come, in a line for each job that ends, and the time that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsonas.commands.comparison.pool import Event
from dsonas.commands.comparison.units import Unit


class Progress:
    """Counts jobs and estimates the time left.

    Args:
        units: all jobs.
        pending: those that are not done yet.
        processes: how many run at a time.
    """

    def __init__(self, units: Sequence[Unit], pending: Sequence[Unit], processes: int) -> None:
        self.total, self.time_left = len(units), TimeLeft(pending, processes)

    def line(self, event: Event, result: Mapping[str, Any]) -> str:
        """What to print when a job has ended.

        Args:
            event: its end.
            result: what it found; empty if it failed.
        """
        if event.what != "retry":
            self.time_left.note(event.unit, event.seconds)
        done = self.total - len(self.time_left.left)
        text = f"[{done:>{len(str(self.total))}}/{self.total}] {event.unit.name}: "
        return f"{text}{_outcome(event, result)}{_left(self.time_left)}"


def _outcome(event: Event, result: Mapping[str, Any]) -> str:
    if event.what != "done":
        return f"{'failed' if event.what == 'failed' else 'failed, tried again'}: {event.reason}"
    if "test_error" in result:
        return f"test error {result['test_error']:.2f} %"
    if "validation_error" in result:
        return f"held-out error {result['validation_error']:.2f} %"
    if "live_connections" in result:
        return f"{result['live_connections']} of {result['supernet_connections']} connections"
    return f"{len(result.get('errors', ()))} architectures judged"


def _left(time_left: TimeLeft) -> str:
    seconds = time_left.seconds_left
    if seconds is None or not time_left.left:
        return ""
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"  ({hours} h {minutes} min left)" if hours else f"  ({minutes} min left)"


class TimeLeft:
    """Estimates the time to the end from jobs of the same kind that are done.

    Args:
        units: all jobs that are not done yet.
        processes: how many run at a time.
    """

    def __init__(self, units: Sequence[Unit], processes: int) -> None:
        self.left = {unit.name: unit for unit in units}
        self.processes = processes
        self.seconds: dict[str, float] = {}
        self.work: dict[str, int] = {}

    def note(self, unit: Unit, seconds: float) -> None:
        """A job has ended, for good."""
        self.left.pop(unit.name, None)
        if seconds > 0:
            self.seconds[unit.kind] = self.seconds.get(unit.kind, 0.0) + seconds
            self.work[unit.kind] = self.work.get(unit.kind, 0) + unit.work

    @property
    def seconds_left(self) -> float | None:
        """Wall time to the end; None before the first job is done.

        A kind of which none is done yet is taken at the mean pace of the others.
        """
        if not sum(self.work.values()):
            return None
        mean = sum(self.seconds.values()) / sum(self.work.values())
        pace = {kind: self.seconds[kind] / work for kind, work in self.work.items() if work}
        total = sum(unit.work * pace.get(unit.kind, mean) for unit in self.left.values())
        return total / min(self.processes, max(1, len(self.left)))
