"""The pool of jobs, with shell commands for jobs: order, retries, signals, kills, clusters."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dsonas.commands.comparison.jobs import STOPPED, JobsConfig, Pool, TimeLeft, Unit, run_job

pytestmark = pytest.mark.slow

SHELL = """
import json, os, sys
path, name = sys.argv[1:]
os.chdir(f"{path}/jobs/{name}")
os.execvp("sh", ["sh", "-c", json.load(open(f"{path}/commands.json"))[name]])
"""
DONE = "echo '{\"test_error\": 1}' > result.json"


def shell(path: Path, **commands: str) -> list[str]:
    """A program whose jobs are shell commands, each in the folder of its job."""
    path.mkdir(exist_ok=True)
    (path / "commands.json").write_text(json.dumps(commands))
    (path / "shell.py").write_text(SHELL)
    return [str(path / "shell.py"), str(path)]


def units(**needs: tuple[str, ...]) -> list[Unit]:
    return [Unit(name=name, kind="train", needs=wanted, work=1) for name, wanted in needs.items()]


def work(
    path: Path, jobs: list[Unit], number: int = 2, stop=lambda: False, backend="loky", **commands
) -> tuple[Pool, bool, list[str]]:
    """The pool after its work, whether it was stopped, and what it has said but for the heading."""
    said: list[str] = []
    config = JobsConfig(number=number, backend=backend)
    pool = Pool(jobs, path, shell(path, **commands), config, said.append)
    stopped = pool.run(stop)
    assert not (path / ".going-on").exists()
    return pool, stopped, [line.split("] ")[-1].split("  (")[0] for line in said[1:]]


def job(path: Path, name: str) -> Path:
    return path / "jobs" / name


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.fixture(params=[1, 2])
def number(request):
    """One job at a time, in this process, and two, in workers."""
    return request.param


def test_jobs_wait_for_what_they_need(tmp_path, number):
    commands = {"a": f"sleep 0.3; {DONE}", "b": f"test -e ../a/result.json && {DONE}"}
    pool, stopped, said = work(tmp_path, units(b=("a",), a=()), number, **commands)
    assert said == ["a: test error 1.00 %", "b: test error 1.00 %"]
    assert (pool.failed, stopped) == ({}, False)


def test_jobs_run_side_by_side_but_not_more_than_asked(tmp_path):
    command = f"echo start >> ../../log; sleep 0.5; echo end >> ../../log; {DONE}"
    work(tmp_path, units(a=(), b=(), c=()), **dict.fromkeys("abc", command))
    running, most = 0, 0
    for line in (tmp_path / "log").read_text().split():
        running += 1 if line == "start" else -1
        most = max(most, running)
    assert most == 2


def test_a_job_has_one_thread(tmp_path, number, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    command = "; ".join(f"echo ${name} >> threads" for name in names)
    work(tmp_path, units(a=(), b=()), number, **dict.fromkeys("ab", f"{command}; {DONE}"))
    assert (job(tmp_path, "b") / "threads").read_text().split() == ["1"] * 3


def test_a_failed_job_is_tried_once_more_and_does_not_stop_others(tmp_path, number):
    commands = {
        "once": f"test -e again && {DONE}; touch again; test -e result.json",
        "never": "echo first >&2; echo the reason >&2; exit 3",
        "after": DONE,
        "after_that": DONE,
        "other": DONE,
        "empty": "true",
        "killed": "kill -9 $$",
    }
    needs = {"after": ("never",), "after_that": ("after",)}
    jobs = units(**{name: needs.get(name, ()) for name in commands})
    pool, _, said = work(tmp_path, jobs, number, **commands)
    assert sorted(said) == sorted([
        "once: failed, tried again: exit code 1: no output", "once: test error 1.00 %",
        "never: failed, tried again: exit code 3: the reason",
        "never: failed: exit code 3: the reason",
        "other: test error 1.00 %",
        "empty: failed, tried again: it left no result", "empty: failed: it left no result",
        "killed: failed, tried again: SIGKILL: no output", "killed: failed: SIGKILL: no output",
    ])  # fmt: skip
    assert pool.failed == {
        "never": "exit code 3: the reason",
        "after": "never failed",
        "after_that": "after failed",
        "empty": "it left no result",
        "killed": "SIGKILL: no output",
    }
    assert (job(tmp_path, "never") / "output.txt").read_text().count("the reason") == 2


def test_what_is_done_is_not_done_again(tmp_path, number):
    jobs = units(a=(), b=())
    work(tmp_path, jobs, number, **dict.fromkeys("ab", DONE))
    _, stopped, said = work(tmp_path, jobs, number, **dict.fromkeys("ab", "touch again; false"))
    assert (stopped, said) == (False, [])
    assert not (job(tmp_path, "a") / "again").exists()


SAVES = (
    f"test -e saved && {DONE} && exit 0; trap 'echo x >> signals' TERM; touch begun; "
    "while ! test -e signals; do sleep 0.05; done; sleep 0.5; touch saved; exit 143"
)


CLUSTERS = [pytest.param(2, name, marks=pytest.mark.slow) for name in ("ray", "dask")]


@pytest.mark.parametrize(("number", "backend"), [(1, "loky"), (2, "loky"), *CLUSTERS])
def test_a_stop_asks_once_and_waits_for_the_jobs_to_save(tmp_path, number, backend):
    """The job counts the signals that it gets; it is not failed, and goes on the next time."""
    commands, jobs = {"a": SAVES, "b": f"sleep 3; {DONE}", "c": DONE}, units(a=(), b=(), c=("b",))
    begun = job(tmp_path, "a") / "begun"
    pool, stopped, said = work(tmp_path, jobs, number, begun.exists, backend, **commands)
    assert (stopped, pool.failed, said) == (True, {}, [])
    assert (job(tmp_path, "a") / "signals").read_text() == "x\n"
    _, stopped, said = work(tmp_path, jobs, 1, **commands)
    assert not stopped
    assert sorted(said) == [f"{name}: test error 1.00 %" for name in "abc"]


def test_an_error_ends_the_jobs(tmp_path, number):
    """Such as a second Ctrl-C, which raises here while the pool waits."""

    def interrupt() -> None:
        wait_for((job(tmp_path, "a") / "pid").exists)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path, units(a=()), number, a="echo $$ > pid; exec sleep 60")
    finally:
        interrupter.join()
        signal.signal(signal.SIGINT, before)
    pid = int((job(tmp_path, "a") / "pid").read_text())
    wait_for(lambda: not is_alive(pid), 10)
    assert not (tmp_path / ".going-on").exists()


DRIVER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from test_jobs import *
from dsonas.run import StopSignal
if __name__ == "__main__":
    with StopSignal() as stop:
        stop.wait_for_step()
        commands = dict.fromkeys("ab", {command!r})
        work(Path({folder!r}), units(a=(), b=()), {number}, stop, {backend!r}, **commands)
"""


