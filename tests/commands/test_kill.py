"""SIGKILL in the middle of every step: the same command goes on to the same result, bit by bit.

The moment is chosen by the checkpoints in the run folder, not by a clock.
``benchmarks/kill_test.py`` does the same with the digits recipe at twenty random moments.
"""

import csv
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 60
EVERY_STEP = ["--engine.checkpoint_seconds", "0"]


def log(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def kill_in(process: subprocess.Popen[str], checkpoints: Path, number: int) -> None:
    """Kill a process as soon as it has written the given checkpoint of a step."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (checkpoints / f"checkpoint-{number:08}.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()


@pytest.mark.parametrize(("step", "number"), [("pretrain", 5), ("search", 9), ("train", 7)])
def test_a_killed_run_ends_like_one_that_was_not(
    start, dsonas, longer, uninterrupted, tmp_path, step, number
):
    run = tmp_path / "run"
    process = start("run", *longer, *EVERY_STEP, "--out", run)
    kill_in(process, run / "checkpoints" / step, number)
    _, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    assert not (run / "metrics.json").exists()

    ended = dsonas("run", *longer, "--out", run)
    assert (ended.code, ended.err) == (0, "")
    assert f"resuming {step}" in ended.out
    for name in ("architecture.json", "network.safetensors", "chain.json", "factors.csv"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert log(run) == log(uninterrupted)
    rubbish = [path for path in run.rglob(".*") if path.name.endswith((".tmp", ".lock"))]
    assert rubbish == []


def test_a_run_killed_between_two_files_goes_on(dsonas, longer, uninterrupted, tmp_path):
    """Whichever of the last files is missing."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    for name in ("metrics.json", "network.safetensors", "report.html", "architecture.json"):
        (run / name).unlink(missing_ok=True)
        ended = dsonas("run", *longer, "--out", run)
        assert (ended.code, ended.err) == (0, "")
        (run / "metrics.json").unlink()
        for file in ("architecture.json", "network.safetensors"):
            assert (run / file).read_bytes() == (uninterrupted / file).read_bytes()
