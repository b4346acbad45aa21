"""How far is the time that `dsonas plan` projects from the time that the run then takes?

A recipe with fewer epochs is planned, which times a few steps of each kind here, and then run; both
are commands of their own, one after the other, for several rounds. For every stage the projected
time over the measured one, which the run's log holds: the time of its steps, rebuilds, tests and
checkpoints. On a machine that does other work, ``--processor`` reads the processor's clock in both.

    python benchmarks/plan_accuracy.py --out benchmarks/results/plan-accuracy.json
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHORTENED = (
    "--config digits --pretrain.epochs 4 --search.epochs 8 --train.epochs 16 --engine.threads 1"
)
STAGES = ("pretrain", "search", "train")
TOLERANCE = 0.25


BY_PROCESSOR = (
    "import sys, time; time.perf_counter = time.process_time; "
    "from dsonas.commands.cli import main; sys.exit(main())"
)


def dsonas(*arguments: str) -> str:
    program = ["-c", BY_PROCESSOR] if "--processor" in sys.argv else ["-m", "dsonas"]
    command = [sys.executable, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def projected(options: list[str]) -> dict[str, float]:
    """Seconds of each stage by the plan."""
    lines = json.loads(dsonas("plan", *options, "--json"))["lines"]
    return {
        stage: sum(line["seconds"] for line in lines if line["stage"] == stage) for stage in STAGES
    }


def measured(options: list[str], folder: Path) -> dict[str, float]:
    """Seconds of each stage by the log of the run."""
    dsonas("run", *options, "--out", str(folder / "run"))
    with (folder / "run" / "log.csv").open(newline="") as file:
        return {row["stage"]: float(row["seconds"]) for row in csv.DictReader(file)}


def one_round(options: list[str]) -> dict[str, Any]:
    plan = projected(options)
    with tempfile.TemporaryDirectory() as name:
        run = measured(options, Path(name))
    return {
        "projected_seconds": plan,
        "measured_seconds": run,
        "ratio": {stage: plan[stage] / run[stage] for stage in STAGES},
        "ratio_all": sum(plan.values()) / sum(run[stage] for stage in STAGES),
    }


def summary(options: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ratio = {stage: statistics.median(one["ratio"][stage] for one in rounds) for stage in STAGES}
    ratio["all"] = statistics.median(one["ratio_all"] for one in rounds)
    return {
        "options": options,
        "clock": "processor" if "--processor" in sys.argv else "wall",
        "tolerance": TOLERANCE,
        "median_ratio": ratio,
        "within": {name: abs(value - 1) <= TOLERANCE for name, value in ratio.items()},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan-accuracy.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", default=SHORTENED, help="options of the run")
    text = "seconds of the processor, which is one thread's: for a machine that is not idle"
    parser.add_argument("--processor", action="store_true", help=text)
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        rounds.append(one_round(options.run.split()))
        shown = "  ".join(f"{s} {rounds[-1]['ratio'][s]:.2f}" for s in STAGES)
        print(f"round {number + 1}: projected / measured  {shown}", flush=True)
        found = summary(options.run, rounds)  # after each, so that an interruption keeps the others
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(summary(options.run, rounds)["median_ratio"]))


if __name__ == "__main__":
    main()
