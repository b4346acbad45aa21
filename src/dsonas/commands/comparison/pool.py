"""Work off many small jobs, each a process of its own, so that nothing is lost by a crash.

A job counts as done when its result is on disk. What holds its folder's lock is the process that
does it, not this one: if this one is killed, the next study waits for what is still running rather
than do it twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dsonas.commands.comparison.units import Unit

MAX_ATTEMPTS = 2
PAUSE, PATIENCE = 0.05, 5.0  # seconds: between two looks, and until a process is killed
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Workplace(Protocol):
    """Where jobs are done; see ``StudyFolder``."""

    def folder(self, unit: Unit) -> Path:
        """The folder of a job."""
        ...

    def is_done(self, unit: Unit) -> bool:
        """Whether its result is there."""
        ...

    def command(self, unit: Unit) -> list[str]:
        """The command that does it, or goes on with it; everything it needs is done."""
        ...

    def record(self, unit: Unit, exit_code: int, seconds: float) -> None:
        """Note an attempt and its processor time."""
        ...

    def finish(self, unit: Unit) -> None:
        """Write its result; raises ValueError or OSError if it left none."""
        ...


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Args:
        what: ``done``, ``retry`` or ``failed``.
        unit: the job.
        seconds: processor time of the attempt.
        reason: why it failed; empty if it did not.
    """

    what: str
    unit: Unit
    seconds: float = 0.0
    reason: str = ""


@dataclass
class _Running:
    unit: Unit
    process: subprocess.Popen[bytes]
    lock: IO[bytes]


class Pool:
    """Jobs in progress.

    Args:
        units: all jobs, those first in the list first.
        place: where they are done.
        processes: how many at a time, >= 1; each computes in one thread.
        stop: polled; True asks the running jobs to save and end, and starts no others.
        report: called with every event.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        place: Workplace,
        *,
        processes: int,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.place, self.processes = place, processes
        self.stop, self.report = stop, report
        self.done = {unit.name for unit in units if place.is_done(unit)}
        self.waiting = [unit for unit in units if unit.name not in self.done]
        self.failed: dict[str, str] = {}
        self.running: list[_Running] = []
        self.elsewhere: dict[str, float] = {}  # locked by another process; when last seen so
        self.attempts: dict[str, int] = {}
        self.stopping = False

    def run(self) -> None:
        """Work until everything is done or has failed, or until ``stop`` says so."""
        try:
            while self.turn():
                time.sleep(PAUSE)
        finally:
            self._end_all()

    def turn(self) -> bool:
        """See what has ended, start what can be started; whether there is more to wait for."""
        for item in list(self.running):
            self._look_at(item)
        if not self.stopping and self.stop():
            self.stopping = True
            for item in self.running:
                item.process.send_signal(signal.SIGINT)
        if not self.stopping:
            self._give_up_blocked()
            self._start_ready()
        return bool(self.running) or (bool(self.waiting) and not self.stopping)

    def _look_at(self, item: _Running) -> None:
        pid, status, usage = os.wait4(item.process.pid, os.WNOHANG)
        if pid == 0:
            return
        code = item.process.returncode = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime
        self.place.record(item.unit, code, seconds)
        reason = "" if code == 0 else f"exit code {code}: {_last_line(self._output(item.unit))}"
        if code == 0:
            try:
                self.place.finish(item.unit)
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
        self.running.remove(item)
        item.lock.close()
        self._conclude(item.unit, seconds, reason)

    def _conclude(self, unit: Unit, seconds: float, reason: str) -> None:
        if not reason:
            self.done.add(unit.name)
            self.report(Event("done", unit, seconds))
        elif self.stopping:
            self.waiting.insert(0, unit)
        else:
            self.attempts[unit.name] = self.attempts.get(unit.name, 0) + 1
            again = self.attempts[unit.name] < MAX_ATTEMPTS
            if again:
                self.waiting.insert(0, unit)
            else:
                self.failed[unit.name] = reason
            self.report(Event("retry" if again else "failed", unit, seconds, reason))

    def _give_up_blocked(self) -> None:
        for unit in list(self.waiting):
            lost = [name for name in unit.needs if name in self.failed]
            if lost:
                self.waiting.remove(unit)
                self.failed[unit.name] = f"{lost[0]} failed"

    def _start_ready(self) -> None:
        for unit in list(self.waiting):
            full = len(self.running) + len(self.elsewhere) >= self.processes
            if full and unit.name not in self.elsewhere:
                continue
            if all(name in self.done for name in unit.needs):
                self._try_to_start(unit)

    def _try_to_start(self, unit: Unit) -> None:
        if time.monotonic() - self.elsewhere.get(unit.name, -PATIENCE) < 1:
            return
        lock = _locked(self.place.folder(unit) / "lock")
        if lock is None:
            self.elsewhere[unit.name] = time.monotonic()
            return
        self.elsewhere.pop(unit.name, None)
        self.waiting.remove(unit)
        if self.place.is_done(unit):  # by another study on the same folder, in the meantime
            lock.close()
            self._conclude(unit, 0.0, "")
            return
        try:
            process = self._start(unit, lock)
        except (ValueError, OSError) as error:
            lock.close()
            self._conclude(unit, 0.0, " ".join(str(error).split()))
            return
        self.running.append(_Running(unit, process, lock))

    def _start(self, unit: Unit, lock: IO[bytes]) -> subprocess.Popen[bytes]:
        with open(self._output(unit), "ab") as output:
            return subprocess.Popen(
                self.place.command(unit),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C comes to us alone; we pass it on once
                pass_fds=[lock.fileno()],
            )

    def _output(self, unit: Unit) -> Path:
        return self.place.folder(unit) / "output.txt"

    def _end_all(self) -> None:
        """End what still runs; only after a second signal or an error is there anything."""
        for item in self.running:
            item.process.terminate()
        for item in self.running:
            try:
                item.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                item.process.kill()
                item.process.wait()
            item.lock.close()
        self.running.clear()


def _locked(path: Path) -> IO[bytes] | None:
    """A file whose lock we, and the process it is handed to, hold; None if another holds it."""
    import fcntl  # there is none on Windows, where the other commands work

    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "wb")  # noqa: SIM115 - it stays open as long as the job runs
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1][:200] if lines else "no output"
