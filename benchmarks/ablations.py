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
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import yaml

from dsonas._utils import write_atomically
from dsonas.cost.budgets import Budget
from dsonas.cost.chains import chain_from_json, fit_chain
from dsonas.graph.architecture import Architecture
from dsonas.graph.drawing import readable_operation
from small_study import mean_and_spread
from study_archive import pack, unpack

BOUNDS = {"macs": 1e6}
CONFIG = "benchmarks/compare_fashion_mnist.yaml"
STUDY = Path("benchmarks/results/compare-fashion-mnist-jobs.json")
SEARCHES, TRAININGS = 5, 2
RESULTS = Path("benchmarks/results/ablations")
ABLATIONS = {
    "no-pretraining": ("no pretraining", "--pretrain.epochs 0"),
    "no-split": ("no split", "--data.factor_split 0"),
    "four-to-one": ("weights to factors 4:1", "--data.factor_split 0.2"),
    "no-normalisation": ("factors not normalised", "--search.normalise false"),
    "constant-rate": ("learning rate does not fall", "--search.schedule constant"),
    "judged-once": ("judged once, by gradients", "--import benchmarks/judged_blocks.py"),
    "less-narrow": ("0.5 of the structure, less width", "--search.keep_cost 0.5"),
    "all-inputs": ("inputs are not removed", "--search.keep_connections 1"),
}


def study(name: str, out: Path) -> None:
    """Run or go on with the study of an ablation, and keep its jobs."""
    archive = RESULTS / f"{name}.json"
    if archive.exists():
        unpack(archive, out)
    try:
        compare(out, 0, ABLATIONS[name][1])
        adopt_trainings(out)
        compare(out, TRAININGS, ABLATIONS[name][1])
    finally:
        if out.exists():
            pack(out, archive)


def compare(out: Path, trainings: int, options: str = "") -> None:
    """Five searches with some options changed, and so many trainings of what each has found."""
    command = (
        f".venv/bin/dsonas compare --config {CONFIG} --out {out} --budgets 1M --spaces share "
        f"--seeds {SEARCHES} --train_seeds {trainings} "
        f"--random 0 --random_factors 0 --random_searches 0 --hand_made 0 {options}"
    )
    subprocess.run(command.split(), check=True)


def adopt_trainings(out: Path) -> None:
    """Take the study's trainings of networks that it has found by the search of the same seed.

    Their seeds and settings are the same too, so that they would be repeated to the bit.
    """
    files = json.loads(STUDY.read_text())
    for path in sorted(out.glob("architectures/searched-share-*.json")):
        if network(path.read_text()) == network(files[f"architectures/{path.name}"]):
            start = f"jobs/train-{path.stem}-at-1M-"
            for name, text in files.items():
                if name.startswith(start) and not (out / name).exists():
                    write_atomically(out / name, text.encode())


def network(chain: str) -> Architecture:
    """What is trained of the chain of a search."""
    multiple = yaml.safe_load(Path(CONFIG).read_text())["network"]["channel_multiple"]
    return fit_chain(chain_from_json(chain), Budget(**BOUNDS), multiple=multiple)


def searched(archive: Path) -> dict[str, float]:
    """The mean test error of each architecture found that has all its trainings."""
    errors = defaultdict(list)
    for name, text in sorted(json.loads(archive.read_text()).items()):
        if fnmatch(name, "jobs/train-searched-share-*-at-1M-*/result.json"):
            result = json.loads(text)
            errors[result["subject"]].append(result["test_error"])
    return {
        subject: statistics.mean(found)
        for subject, found in errors.items()
        if len(found) == TRAININGS
    }


def networks(archive: Path) -> dict[str, Architecture]:
    """The network that each search of a study found, share space."""
    return {
        Path(name).stem: network(text)
        for name, text in sorted(json.loads(archive.read_text()).items())
        if name.startswith("architectures/searched-share-")
    }


def counted_cost(archive: Path) -> float:
    """The mean cost of a search, in 1e12 multiply-adds."""
    files = json.loads(archive.read_text())
    found = [files[name] for name in files if fnmatch(name, "jobs/search-share-*/result.json")]
    return statistics.mean(json.loads(text)["work"] for text in found) / 1e12


def table() -> list[str]:
    """Markdown: a line for the study and for each ablation that is complete.

    Searches and trainings have the seeds of the study: what is compared are pairs.
    """
    base, base_networks = searched(STUDY), networks(STUDY)
    lines = [
        "| search | test error, % | difference of pairs | same network | each search | found | "
        "counted cost of a search, T |",
        "|---|---|---|---|---|---|---|",
        f"| as it is | {mean_and_spread(base.values())} | | | {each(base)} | "
        f"{kinds(base_networks)} | {counted_cost(STUDY):.2f} |",
    ]
    for name, (title, _) in ABLATIONS.items():
        path = RESULTS / f"{name}.json"
        errors = searched(path) if path.exists() else {}
        if len(errors) == SEARCHES:
            found = networks(path)
            pairs = [error - base[subject] for subject, error in errors.items()]
            same = sum(found[subject] == base_networks[subject] for subject in found)
            lines.append(
                f"| {title} | {mean_and_spread(errors.values())} | {mean_and_spread(pairs)} | "
                f"{same} of {len(found)} | {each(errors)} | {kinds(found)} | "
                f"{counted_cost(path):.2f} |"
            )
    return lines


def kinds(found: Mapping[str, Architecture]) -> str:
    """The operations of the networks' blocks, and how many networks have them."""
    counts = Counter(
        ", ".join(readable_operation(block.operation(node)) for node in block.kept_nodes)
        for block, *_ in (one.blocks for one in found.values())
    )
    return "; ".join(f"{names} ({count})" for names, count in counts.most_common())


def each(errors: dict[str, float]) -> str:
    """All values, as tables show them."""
    return ", ".join(f"{error:.2f}" for error in errors.values())


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
