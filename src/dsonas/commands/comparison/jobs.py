"""Work off the jobs of a study through joblib: on this machine, or on a cluster of Ray or Dask.

A job is a process of its own, and done when its ``result.json`` is on disk. joblib's workers only
start these processes and wait for them: a job that dies takes no worker with it, and a worker that
dies takes no result with it. Every worker imports this file, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import joblib

from dsonas._utils import PositiveInt, check_settings

GOES_ON = ".going-on"  # in the study's folder: as long as it is there, jobs go on
STOPPED = "stopped"
MAX_ATTEMPTS = 2
PAUSE, PATIENCE = 0.1, 5.0  # seconds: between two looks, and until a process is killed
IDLE = 30  # seconds, after which a worker without work ends: its study may have been killed
_IGNORED = (signal.SIGINT, signal.SIG_IGN)
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One job of a study."""

    name: str  # unique; also its folder
    kind: str  # search, train, trial (of a random search), rank (random networks, by a supernet)
    method: str = ""  # one of study.METHODS, whom its cost belongs to; none of a ranking
    space: str = ""  # share or full; none of hand-made networks, which stand beside both
    subject: str = ""  # the architecture that it finds or trains, or ranks the likes of
    budget: int | None = None  # its position in the study; None where it plays no role
    seed: int = 0
    needs: tuple[str, ...] = ()  # names of the jobs whose results it takes
    work: int = field(default=0, compare=False)  # counted multiply-adds of all its images


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Where the jobs of a study run."""

    number: PositiveInt | None = None  # at a time; None: one for each core of machine or cluster
    backend: Literal["loky", "ray", "dask"] = "loky"
    address: str | None = None  # of the cluster; None: as the environment says, or here

    def __post_init__(self) -> None:
        check_settings(self, "jobs")
        if self.backend == "loky" and self.address:
            raise ValueError(
                f"jobs.address must be left out of this machine, got {self.address!r}: or give "
                "jobs.backend ray or dask"
            )
        module = self.backend.replace("dask", "distributed")
        if self.backend != "loky" and find_spec(module) is None:
            wanted = f"pip install 'dsonas[{self.backend}]'"
            raise ValueError(f"jobs.backend must be installed, got {self.backend!r}: {wanted}")

    @contextmanager
    def workers(self) -> Iterator[int]:
        """Let joblib use them while the context is open; gives how many jobs run at a time."""
        options: dict[str, Any] = {}
        with ExitStack() as stack:
            if self.backend == "loky":
                options = {"idle_worker_timeout": IDLE}
                # Ctrl-C, which the terminal sends to all its processes, is the study's to answer
                options |= {"initializer": signal.signal, "initargs": _IGNORED}
            elif self.backend == "ray":
                stack.callback(_start_ray(self.address))
            else:
                from distributed import Client

                address = self.address or os.environ.get("DASK_SCHEDULER_ADDRESS")
                # workers here are threads, since Ctrl-C would end processes of Dask
                here = {} if address else {"processes": False, "dashboard_address": ":0"}
                options = {"client": stack.enter_context(Client(address, **here))}
            number = self.number or -1
            stack.enter_context(joblib.parallel_config(self.backend, n_jobs=number, **options))
            yield self.number or joblib.effective_n_jobs(-1)


def _start_ray(address: str | None) -> Callable[[], None]:
    import ray
    from ray.util.joblib.ray_backend import RayBackend

    class Unordered(RayBackend):
        supports_return_generator = True  # Ray's pool can, multiprocessing's cannot

    joblib.register_parallel_backend("ray", Unordered)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    return ray.shutdown


def run_job(path: str, name: str, command: Sequence[str], cwd: str) -> tuple[str, float, str]:
    """Do a job, as its worker does; its name, seconds, and why it failed: "" or STOPPED if not."""
    folder, begun, asked = Path(path, "jobs", name), time.monotonic(), False
    if not goes_on(path):
        return name, 0.0, STOPPED
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command, name], cwd=cwd, env={**os.environ, **ONE_THREAD},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C comes to the study alone, which passes it on once
        )  # fmt: skip
    try:
        while process.poll() is None:
            if not asked and not goes_on(path):
                process.terminate()  # asks it to save; Ray's workers would block SIGINT
                asked = True
            time.sleep(PAUSE)
    finally:  # it still runs if this has been interrupted
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
    code, seconds = process.returncode, time.monotonic() - begun
    if code == 0:
        return name, seconds, "" if result_file(path, name).exists() else "it left no result"
    if asked:
        return name, seconds, STOPPED
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    return name, seconds, f"{how}: {lines[-1][:200] if lines else 'no output'}"


def goes_on(path: str | Path) -> bool:
    """Whether a study is not to stop; a listing tells on network disks what a look-up does not."""
    return os.path.isdir(path) and GOES_ON in os.listdir(path)


@contextmanager
def _going_on(path: Path, stop: Callable[[], bool]) -> Iterator[None]:
    """Keep ``GOES_ON`` in a folder while the context is open, and until ``stop`` says so."""
    flag, over = path / GOES_ON, threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE) and not stop():
            pass
        flag.unlink(missing_ok=True)

    path.mkdir(parents=True, exist_ok=True)
    flag.touch()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@dataclass
class Pool:
    """The jobs of a study that have no result yet, those first in the list first."""

    units: Sequence[Unit]  # all jobs, none before one that it needs
    path: Path  # the study's folder
    command: Sequence[str]  # arguments of Python that, before the name of a job, do it or go on
    config: JobsConfig
    say: Callable[[str], None] = print  # called with a line whenever a job ends

    def __post_init__(self) -> None:
        self.done = {u.name for u in self.units if result_file(self.path, u.name).exists()}
        self.failed: dict[str, str] = {}
        self.attempts, self.losses = Counter[str](), 0

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Do them until all are done or have failed, or until ``stop`` says so; whether it has.

        A job that fails is tried once more, and the others go on. So they do if a worker dies.
        """
        with _going_on(self.path, stop), self.config.workers() as at_once:
            counts = f"{len(self.units)} jobs, {len(self.done)} of them done"
            self.say(f"{counts}, {at_once} at a time, in {self.path}")
            self.waiting = [unit for unit in self.units if unit.name not in self.done]
            time_left = TimeLeft(self.waiting, at_once)
            while goes_on(self.path) and self._next() is not None:
                for name, seconds, reason in self._ended(at_once):
                    if reason == STOPPED and goes_on(self.path):
                        reason = f"its worker finds no {self.path}: share it with all machines"
                    if reason != STOPPED:
                        self._note(name, seconds, reason, time_left)
                ended = self.done | set(self.failed)
                self.waiting = [unit for unit in self.units if unit.name not in ended]
            stopped = not goes_on(self.path)
        for unit in self.waiting:
            if lost := [name for name in unit.needs if name in self.failed]:
                self.failed[unit.name] = f"{lost[0]} failed"
        return stopped

    def _next(self) -> Unit | None:
        return next((unit for unit in self.waiting if self.done.issuperset(unit.needs)), None)

    def _ready(self) -> Iterator[Any]:
        """What can start now; joblib asks for more whenever a job has ended."""
        while goes_on(self.path) and (unit := self._next()) is not None:
            self.waiting.remove(unit)
            yield joblib.delayed(run_job)(str(self.path), unit.name, self.command, os.getcwd())

    def _ended(self, at_once: int) -> Iterator[tuple[str, float, str]]:
        """What the workers report; ends before its time if one of them has died."""
        settings: Any = {"return_as": "generator_unordered", "batch_size": 1}
        parallel: Any = joblib.Parallel(**settings, pre_dispatch=at_once)  # pyright: ignore
        try:
            yield from parallel(self._ready())
        except Exception as error:  # each backend has its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.losses += 1
            if self.losses == MAX_ATTEMPTS:
                raise ValueError(
                    f"workers of jobs.backend {self.config.backend} die ({reason}): free memory "
                    "or lower jobs.number; the same command goes on"
                ) from None
            self.say(f"a worker has died, its jobs are taken up again ({reason})")

    def _note(self, name: str, seconds: float, reason: str, time_left: TimeLeft) -> None:
        """Say that a job is done, or has failed for a reason, for good or to be tried again."""
        unit = next(unit for unit in self.units if unit.name == name)
        self.attempts[name] += 1
        if not reason:
            self.done.add(name)
            self.losses = 0
            outcome = _found(read_json(result_file(self.path, name)))
        elif self.attempts[name] == MAX_ATTEMPTS:
            self.failed[name] = reason
            outcome = f"failed: {reason}"
        else:
            self.waiting.insert(0, unit)
            outcome = f"failed, tried again: {reason}"
        if name in self.done or name in self.failed:
            time_left.note(unit, seconds)
        total, done = len(self.units), len(self.done) + len(self.failed)
        self.say(f"[{done:>{len(str(total))}}/{total}] {name}: {outcome}{time_left}")


