"""What each part of the search gives: the study on Fashion-MNIST again, with one part changed.

Share space, 1 M multiply-adds, five searches with two trainings each, as in the study, which is the
first line. The paper's Table 3 (no pretraining, no split, 4:1) and what we added. About 0.6
core-hours a line; goes on by the same command.

    python benchmarks/ablations.py                      # all
    python benchmarks/ablations.py no-split four-to-one
    python benchmarks/ablations.py --table              # of what is done
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dsonas.chains import chain_from_json
from dsonas.drawing import readable_operation
from small_study import mean_and_spread
from study_archive import pack, unpack

CONFIG = "benchmarks/compare_fashion_mnist.yaml"
STUDY = Path("benchmarks/results/compare-fashion-mnist.json")
RESULTS = Path("benchmarks/results/ablations")
ABLATIONS = {
    "no-pretraining": ("no pretraining", "--pretrain.epochs 0"),
    "no-split": ("no split", "--data.lambda_fraction 0"),
    "four-to-one": ("weights to factors 4:1", "--data.lambda_fraction 0.2 --search.ratio 4"),
    "no-normalisation": ("factors not normalised", "--search.normalise false"),
    "constant-rate": ("learning rate does not fall", "--search.schedule constant"),
    "loss-per-cost": ("loss per cost saved", "--search.rank loss --search.thrift 1"),
    "smallest-factor": ("smallest factor goes first", "--search.rank factor"),
    "less-narrow": ("0.5 of the structure, less width", "--search.structure 0.5"),
    "all-inputs": ("inputs are not removed", "--search.connections 1"),
    "no-shrinking": ("zeros are kept, not cut out", "--search.shrink false"),
}


def study(name: str, out: Path) -> None:
    """Run or go on with the study of an ablation, and keep what it has."""
    archive = RESULTS / f"{name}-jobs.json"
    if archive.exists():
        unpack(archive, out)
    command = [
        *f".venv/bin/dsonas compare --config {CONFIG} --out {out} --budgets 1M --spaces share "
        "--seeds 5 --train_seeds 2 --random 0 --random_searches 0 --hand_made 0".split(),
        *ABLATIONS[name][1].split(),
    ]
    try:
        subprocess.run(command, check=True)
    finally:
        if (out / "compare.json").exists():
            RESULTS.mkdir(parents=True, exist_ok=True)
            pack(out, archive)
            (RESULTS / f"{name}.json").write_bytes((out / "compare.json").read_bytes())


def searched(result: dict[str, Any]) -> list[float]:
    """The mean test error of each architecture found, share space, first budget."""
    errors = defaultdict(list)
    for network in result["networks"]:
        if (network["method"], network["space"], network["budget"]) == ("searched", "share", 0):
            errors[network["subject"]].append(network["test_error"])
    return [statistics.mean(errors[subject]) for subject in sorted(errors)]


def table() -> list[str]:
    """Markdown: a line for the study and for each ablation that is done."""
    base = searched(json.loads(STUDY.read_text()))
    lines = [
        "| search | searches | test error, % | difference | other networks | each search | found |",
        "|---|---|---|---|---|---|---|",
        f"| as it is | {len(base)} | {mean_and_spread(base)} | | | {each(base)} | "
        f"{found(STUDY.with_name(STUDY.stem + '-jobs.json'))} |",
    ]
    for name, (title, _) in ABLATIONS.items():
        path = RESULTS / f"{name}.json"
        errors = searched(json.loads(path.read_text())) if path.exists() else []
        if len(errors) > 1:
            difference = statistics.mean(errors) - statistics.mean(base)
            # the same network has the same training seeds, so the very same errors
            others = sum(error != other for error, other in zip(errors, base, strict=False))
            lines.append(
                f"| {title} | {len(errors)} | {mean_and_spread(errors)} | {difference:+.2f} | "
                f"{others} | {each(errors)} | {found(RESULTS / f'{name}-jobs.json')} |"
            )
    return lines


def found(archive: Path) -> str:
    """The operations of the blocks that the searches ended with, and how many did, share space."""
    counts: Counter[str] = Counter()
    for name, text in json.loads(archive.read_text()).items():
        if name.startswith("architectures/searched-share-"):
            graph = chain_from_json(text)[-1].blocks[0]
            kept = [readable_operation(graph.operation(node)) for node in graph.kept_nodes]
            counts[", ".join(kept)] += 1
    return "; ".join(f"{kinds} ({count})" for kinds, count in counts.most_common())


def each(errors: list[float]) -> str:
    """All values, as tables show them."""
    return ", ".join(f"{error:.2f}" for error in errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ABLATIONS))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="their folder")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    unknown = set(options.names) - set(ABLATIONS)
    if unknown:
        parser.error(f"NAME must be of {', '.join(ABLATIONS)}, got {', '.join(sorted(unknown))}")
    for name in () if options.table else options.names or ABLATIONS:
        study(name, options.runs / name)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
