"""Is a latency budget of half the supernet's latency kept, and does the adaptive penalty help?

For each seed four searches: led by multiply-adds or by milliseconds under the uniform penalty, led
by milliseconds under the adaptive latency penalty, and led by milliseconds where an operation is
judged by its worth per millisecond. Each result is brought to the same latency budget by its width,
trained alike, exported as plain Python source, and timed in a fresh process that knows nothing but
the exported files. Steps that are done are kept in a folder.

    python benchmarks/latency_budget.py --seeds 3 --test-images 5000      # all steps
    python benchmarks/latency_budget.py search       # one after the other; search and train with
    python benchmarks/latency_budget.py fit          # anything else on the machine, fit and time
    python benchmarks/latency_budget.py train        # on an idle one
    python benchmarks/latency_budget.py time
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dsonas.commands.exporting import export_run
from dsonas.cost.budgets import Budget
from dsonas.cost.latency import LatencyMeter
from dsonas.graph.architecture import Architecture
from dsonas.run.fitting import fit_to_budget
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import load_chain
from small_study import Study, mean_and_spread, silent_job, study_config, study_parser

LATENCY = Budget(latency_ms=1e6)  # of the budget only which bound leads the search counts
PLANS: dict[str, tuple[Budget, dict[str, Any]]] = {
    "multiply-adds": (Budget(macs=1e12), {}),
    "latency": (LATENCY, {}),
    "latency, adaptive penalty": (LATENCY, {"penalty_kind": "adaptive_latency"}),
    "latency, worth per millisecond": (LATENCY, {"thrift": 1.0}),
}
STEPS = ("search", "fit", "train", "time")
SHARE = 0.5
NOISE = 0.05
TIMING = """
import runpy, statistics, sys, torch
from torch.utils.benchmark import Timer
size = int(sys.argv[1])
image = torch.zeros(1, 1, size, size).to(memory_format=torch.channels_last)
timers = []
for path in sys.argv[2:]:
    network = runpy.run_path(path, run_name="exported")["load"]()
    names = {"network": network, "image": image}
    timers.append(Timer("network(image)", globals=names, num_threads=1))
with torch.inference_mode():
    rounds = [[timer.timeit(50).mean for timer in timers] for _ in range(21)]
