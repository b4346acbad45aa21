"""SIGINT and SIGTERM to a real process: it saves, says how to resume, and nothing is lost."""

import csv
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

MARKS = {"pretrain": "1 pretrain", "search": "2 search", "train": "3 train"}


def read_until(process: subprocess.Popen[str], mark: str) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if mark in line:
            return
    raise AssertionError(f"the process ended before it printed {mark!r}")


def log(run: Path) -> list[dict[str, str]]:
    with open(run / "log.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("pretrain", signal.SIGINT),
        ("search", signal.SIGINT),
        ("train", signal.SIGINT),
        ("search", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_result(
    start, dsonas, longer, uninterrupted, tmp_path, step, number
):
    run = tmp_path / "my run"
    process = start("run", *longer, "--out", run)
    seen = list(read_until(process, MARKS[step]))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert err.count("stopping after this step") == 1
    again = out.splitlines()[-1].partition("resume with: ")[2]
    assert MARKS[step] in (seen[-1] + out)
    assert not (run / "metrics.json").exists()
    assert list((run / "checkpoints" / step).iterdir())

    arguments = shlex.split(again)
    assert arguments[0] == "dsonas"
    ended = dsonas(*arguments[1:])
    assert ended.code == 0
    assert f"resuming {step}" in ended.out
    names = [run / "architecture.json" for run in (run, uninterrupted)]
    assert names[0].read_bytes() == names[1].read_bytes()
    new, old = (load_file(folder / "network.safetensors") for folder in (run, uninterrupted))
    assert new.keys() == old.keys()
    assert all(new[name].tobytes() == old[name].tobytes() for name in old)
    assert log(run) == log(uninterrupted)
    factors = [folder / "factors.csv" for folder in (run, uninterrupted)]
    assert factors[0].read_bytes() == factors[1].read_bytes()


def test_a_second_signal_stops_at_once(start, tmp_path):
    large = "--network.channels 64 --network.levels 4 --pretrain.batch_size 500"
    process = start("run", *large.split(), "--out", tmp_path / "run", "--engine.threads", 1)
    list(read_until(process, "supernet"))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    began = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert time.perf_counter() - began < 30
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted at once" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


SIGNAL_ITSELF = """
import os, sys, threading
from dsonas.commands.cli import main
threading.Timer({seconds}, os.kill, (os.getpid(), {number})).start()
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_is_one_line(start, tmp_path, number, code):
    arguments = ["run", "--out", str(tmp_path / "run")]
    text = SIGNAL_ITSELF.format(seconds=0.2, number=int(number), arguments=arguments)
    process = start(program=("-c", text))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("dsonas: interrupted at once")
    assert not (tmp_path / "run").exists()


def test_output_that_nobody_reads_is_no_error(start, finished):
    process = start("evaluate", "--run", finished)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