drivers: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_driver_stays():
    yield
    while drivers:
        drivers.pop().kill()


def start_driver(
    path: Path, number: int, command: str, backend: str = "loky"
) -> subprocess.Popen[bytes]:
    given = {"folder": str(path), "number": number, "command": command, "backend": backend}
    text = DRIVER.format(paths=[str(Path(__file__).parent)], **given)
    driver = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    drivers.append(driver)
    return driver


def test_a_killed_study_leaves_its_jobs_running_to_their_end(tmp_path, number):
    command = f"echo start >> ../../log; sleep 1; {DONE}"
    driver = start_driver(tmp_path, number, command)
    wait_for((tmp_path / "log").exists)
    driver.kill()
    driver.wait()
    wait_for((job(tmp_path, "a") / "result.json").exists, 10)
    pool, _, _ = work(tmp_path, units(a=(), b=()), number, a="false", b=DONE)
    assert pool.failed == {}


@pytest.mark.parametrize(("number", "backend"), [(2, "loky"), *CLUSTERS])
def test_ctrl_c_goes_to_all_processes_of_the_terminal_and_jobs_save(tmp_path, number, backend):
    driver = start_driver(tmp_path, number, SAVES, backend)
    wait_for(lambda: all((job(tmp_path, name) / "begun").exists() for name in "ab"))
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 0
    for name in "ab":
        assert (job(tmp_path, name) / "signals").read_text() == "x\n"
        assert (job(tmp_path, name) / "saved").exists()