print([1e3 * statistics.median(times) for times in zip(*rounds)])
"""


@dataclass(frozen=True)
class Case:
    """One plan at one seed, and where its files lie."""

    options: argparse.Namespace
    plan: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        name = self.plan.replace(",", "").replace(" ", "-")
        return Path(self.options.work) / f"{name}-{self.seed}"

    @property
    def config(self) -> RunConfig:
        """Of the search; the budget says only what leads it."""
        leading, search = PLANS[self.plan]
        return study_config(self.options, self.seed, leading, **search)

    def search(self) -> None:
        """Steps 1 and 2, into ``search/``."""
        if not (self.folder / "search" / "chain.json").exists():
            silent_job(self.config, f"{self.folder}/search").search()

    def fit(self, milliseconds: float) -> None:
        """The network for the budget, into ``fitted.json``."""
        chain = load_chain(self.folder / "search" / "chain.json")
        config = replace(self.config, budget=Budget(latency_ms=milliseconds))
        meter = LatencyMeter(min_seconds=1.0)
        fitted = fit_to_budget(chain, config, {"latency_ms": meter})
        value = {"budget_ms": milliseconds, "latency_ms": meter(fitted)}
        text = json.dumps({**value, "architecture": fitted.to_json()}, indent=1)
        (self.folder / "fitted.json").write_text(text)
        shutil.rmtree(self.folder / "train", ignore_errors=True)  # of another fit

    @property
    def fitted(self) -> dict[str, Any]:
        """What ``fit`` has written."""
        return json.loads((self.folder / "fitted.json").read_text())

    def train(self) -> None:
        """Step 3 and the export, into ``train/``."""
        if not (self.folder / "train" / "metrics.json").exists():
            architecture = Architecture.from_json(self.fitted["architecture"])
            config = replace(self.config, budget=Budget())
            silent_job(config, f"{self.folder}/train").train(architecture)
            export_run(f"{self.folder}/train", ["python"])

    def row(self, afresh: float, supernet: float) -> dict[str, Any]:
        """What is reported, with the milliseconds of a fresh process."""
        metrics = json.loads((self.folder / "train" / "metrics.json").read_text())
        names = ("test_error", "macs", "params", "live_connections", "channels")
        budget = self.fitted["budget_ms"]
        return {
            "plan": self.plan,
            "seed": self.seed,
            **{name: metrics[name] for name in names},
            "budget_ms": budget,
            "latency_ms": self.fitted["latency_ms"],
            "fresh_process_ms": afresh,
            "fresh_over_budget": afresh / budget,
            "supernet_fresh_process_ms": supernet,
            "fresh_over_supernet": afresh / supernet,
        }


def time_afresh(sources: Sequence[Path], image_size: int) -> list[float]:
    """Milliseconds for one image by exported files, in turn, in a process that has only these."""
    command = [sys.executable, "-c", TIMING, str(image_size), *map(str, sources)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def exported_supernet(options: argparse.Namespace, case: Case) -> Path:
    """The complete network, untrained, as exported source."""
    folder = Path(options.work) / "supernet"
    if not (folder / "metrics.json").exists():
        supernet = load_chain(case.folder / "search" / "chain.json")[0]
        still = replace(case.config, train=replace(case.config.train, epochs=1), budget=Budget())
        silent_job(still, str(folder)).train(supernet)
    return export_run(folder, ["python"])[0].paths[0]


def fit_all(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """All networks to half of what the supernet takes, measured at once."""
    supernet = load_chain(cases[0].folder / "search" / "chain.json")[0]
    budget = SHARE * LatencyMeter(min_seconds=5.0)(supernet)
    for case in cases:
        case.fit(budget)
        print(case.plan, case.seed, case.fitted["latency_ms"], "of", budget, flush=True)


def time_all(options: argparse.Namespace, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The rows of all cases: a fresh process times all networks of a seed and the supernet."""
    supernet, rows = exported_supernet(options, cases[0]), []
    for seed in range(options.seeds):
        mine = [case for case in cases if case.seed == seed]
        sources = [export_run(case.folder / "train", ["python"])[0].paths[0] for case in mine]
        size = cases[0].config.data.image_size or 0
        whole, *times = time_afresh([supernet, *sources], size)
        rows += [case.row(time, whole) for case, time in zip(mine, times, strict=True)]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each plan."""
    lines = [
        "| search led by | test error, % | fresh process / budget | fresh process, supernet = 1 | "
        "multiply-adds |",
        "|---|---|---|---|---|",
    ]
    for plan in PLANS:
        mine = [row for row in rows if row["plan"] == plan]
        ratios = ", ".join(f"{row['fresh_over_budget']:.2f}" for row in mine)
        macs = statistics.mean(row["macs"] for row in mine)
        lines.append(
            f"| {plan} | {mean_and_spread([row['test_error'] for row in mine])} | {ratios} | "
            f"{mean_and_spread([row['fresh_over_supernet'] for row in mine])} | "
            f"{macs / 1e6:.1f} M |"
        )
    kept = sum(row["fresh_over_budget"] <= 1 + NOISE for row in rows)
    return [*lines, "", f"{kept} of {len(rows)} within {NOISE:.0%} of the budget or under it."]


def main() -> None:
    parser = study_parser(__doc__, "benchmarks/results/latency-budget.json", search_epochs=8)
    parser.set_defaults(images=4000, pretrain_epochs=2, train_epochs=10)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=" ".join(STEPS))
    parser.add_argument("--work", default="runs/latency-budget", help="folder of the steps done")
    options = parser.parse_args()
    steps = options.steps or list(STEPS)
    if not set(steps) <= set(STEPS):
        parser.error(f"STEP must be of {', '.join(STEPS)}, got {' '.join(steps)}")
    torch.set_num_threads(1)
    cases = [Case(options, plan, seed) for seed, plan in product(range(options.seeds), PLANS)]
    if "search" in steps:
        for case in cases:
            case.search()
            print(case.plan, case.seed, "searched", flush=True)
    if "fit" in steps:
        fit_all(options, cases)
    if "train" in steps:
        for case in cases:
            case.train()
            print(case.plan, case.seed, "trained", flush=True)
    if "time" in steps:
        study = Study(options, apart=("steps", "work"))
        study.rows.clear()
        for row in time_all(options, cases):
            study.add(row)
        print("\n".join(summary(study.rows)))


if __name__ == "__main__":
    main()
