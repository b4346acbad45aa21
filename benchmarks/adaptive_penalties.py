"""What the adaptive penalties do, as in Fig. 5a and 6 of the paper: full space, penalty alone.

Searches without a planned cost: the constant penalty alone decides what goes. For each kind of
penalty, several strengths and seeds: the multiply-adds that each block keeps, and the blocks that
are emptied. Every network found is then brought to the same multiply-adds by its width and trained
alike: test error against memory access.

    python benchmarks/adaptive_penalties.py --out benchmarks/results/adaptive-penalties.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from dsonas.budgets import Budget, InfeasibleBudgetError, fit_width
from dsonas.config import NetworkConfig
from dsonas.costs import architecture_cost
from dsonas.penalties import block_penalties
from dsonas.runs import load_chain
from small_study import Study, mean_and_spread, silent_job, study_config, study_parser

KINDS = ("uniform", "adaptive_macs", "adaptive_memory")
STRENGTHS = (1.0, 2.0, 4.0, 8.0)  # times the smallest
BLOCKS = (2, 2)


def try_penalty(
    options: argparse.Namespace, kind: str, penalty: float, seed: int
) -> dict[str, Any]:
    """Search under a constant penalty; train what is found at the common budget."""
    config = study_config(
        options,
        seed,
        Budget(),
        penalty_kind=kind,
        penalty=penalty,
        structure=None,
        normalise=False,
    )
    network = NetworkConfig(levels=options.levels, blocks=BLOCKS, channels=8)
    config = replace(config, network=network)
    with tempfile.TemporaryDirectory() as folder:
        silent_job(config, f"{folder}/search").search()
        chain = load_chain(Path(folder) / "search" / "chain.json")
        supernet, found = chain[0], chain[-1]
        # the penalty of eq. 9 is the share that a block has kept
        shares = block_penalties("adaptive_macs", 1.0, supernet, found, "full")
        row = {
            "kind": kind,
            "penalty": penalty,
            "seed": seed,
            "kept": shares,
            "kept_whole": statistics.mean(shares),
            "spread": statistics.pstdev(shares),
            "emptied_blocks": sum(not graph.kept_nodes for graph in found.blocks),
            "live_connections": found.num_live,
            "found_memory_bytes": architecture_cost(found).memory_bytes,
        }
        target = options.share * architecture_cost(supernet).macs
        try:
            fitted = fit_width(found, Budget(macs=target))
        except InfeasibleBudgetError:
            return row
        metrics = silent_job(config, f"{folder}/train").train(fitted)
    names = ("test_error", "macs", "params", "memory_bytes", "channels")
    return {**row, **{name: metrics[name] for name in names}}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each kind and strength."""
    lines = [
        "| penalty | gamma | kept, blocks 1 to 4 | spread over blocks | emptied blocks | "
        "test error, % | memory access at equal multiply-adds |",
        "|---|---|---|---|---|---|---|",
    ]
    strengths = sorted({row["penalty"] for row in rows})
    for kind, gamma in product(KINDS, strengths):
        mine = [row for row in rows if (row["kind"], row["penalty"]) == (kind, gamma)]
        if not mine:
            continue
        trained = [row for row in mine if "test_error" in row]
        kept = ", ".join(
            f"{statistics.mean(column):.0%}"
            for column in zip(*(row["kept"] for row in mine), strict=True)
        )
        errors = [row["test_error"] for row in trained]
        error = mean_and_spread(errors) if trained else "none trained"
        memory = statistics.mean(row["memory_bytes"] for row in trained) if trained else 0
        lines.append(
            f"| {kind} | {gamma:.3g} | {kept} | "
            f"{100 * statistics.mean(row['spread'] for row in mine):.0f} points | "
            f"{sum(row['emptied_blocks'] for row in mine)} of {sum(BLOCKS) * len(mine)} | "
            f"{error} | {memory / 1e3:.0f} kB |"
        )
    return lines


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Left: what each block keeps. Right: error against memory access."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    colours = dict(zip(KINDS, ("#8a8f98", "#2f6fde", "#d9822b"), strict=True))
    middle = sorted({row["penalty"] for row in rows})[2]
    for place, kind in enumerate(KINDS):
        mine = [r for r in rows if r["kind"] == kind and r["penalty"] == middle]
        means = [100 * statistics.mean(c) for c in zip(*(r["kept"] for r in mine), strict=True)]
        places = [block + 0.27 * (place - 1) for block in range(1, len(means) + 1)]
        left.bar(places, means, 0.25, color=colours[kind], label=kind)
        trained = [r for r in rows if r["kind"] == kind and "test_error" in r]
        right.scatter(
            [r["memory_bytes"] / 1e3 for r in trained],
            [r["test_error"] for r in trained],
            color=colours[kind],
            label=kind,
        )
    left.set(xlabel="block", ylabel="multiply-adds kept, %", xticks=range(1, len(means) + 1))
    right.set(xlabel="memory access, kB", ylabel="test error, %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = study_parser(__doc__, "benchmarks/results/adaptive-penalties.json", search_epochs=8)
    parser.set_defaults(space="full")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--penalty", type=float, default=0.003, help="the smallest gamma")
    parser.add_argument("--share", type=float, default=0.4, help="of the supernet's multiply-adds")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/adaptive-penalties.svg"))
    options = parser.parse_args()
    study = Study(options)
    cases = (
        {"kind": kind, "penalty": strength * options.penalty, "seed": seed}
        for seed, strength, kind in product(range(options.seeds), STRENGTHS, KINDS)
    )
    study.fill(cases, partial(try_penalty, options))
    print("\n".join(summary(study.rows)))
    plot(study.rows, options.plot)


if __name__ == "__main__":
    main()
