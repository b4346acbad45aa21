"""The pool of jobs, with shell commands for jobs: order, retries, signals, kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsonas.commands.comparison.pool import Event, Pool
from dsonas.commands.comparison.progress import Progress, TimeLeft
from dsonas.commands.comparison.units import Unit


class Shell:
    """A workplace whose jobs are shell commands; a job's result is the file ``result``."""

    def __init__(self, path: Path, commands: dict[str, str]) -> None:
        self.path, self.commands = path, commands
        self.attempts: list[tuple[str, int]] = []

    def folder(self, unit: Unit) -> Path:
        return self.path / unit.name

    def is_done(self, unit: Unit) -> bool:
        return (self.folder(unit) / "result").exists()

    def command(self, unit: Unit) -> list[str]:
        return ["sh", "-c", f"cd {self.folder(unit)}; {self.commands[unit.name]}"]

    def record(self, unit: Unit, exit_code: int, seconds: float) -> None:
        assert seconds >= 0
        self.attempts.append((unit.name, exit_code))

    def finish(self, unit: Unit) -> None:
        if not (self.folder(unit) / "out").exists():
            raise OSError("no file out")
        (self.folder(unit) / "result").write_text("")


def units(**needs: tuple[str, ...]) -> list[Unit]:
    return [Unit(name=name, kind="train", needs=wanted, work=1) for name, wanted in needs.items()]


def work(place: Shell, jobs: list[Unit], processes: int = 2, **options) -> tuple[Pool, list[str]]:
    events: list[Event] = []
    pool = Pool(jobs, place, processes=processes, report=events.append, **options)
    pool.run()
    return pool, [f"{event.what} {event.unit.name}" for event in events]


@pytest.fixture(autouse=True)
def heard_interrupts():
    """Tests started in the background ignore SIGINT, and shells could not trap it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_jobs_wait_for_what_they_need(tmp_path):
    place = Shell(tmp_path, {"a": "sleep 0.3; touch out", "b": "test -e ../a/result && touch out"})
    pool, events = work(place, units(b=("a",), a=()))
    assert events == ["done a", "done b"]
    assert pool.failed == {}


def test_jobs_run_side_by_side_but_not_more_than_asked(tmp_path):
    log = tmp_path / "log"
    command = f"echo start >> {log}; sleep 0.3; echo end >> {log}; touch out"
    jobs = units(a=(), b=(), c=())
    work(Shell(tmp_path, dict.fromkeys("abc", command)), jobs)
    running, most = 0, 0
    for line in log.read_text().split():
        running += 1 if line == "start" else -1
        most = max(most, running)
    assert most == 2


def test_a_failed_job_is_tried_once_more_and_does_not_stop_others(tmp_path):
    commands = {
        "once": "test -e again && touch out; touch again; test -e out",
        "never": "echo first >&2; echo the reason >&2; exit 3",
        "after": "touch out",
        "other": "touch out",
        "empty": "true",
    }
    place = Shell(tmp_path, commands)
    jobs = units(once=(), never=(), after=("never",), other=(), empty=())
    pool, events = work(place, jobs)
    assert sorted(events) == sorted(
        ["retry once", "done once", "retry never", "failed never", "done other", "retry empty",
         "failed empty"]
    )  # fmt: skip
    assert pool.failed == {
        "never": "exit code 3: the reason",
        "after": "never failed",
        "empty": "no file out",
    }
    assert place.attempts.count(("never", 3)) == 2
    assert (tmp_path / "never" / "output.txt").read_text().count("the reason") == 2


def test_what_is_done_is_not_done_again(tmp_path):
    jobs = units(a=(), b=())
    work(Shell(tmp_path, dict.fromkeys("ab", "touch out")), jobs)
    place = Shell(tmp_path, dict.fromkeys("ab", "false"))
    assert work(place, jobs)[1] == []
    assert place.attempts == []


def test_a_stop_asks_once_and_waits_for_the_jobs_to_save(tmp_path):
    """The job counts the signals that it gets; it is not failed, and goes on the next time."""
    slow = (
        "test -e saved && touch out && exit 0; trap 'echo x >> signals' INT; touch begun; "
        "while ! test -e signals; do sleep 0.05; done; touch saved; exit 130"
    )
    place = Shell(tmp_path, {"a": slow, "b": "touch out"})
    begun = tmp_path / "a" / "begun"
    pool, events = work(place, units(a=(), b=()), processes=1, stop=begun.exists)
    assert (pool.stopping, pool.failed, events) == (True, {}, [])
    assert (tmp_path / "a" / "signals").read_text() == "x\n"
    assert place.attempts == [("a", 130)]
    assert work(place, units(a=(), b=()))[1] == ["done a", "done b"]


def test_an_error_ends_the_jobs(tmp_path):
    def stop() -> bool:
        if (tmp_path / "a" / "pid").exists():
            raise KeyboardInterrupt
        return False

    place = Shell(tmp_path, {"a": "echo $$ > pid; exec sleep 60"})
    with pytest.raises(KeyboardInterrupt):
        work(place, units(a=()), stop=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a" / "pid").read_text()), 0)


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_pool import Shell, units, work
work(Shell(Path({folder!r}), dict.fromkeys("ab", {command!r})), units(a=(), b=()), processes=1)
"""


def test_a_killed_study_leaves_its_job_running_and_the_next_waits_for_it(tmp_path):
    """SIGKILL: the job lives on; the next study does not start it a second time meanwhile."""
    command = "echo start >> ../log; sleep 1; test -e out || echo work >> ../log; touch out"
    text = DRIVER.format(paths=[str(Path(__file__).parent)], folder=str(tmp_path), command=command)
    driver = subprocess.Popen([sys.executable, "-c", text])
    log, deadline = tmp_path / "log", time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    place = Shell(tmp_path, dict.fromkeys("ab", command))
    pool, events = work(place, units(a=(), b=()), processes=1)
    assert (pool.failed, events) == ({}, ["done a", "done b"])
    lines = log.read_text().split()
    assert lines[:3] == ["start", "work", "start"]  # a's second start sees that the work is done
    assert lines.count("work") == 2


def test_the_time_left_follows_the_pace_of_each_kind():
    jobs = [
        Unit(name="s", kind="search", work=100),
        Unit(name="t", kind="train", work=10),
        Unit(name="u", kind="train", work=30),
        Unit(name="v", kind="rank", work=10),
    ]
    left = TimeLeft(jobs, processes=2)
    assert left.seconds_left is None
    left.note(jobs[0], 100.0)
    assert left.seconds_left == pytest.approx((10 + 30 + 10) / 2)
    left.note(jobs[1], 20.0)
    assert left.seconds_left == pytest.approx((30 * 2 + 10 * 120 / 110) / 2)
    left.note(jobs[2], 60.0)
    left.note(jobs[3], 0.0)
    assert left.seconds_left == 0


def test_every_end_of_a_job_is_a_line():
    job = Unit(name="train-x", kind="train", work=10)
    other = Unit(name="search-y", kind="search", work=7200)
    progress = Progress([job, other], [job, other], processes=1)
    line = progress.line(Event("retry", job, reason="exit code 1: no memory"), {})
    assert line == "[0/2] train-x: failed, tried again: exit code 1: no memory"
    line = progress.line(Event("done", job, 10.0), {"test_error": 1.234})
    assert line == "[1/2] train-x: test error 1.23 %  (2 h 0 min left)"
    line = progress.line(Event("failed", other, 10.0, "z"), {})
    assert line == "[2/2] search-y: failed: z"