def result_file(path: str | Path, name: str) -> Path:
    """Where the result of a job of the study in a folder is, once it is done."""
    return Path(path, "jobs", name, "result.json")


def read_json(path: Path, name: str | None = None) -> Any:
    """Read a file of a study, such as the result of a job of that name.

    Raises:
        ValueError: if it is damaged, or the result of another job.
        OSError: if it is missing.
    """
    try:
        value = json.loads(path.read_text())
        if name is None or value["name"] == name:
            return value
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged: delete it and repeat the command")


def to_json(value: Any) -> bytes:
    """JSON text of a value, as all files of a study hold it."""
    return (json.dumps(value, indent=1) + "\n").encode()


class TimeLeft:
    """The time to the end of jobs, by the pace of each kind."""

    def __init__(self, units: Sequence[Unit], at_once: int) -> None:
        self.left, self.at_once = {unit.name: unit for unit in units}, at_once
        self.seconds: dict[str, float] = defaultdict(float)
        self.work = Counter[str]()

    def note(self, unit: Unit, seconds: float) -> None:
        """A job has ended for good."""
        self.left.pop(unit.name, None)
        if seconds > 0:
            self.seconds[unit.kind] += seconds
            self.work[unit.kind] += unit.work

    @property
    def seconds_left(self) -> float | None:
        """Wall time; a kind of which none is done is taken at the mean pace of the others."""
        if not self.work.total():
            return None
        mean = sum(self.seconds.values()) / self.work.total()
        pace = {kind: self.seconds[kind] / work for kind, work in self.work.items() if work}
        total = sum(unit.work * pace.get(unit.kind, mean) for unit in self.left.values())
        return total / min(self.at_once, max(1, len(self.left)))

    def __str__(self) -> str:
        if not self.left or self.seconds_left is None:
            return ""
        hours, minutes = divmod(max(1, round(self.seconds_left / 60)), 60)
        return f"  ({f'{hours} h ' if hours else ''}{minutes} min left)"


def _found(result: Mapping[str, Any]) -> str:
    for key, name in (("test_error", "test"), ("validation_error", "held-out")):
        if key in result:
            return f"{name} error {result[key]:.2f} %"
    if "live_connections" in result:
        return f"{result['live_connections']} of {result['supernet_connections']} connections"
    return f"{len(result.get('errors', ()))} architectures judged"
