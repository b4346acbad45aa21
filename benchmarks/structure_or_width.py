"""How much of a budget should come from structure, how much from width?

One search for each seed, led down to a small structure; the chain that it passes through holds
structures from the whole supernet to a quarter of its cost. For every budget, members of the chain
are brought to the same multiply-adds by their width and trained alike: wide and sparse against
narrow and dense. Errors are those on the test images.

    python benchmarks/structure_or_width.py --out benchmarks/results/structure-or-width.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dsonas.cost.budgets import Budget, fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture
from dsonas.run.runs import load_chain
from small_study import EARLIER, Study, silent_job, study_config, study_parser

STRUCTURES = (1.0, 0.6, 0.35, 0.25)  # shares of the supernet's multiply-adds
BUDGETS = (0.2, 0.6)  # the same


def macs(architecture: Architecture) -> int:
    return architecture_cost(architecture).macs


def searched(options: argparse.Namespace, seed: int) -> list[Architecture]:
    """The chain of a search that ends at a small structure."""
    plan = {**EARLIER, "keep_cost": 0.05, "keep_connections": 1.0, "hold_from": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        silent_job(study_config(options, seed, Budget(), **plan), folder).search()
        return load_chain(Path(folder) / "chain.json")


def try_member(
    options: argparse.Namespace, seed: int, chain: Sequence[Architecture], share: float, of: float
) -> dict[str, Any]:
    """Train a member of a chain at the width that meets a budget."""
    whole = macs(chain[0])
    member = min(chain, key=lambda net: abs(macs(net) / whole - share))
    network = fit_width(member, Budget(macs=of * whole))
    with tempfile.TemporaryDirectory() as folder:
        metrics = silent_job(study_config(options, seed, Budget()), folder).train(network)
    return {
        "seed": seed,
        "budget": of,
        "structure": share,
        "structure_macs": round(macs(member) / whole, 4),
        **{name: metrics[name] for name in ("test_error", "macs", "params", "channels")},
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: mean test errors, a line for each budget."""
    lines = [
        "| budget | " + " | ".join(f"structure {share:.0%}" for share in STRUCTURES) + " |",
        "|---|" + "---|" * len(STRUCTURES),
    ]
    for budget in BUDGETS:
        cells = []
        for share in STRUCTURES:
            errors = [
                row["test_error"]
                for row in rows
                if (row["budget"], row["structure"]) == (budget, share)
            ]
            cells.append(f"{statistics.mean(errors):.2f} ({', '.join(f'{e:.1f}' for e in errors)})")
        lines.append(f"| {budget:.0%} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    out = "benchmarks/results/structure-or-width.json"
    options = study_parser(__doc__, out, search_epochs=15).parse_args()
    study = Study(options)
    for seed in range(options.seeds):
        cases = [
            (share, of)
            for of, share in product(BUDGETS, STRUCTURES)
            if not study.has(seed=seed, structure=share, budget=of)
        ]
        chain = searched(options, seed) if cases else []
        for share, of in cases:
            study.add(try_member(options, seed, chain, share, of))
    print("\n".join(summary(study.rows)))


if __name__ == "__main__":
    main()