def test_a_worker_that_dies_takes_nothing_with_it(tmp_path):
    """The parent of a job is its worker: the job itself goes on, the others are taken up again."""
    kills = f"test -e once || {{ touch once; kill -9 $PPID; }}; sleep 0.5; {DONE}"
    commands = {"a": kills, "b": f"sleep 1; {DONE}", "c": DONE}
    pool, _, said = work(tmp_path, units(a=(), b=(), c=()), **commands)
    assert pool.failed == {}
    assert sum("a worker has died" in line for line in said) == 1
    assert sorted(said)[1:] == [f"{name}: test error 1.00 %" for name in "abc"]


def test_workers_that_die_again_and_again_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"workers of jobs\.backend loky die .* goes on"):
        work(tmp_path, units(a=(), b=()), **dict.fromkeys("ab", "kill -9 $PPID; sleep 5"))


def test_a_worker_without_the_folder_says_so(tmp_path, monkeypatch):
    """A machine of a cluster that does not share the disk sees no study there."""
    assert run_job(str(tmp_path), "a", [], str(tmp_path)) == ("a", 0.0, STOPPED)
    monkeypatch.setattr(
        "dsonas.commands.comparison.jobs.run_job", lambda path, name, *_: (name, 0.0, STOPPED)
    )
    pool, stopped, _ = work(tmp_path, units(a=()), 1, a=DONE)
    assert not stopped
    assert "share it with all machines" in pool.failed["a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"number": 0}, "jobs.number must be a whole number > 0 or null, got 0"),
        ({"backend": "slurm"}, "jobs.backend must be one of loky, ray, dask, got 'slurm'"),
        ({"address": "tcp://a:1"}, "jobs.address must be left out"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        JobsConfig(**options)


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("dsonas.commands.comparison.jobs.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dsonas\[dask\]'"):
        JobsConfig(backend="dask")


def test_the_time_left_follows_the_pace_of_each_kind():
    jobs = [
        Unit(name="s", kind="search", work=100),
        Unit(name="t", kind="train", work=10),
        Unit(name="u", kind="train", work=30),
        Unit(name="v", kind="rank", work=10),
    ]
    left = TimeLeft(jobs, 2)
    assert (left.seconds_left, str(left)) == (None, "")
    left.note(jobs[0], 100.0)
    assert left.seconds_left == pytest.approx((10 + 30 + 10) / 2)
    assert str(left) == "  (1 min left)"
    left.note(jobs[1], 20.0)
    assert left.seconds_left == pytest.approx((30 * 2 + 10 * 120 / 110) / 2)
    left.note(jobs[2], 60.0)
    left.note(jobs[3], 0.0)
    assert (left.seconds_left, str(left)) == (0, "")
    left = TimeLeft([jobs[0], Unit(name="w", kind="train", work=7200)], 1)
    left.note(jobs[0], 100.0)
    assert str(left) == "  (2 h 0 min left)"


def test_every_end_of_a_job_is_a_line(tmp_path):
    said: list[str] = []
    tests = f"test -e again && {DONE.replace('1}', '1.234}')}; touch again; test -e result.json"
    commands = shell(tmp_path, a=tests, b="echo z; exit 1")
    Pool(units(a=(), b=()), tmp_path, commands, JobsConfig(number=1), said.append).run()
    assert said == [
        f"2 jobs, 0 of them done, 1 at a time, in {tmp_path}",
        "[0/2] a: failed, tried again: exit code 1: no output",
        "[1/2] a: test error 1.23 %  (1 min left)",
        "[1/2] b: failed, tried again: exit code 1: z  (1 min left)",
        "[2/2] b: failed: exit code 1: z",
    ]
