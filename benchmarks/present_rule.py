"""Searches by the present rule of removal beside the study of the former one, Fashion-MNIST, 1 M.

Searched networks and random factors by the jobs that compare_fashion_mnist.sh goes on from; all
others by the study's own results. All networks are trained alike; p is Welch's, two-sided.

    python benchmarks/present_rule.py     # at once
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import ttest_ind

from small_study import mean_and_spread

RESULTS = Path("benchmarks/results")
Errors = dict[tuple[str, str], list[float]]  # by space and method, one for each architecture


def errors(rows: Iterable[dict[str, Any]]) -> Errors:
    """The mean error of each architecture."""
    trained = defaultdict(list)
    for row in rows:
        trained[row["space"], row["method"], row["subject"]].append(row["test_error"])
    found: Errors = defaultdict(list)
    for (space, method, _), values in trained.items():
        found[space, method].append(mean(values))
    return found


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    jobs = json.loads((RESULTS / "compare-fashion-mnist-jobs.json").read_text())
    present = errors(json.loads(jobs[k]) for k in jobs if fnmatch(k, "jobs/train-*/result.json"))
    study = json.loads((RESULTS / "compare-fashion-mnist.json").read_text())
    former = errors(row for row in study["networks"] if row["budget"] == 0)  # 1 M
    print("| space | networks | number | test error, % | less error by the present search | p |")
    print("|---|---|---|---|---|---|")
    for space in ("share", "full"):
        ours = present[space, "searched"]
        print(f"| {space} | searched | {len(ours)} | {mean_and_spread(ours)} | | |")
        for rule, found in (("present", present), ("former", former)):
            for (where, method), values in found.items():
                if where == space and len(values) > 1 and values is not ours:
                    p = ttest_ind(ours, values, equal_var=False)[1]
                    less = 100 * (1 - mean(ours) / mean(values))
                    name = f"{method.replace('_', ' ')}, {rule} rule"
                    spread = mean_and_spread(values)
                    print(
                        f"| {space} | {name} | {len(values)} | {spread} | {less:.1f} % | {p:.2g} |"
                    )


if __name__ == "__main__":
    main()
