"""Is a run that is killed at a random moment, and resumed, the same as one that was not?

A run of the digits recipe is measured once without interruption. Then others are started, killed by
SIGKILL at moments drawn uniformly from that time, start and report included, and resumed by the
same command. Their architecture and weights are compared with the first one's, bit by bit.

The recipe itself takes a minute; the default here is half its channels and fewer epochs, with the
same data and steps, one thread, and a checkpoint every half second; ``--run`` takes others. The
command repeated goes on where it ended.

    python benchmarks/kill_test.py --out benchmarks/results/kill-test.json
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from dsonas.train import STAGES
from dsonas.train.checkpoints import read_checkpoint
from small_study import Study

SHORTER = (
    "--config digits --network.channels 8 --pretrain.epochs 4 --search.epochs 8 --train.epochs 16 "
    "--budget.params 5000 --engine.threads 1 --engine.checkpoint_seconds 0.5"
)
COMPARED = ("architecture.json", "network.safetensors")
BEFORE, AFTER = "before the first step", "after the last step"


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    return [sys.executable, "-m", "dsonas", "run", *options.run.split(), "--out", str(folder)]


def run_to_end(options: argparse.Namespace, folder: Path) -> tuple[float, str]:
    """Seconds of a run until it ends by itself, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command(options, folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a run ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - began, done.stdout


def kill(options: argparse.Namespace, folder: Path, moment: float) -> bool:
    """Start a run and kill it at a moment; False if it has ended before."""
    with subprocess.Popen(
        command(options, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def place(folder: Path) -> tuple[str, str]:
    """The step in which a run was killed, and where it goes on, as its checkpoints tell."""
    if (folder / "metrics.json").exists():
        return AFTER, AFTER
    for number, stage in reversed(list(enumerate(STAGES))):
        files = sorted((folder / "checkpoints" / stage).glob("*.pt"))
        if not files:
            continue
        state = read_checkpoint(files[-1])
        rows = [row for row in state["rows"] if row["stage"] == stage]
        where = f"{stage}, epoch {state['epoch']}, batch {state['batch']}"
        if len(rows) == state["epoch"] == stage_epochs(folder, stage):
            return (*STAGES, AFTER)[number + 1], where
        return stage, where
    return (STAGES[0] if (folder / "config.yaml").exists() else BEFORE), "the beginning"


def stage_epochs(folder: Path, stage: str) -> int:
    return yaml.safe_load((folder / "config.yaml").read_text())[stage]["epochs"]


def reference(options: argparse.Namespace, study: Study) -> dict[str, Any]:
    """The uninterrupted run; done once."""
    folder = options.work / "uninterrupted"
    for row in study.rows:
        if row["run"] == "uninterrupted" and (folder / "metrics.json").exists():
            return row
    if study.rows:
        raise SystemExit(f"{folder} is gone: delete {options.out} to begin again")
    shutil.rmtree(folder, ignore_errors=True)
    seconds, _ = run_to_end(options, folder)
    study.add({"run": "uninterrupted", "seconds": round(seconds, 2)})
    return study.rows[-1]


def try_run(options: argparse.Namespace, number: int, whole_seconds: float) -> dict[str, Any]:
    """Kill a run, resume it, compare it."""
    folder, rng = options.work / f"killed-{number}", random.Random(f"{options.seed}-{number}")
    moment = rng.uniform(0, whole_seconds)
    shutil.rmtree(folder, ignore_errors=True)
    while not kill(options, folder, moment):  # this one was faster than the first
        shutil.rmtree(folder)
        moment = rng.uniform(0, whole_seconds)
    stage, where = place(folder)
    seconds, out = run_to_end(options, folder)
    whole = options.work / "uninterrupted"
    same = {name: (folder / name).read_bytes() == (whole / name).read_bytes() for name in COMPARED}
    shutil.rmtree(folder)
    said = [line for line in out.splitlines() if line.startswith("resuming")]
    return {
        "run": number,
        "killed_after_seconds": round(moment, 2),
        "killed_in": stage,
        "resumed_from": where,
        "said": said[0] if said else "",
        "resume_seconds": round(seconds, 2),
        "identical": same,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    killed = [row for row in rows if row["run"] != "uninterrupted"]
    same = sum(all(row["identical"].values()) for row in killed)
    places = Counter(row["killed_in"] for row in killed)
    where = ", ".join(f"{count} {stage}" for stage, count in places.items())
    return f"{same} of {len(killed)} bit-identical; killed: {where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill-test.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/kill-test"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no run after; repeat to go on"
    )
    parser.add_argument("--run", default=SHORTER, help="options of dsonas run")
    options = parser.parse_args()
    began = time.perf_counter()
    study = Study(options, apart=("runs", "seconds", "work"))
    whole = reference(options, study)
    for number in range(1, options.runs + 1):
        late = time.perf_counter() - began > options.seconds
        if not study.has(run=number) and not late:
            study.add(try_run(options, number, whole["seconds"]))
    print(summary(study.rows))


if __name__ == "__main__":
    main()
