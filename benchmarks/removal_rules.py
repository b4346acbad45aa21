"""Which rule of removal finds the better network at equal cost? Four rules, several seeds.

* ``loss``: operations by measured loss per cost saved;
* ``flow``: operations by the flow of importance, from the scaling factors alone, per cost saved;
* ``factor``: connections by the smallest factor first, factors normalised per target;
* ``raw factor``: the same without normalisation, as the factors come out of the proximal step.

Each rule searches the same supernet with the same seed and plan; the network found is brought to
the same budget and trained alike. Errors are those on the test images; no choice is made by them.

    python benchmarks/removal_rules.py --out benchmarks/results/removal-rules.json
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from dsonas.cost.budgets import Budget
from dsonas.cost.costs import architecture_cost
from dsonas.run.runs import load_chain
from small_study import EARLIER, Study, mean_and_spread, silent_job, study_config, study_parser

RULES: dict[str, dict[str, Any]] = {
    "loss": {"rank": "loss"},
    "flow": {"rank": "flow"},
    "factor": {"rank": "factor"},
    "raw factor": {"rank": "factor", "normalise": False},
}


def try_rule(options: argparse.Namespace, rule: str, seed: int) -> dict[str, Any]:
    """Search by a rule, train what it finds."""
    chosen = {**EARLIER, **RULES[rule]}
    config = study_config(options, seed, Budget(macs=options.macs), **chosen)
    with tempfile.TemporaryDirectory() as folder:
        job = silent_job(config, folder)
        architecture = job.search()
        found = load_chain(Path(folder) / "chain.json")[-1]
        metrics = job.train(architecture)
    return {
        "rule": rule,
        "seed": seed,
        **{name: metrics[name] for name in ("test_error", "macs", "params", "channels")},
        "found_macs": architecture_cost(found).macs,
        "found_connections": found.num_live,
        "found_operations": sum(len(graph.kept_nodes) for graph in found.blocks),
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each rule."""
    lines = [
        "| rule | test error, % | each seed | operations found | connections found |",
        "|---|---|---|---|---|",
    ]
    for rule in RULES:
        mine = [row for row in rows if row["rule"] == rule]
        errors = [row["test_error"] for row in mine]
        lines.append(
            f"| {rule} | {mean_and_spread(errors)} | "
            f"{', '.join(f'{error:.2f}' for error in errors)} | "
            f"{', '.join(str(row['found_operations']) for row in mine)} | "
            f"{', '.join(str(row['found_connections']) for row in mine)} |"
        )
    return lines


def main() -> None:
    parser = study_parser(__doc__, "benchmarks/results/removal-rules.json", search_epochs=10)
    parser.add_argument("--macs", default="300k", help="the budget of every network")
    options = parser.parse_args()
    study = Study(options)
    cases = ({"seed": seed, "rule": rule} for seed, rule in product(range(options.seeds), RULES))
    study.fill(cases, partial(try_rule, options))
    print("\n".join(summary(study.rows)))


if __name__ == "__main__":
    main()
