"""What the adaptive penalties do, as in Fig. 5a and 6 of the paper: full space, penalty alone.

Searches without a planned cost: the constant penalty alone decides what goes. Its strength gamma is
bisected for each kind of penalty and each seed until the blocks keep the same share of their
multiply-adds in all, so that kinds are compared at equal cost: how evenly the blocks keep it, and
how many are emptied. The network found is then brought to common multiply-adds by its width and
trained: test error against memory access.

    python benchmarks/adaptive_penalties.py
    python benchmarks/adaptive_penalties.py --evenness FILE...    # of the searches in result files

With ``--kept 0.1 --kinds uniform adaptive_macs`` and an ``--out`` of its own: more such searches.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from dsonas.cost.budgets import Budget, fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.run.run_config import NetworkConfig
from dsonas.run.runs import load_chain
from dsonas.search.baselines import blocks_macs
from dsonas.search.penalties import AdaptiveMacs
from small_study import Study, mean_and_spread, silent_job, study_config, study_parser

KINDS = ("uniform", "adaptive_macs", "adaptive_memory")
BLOCKS = (2, 2)
EVEN = (0.05, 0.25)  # shares kept of which evenness is told
COLOURS = dict(zip(KINDS, ("#8a8f98", "#2f6fde", "#d9822b"), strict=True))


def bisect(options: argparse.Namespace, study: Study, kind: str, seed: int) -> None:
    """Search with other strengths until the share that is kept is near enough; train that one."""
    weak, strong = options.weakest, options.strongest
    for step in range(options.steps):
        case = {"kind": kind, "seed": seed, "step": step}
        penalty = math.sqrt(weak * strong)
        if not study.has(**case):
            study.add({**case, **try_penalty(options, kind, penalty, seed)})
        (row,) = (row for row in study.rows if case.items() <= row.items())
        if "test_error" in row:
            return
        if row["kept_whole"] > options.kept:
            weak = penalty
        else:
            strong = penalty


def try_penalty(
    options: argparse.Namespace, kind: str, penalty: float, seed: int
) -> dict[str, Any]:
    """Search under a constant penalty; if it keeps what is wanted, train what is found."""
    config = study_config(
        options,
        seed,
        Budget(),
        penalty_kind=kind,
        penalty=penalty,
        keep_cost=None,
        normalise=False,
    )
    network = NetworkConfig(levels=options.levels, blocks=BLOCKS, channels=8)
    config = replace(config, network=network)
    with tempfile.TemporaryDirectory() as folder:
        silent_job(config, f"{folder}/search").search()
        chain = load_chain(Path(folder) / "search" / "chain.json")
        supernet, found = chain[0], chain[-1]
        # the penalty of eq. 9 is the share that a block has kept
        shares = [row[0] for row in AdaptiveMacs().weights(supernet, found)]
        row = {
            "penalty": penalty,
            "kept": shares,
            "kept_whole": blocks_macs(found) / blocks_macs(supernet),
            "spread": statistics.pstdev(shares),
            "emptied_blocks": sum(not graph.kept_nodes for graph in found.blocks),
            "live_connections": found.num_live,
            "found_memory_bytes": architecture_cost(found).memory_bytes,
        }
        if abs(row["kept_whole"] / options.kept - 1) > options.tolerance:
            return row
        target = options.share * architecture_cost(supernet).macs
        fitted = fit_width(found, Budget(macs=target))
        metrics = silent_job(config, f"{folder}/train").train(fitted)
    names = ("test_error", "macs", "params", "memory_bytes", "channels")
    return {**row, **{name: metrics[name] for name in names}}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each kind, of the searches that keep what is wanted."""
    lines = [
        "| penalty | seeds | gamma | kept in all | blocks 1 to 4 | spread over blocks | "
        "emptied blocks | test error, % | memory access at equal multiply-adds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind and "test_error" in row]
        if not mine:
            continue
        kept = ", ".join(f"{mean:.0%}" for mean in means(row["kept"] for row in mine))
        gammas = ", ".join(f"{row['penalty']:.3g}" for row in mine)
        memory = mean_and_spread([row["memory_bytes"] / 1e3 for row in mine])
        lines.append(
            f"| {kind} | {len(mine)} | {gammas} | "
            f"{statistics.mean(row['kept_whole'] for row in mine):.0%} | {kept} | "
            f"{mean_and_spread([100 * row['spread'] for row in mine])} points | "
            f"{sum(row['emptied_blocks'] for row in mine)} of {sum(BLOCKS) * len(mine)} | "
            f"{mean_and_spread([row['test_error'] for row in mine])} | {memory} kB |"
        )
    return lines


def evenness(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown: of all searches that kept neither almost nothing nor much, how evenly."""
    searches = {(row["kind"], row["seed"], row["penalty"]): row for row in rows}
    lines = [
        f"| penalty | searches that kept {EVEN[0]:.0%} to {EVEN[1]:.0%} | kept in all | "
        "spread over blocks | with an emptied block |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [
            row
            for (one, _, _), row in searches.items()
            if one == kind and EVEN[0] <= row["kept_whole"] <= EVEN[1]
        ]
        if len(mine) > 1:
            lines.append(
                f"| {kind} | {len(mine)} | "
                f"{mean_and_spread([100 * row['kept_whole'] for row in mine])} % | "
                f"{mean_and_spread([100 * row['spread'] for row in mine])} points | "
                f"{sum(row['emptied_blocks'] > 0 for row in mine)} |"
            )
    return lines


def means(rows: Iterable[Sequence[float]]) -> list[float]:
    """The mean of each column."""
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Left: what each block keeps. Right: error against memory access."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("svg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for place, kind in enumerate(KINDS):
        mine = [row for row in rows if row["kind"] == kind and "test_error" in row]
        if not mine:
            continue
        kept = [100 * mean for mean in means(row["kept"] for row in mine)]
        places = [block + 0.27 * (place - 1) for block in range(1, len(kept) + 1)]
        left.bar(places, kept, 0.25, color=COLOURS[kind], label=kind)
        memory = [row["memory_bytes"] / 1e3 for row in mine]
        errors = [row["test_error"] for row in mine]
        right.scatter(memory, errors, color=COLOURS[kind], label=kind)
    left.set(xlabel="block", ylabel="multiply-adds kept, %", xticks=range(1, sum(BLOCKS) + 1))
    right.set(xlabel="memory access, kB", ylabel="test error, %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = study_parser(__doc__, "benchmarks/results/adaptive-penalties.json", search_epochs=16)
    parser.set_defaults(space="full", seeds=3, images=4000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--weakest", type=float, default=0.01, help="smallest gamma")
    parser.add_argument("--strongest", type=float, default=0.64, help="largest gamma")
    parser.add_argument("--kept", type=float, default=0.2, help="of the blocks' multiply-adds")
    parser.add_argument("--tolerance", type=float, default=0.25, help="of the share kept")
    parser.add_argument("--steps", type=int, default=8, help="bisections at most")
    parser.add_argument("--share", type=float, default=0.4, help="of the supernet's multiply-adds")
    parser.add_argument("--plot", default="docs/images/adaptive-penalties.svg", help="or none")
    parser.add_argument("--evenness", nargs="+", type=Path, metavar="FILE", default=[])
    options = parser.parse_args()
    if options.evenness:
        rows = (row for path in options.evenness for row in json.loads(path.read_text())["rows"])
        print("\n".join(evenness(rows)))
        return
    study = Study(options, apart=("plot", "kinds", "evenness"))
    kinds: Sequence[str] = options.kinds
    for seed, kind in product(range(options.seeds), kinds):
        bisect(options, study, kind, seed)
    print("\n".join(summary(study.rows)))
    if options.plot:
        plot(study.rows, Path(options.plot))


if __name__ == "__main__":
    main()
