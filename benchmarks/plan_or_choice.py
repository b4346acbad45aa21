"""What trained scaling factors add to the plan of a search, over all studies together.

Every study has networks of its searches and networks of the same plan with random factors. By how
much lower are the errors of the searched ones (relative, averaged over budgets), and how often do
random exchanges of searches and random draws within a study's space differ as much? A search keeps
its results at all budgets together, so that these need not be independent of each other. In "all"
every space counts by the inverse of its variance under such exchanges.

    python benchmarks/plan_or_choice.py     # seconds; reads benchmarks/results/compare-*.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path("benchmarks/results")
STUDIES = ("compare-fashion-mnist", "compare-digits", "compare-mnist-5k")
SAMPLES = 100_000


def places(study: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each space the mean errors of searches and of random factors, (units, budgets) each."""
    errors = defaultdict(lambda: defaultdict(list))
    for network in study["networks"]:
        if network["method"] in ("searched", "random_factors"):
            unit = (network["space"], network["method"], network["subject"])
            errors[unit][network["budget"]].append(network["test_error"])
    tables = defaultdict(list)
    for (space, method, _), by_budget in sorted(errors.items()):
        tables[space, method].append([np.mean(by_budget[k]) for k in sorted(by_budget)])
    return {
        space: (np.array(tables[space, "searched"]), np.array(tables[space, "random_factors"]))
        for space, method in tables
        if method == "random_factors"
    }


def avoided(searched: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean logarithm of the ratio of the errors, over the budgets; both (..., units, budgets)."""
    return np.log(drawn.mean(-2) / searched.mean(-2)).mean(-1)


def permuted(searched: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same of ``SAMPLES`` random exchanges of the units."""
    units = np.concatenate([searched, drawn])
    orders = rng.permuted(np.tile(np.arange(len(units)), (SAMPLES, 1)), axis=1)
    mixed = units[orders]  # (samples, units, budgets)
    return avoided(mixed[:, : len(searched)], mixed[:, len(searched) :])


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    rng = np.random.default_rng(0)
    names, found, chance = [], [], []
    for name in STUDIES:
        study = json.loads((RESULTS / f"{name}.json").read_text())
        for space, (searched, drawn) in places(study).items():
            names.append(f"{name}, {space}")
            found.append(float(avoided(searched, drawn)))
            chance.append(permuted(searched, drawn, rng))
    weights = np.array([1 / samples.var() for samples in chance])
    names.append("all")
    found.append(float(np.average(found, weights=weights)))
    chance.append(np.average(chance, axis=0, weights=weights))
    rows = [row(*place) for place in zip(names, found, chance, strict=True)]
    (RESULTS / "plan-or-choice.json").write_text(json.dumps(rows, indent=1) + "\n")
    for entry in rows:
        print(
            f"{entry['place']}: {entry['error_avoided_percent']} % less error "
            f"(standard deviation by chance {entry['chance_percent']}), p {entry['p_value']:.2g}"
        )


def row(place: str, log_ratio: float, samples: np.ndarray) -> dict[str, Any]:
    """A place, what is avoided there, and how likely chance gives as much, either way."""
    as_much = np.abs(samples) >= abs(log_ratio) - 1e-12
    return {
        "place": place,
        "log_ratio": log_ratio,
        "error_avoided_percent": round(100 * (1 - float(np.exp(-log_ratio))), 1),
        "chance_percent": round(100 * float(samples.std()), 1),
        "p_value": (1 + int(as_much.sum())) / (1 + len(samples)),
    }


if __name__ == "__main__":
    main()
