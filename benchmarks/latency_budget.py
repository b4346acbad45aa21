"""Is a latency budget of half the supernet's latency kept, and does the adaptive penalty help?

For each seed three searches: led by multiply-adds or by measured milliseconds under the uniform
penalty, and led by milliseconds under the adaptive latency penalty. Each result is brought to the
same latency budget by its width, trained alike, exported as plain Python source, and timed in a
fresh process that knows nothing but the exported files. Run it with nothing else on the machine.

    python benchmarks/latency_budget.py --out benchmarks/results/latency-budget.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dsonas.architecture import Architecture
from dsonas.budgets import Budget
from dsonas.exporting import export_run
from dsonas.latency import LatencyMeter
from dsonas.pipeline import Job, fit_to_budget
from dsonas.runs import load_chain
from small_study import Study, mean_and_spread, silent_job, study_config, study_parser

PLANS = {  # of the budget only which bound leads the search counts
    "macs": (Budget(macs=1e12), "uniform"),
    "latency": (Budget(latency_ms=1e6), "uniform"),
    "adaptive latency": (Budget(latency_ms=1e6), "adaptive_latency"),
}
SHARE = 0.5
NOISE = 0.05
TIMING = """
import runpy, sys, torch
from torch.utils.benchmark import Timer
names = runpy.run_path(sys.argv[1], run_name="exported")
network, size = names["load"](), int(sys.argv[2])
image = torch.zeros(1, 1, size, size).to(memory_format=torch.channels_last)
timer = Timer("network(image)", globals={"network": network, "image": image}, num_threads=1)
with torch.inference_mode():
    print(1e3 * timer.blocked_autorange(min_run_time=2.0).median)
"""


def time_afresh(source: Path, image_size: int) -> float:
    """Milliseconds for one image by an exported file, in a process of its own."""
    command = [sys.executable, "-c", TIMING, str(source), str(image_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def try_plan(options: argparse.Namespace, plan: str, seed: int) -> dict[str, Any]:
    """Search by a plan, fit the budget, train, export, time."""
    leading, penalty_kind = PLANS[plan]
    config = study_config(options, seed, leading, penalty_kind=penalty_kind)
    with tempfile.TemporaryDirectory() as folder:
        job = silent_job(config, f"{folder}/search")
        job.search()
        chain = load_chain(Path(folder) / "search" / "chain.json")
        whole = LatencyMeter(min_seconds=2.0)(chain[0])
        fitted = replace(config, budget=Budget(latency_ms=SHARE * whole))
        trained = silent_job(fitted, f"{folder}/train")
        metrics = trained.train(fit(trained, chain))
        written = export_run(f"{folder}/train", ["python"])[0].paths[0]
        afresh = time_afresh(written, config.data.image_size or 0)
    names = ("test_error", "latency_ms", "macs", "params", "live_connections", "channels")
    return {
        "plan": plan,
        "seed": seed,
        **{name: metrics[name] for name in names},
        "supernet_ms": whole,
        "budget_ms": SHARE * whole,
        "fresh_process_ms": afresh,
        "fresh_over_budget": afresh / (SHARE * whole),
    }


def fit(job: Job, chain: list[Architecture]) -> Architecture:
    """The network of a chain for the job's budget, by the job's own latency meter."""
    return fit_to_budget(chain, job.config, job.cost)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each plan."""
    lines = [
        "| search led by | penalty | test error, % | milliseconds | fresh process / budget | "
        "multiply-adds |",
        "|---|---|---|---|---|---|",
    ]
    for plan, (leading, penalty) in PLANS.items():
        mine = [row for row in rows if row["plan"] == plan]
        errors = [row["test_error"] for row in mine]
        ratios = ", ".join(f"{row['fresh_over_budget']:.2f}" for row in mine)
        macs = statistics.mean(row["macs"] for row in mine)
        milliseconds = statistics.mean(row["latency_ms"] for row in mine)
        lines.append(
            f"| {leading.leading} | {penalty} | {mean_and_spread(errors)} | "
            f"{milliseconds:.2f} | {ratios} | {macs / 1e3:.0f} k |"
        )
    kept = sum(row["fresh_over_budget"] <= 1 + NOISE for row in rows)
    return [*lines, "", f"{kept} of {len(rows)} within {NOISE:.0%} of the budget or under it."]


def main() -> None:
    out = "benchmarks/results/latency-budget.json"
    options = study_parser(__doc__, out, search_epochs=8).parse_args()
    torch.set_num_threads(1)
    study = Study(options)
    cases = ({"seed": seed, "plan": plan} for seed, plan in product(range(options.seeds), PLANS))
    study.fill(cases, partial(try_plan, options))
    print("\n".join(summary(study.rows)))


if __name__ == "__main__":
    main()
