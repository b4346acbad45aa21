"""From the results of a study's jobs to one JSON value: the comparison."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsonas.commands.comparison.statistics import (
    means,
    permutation_p,
    rank_correlation,
    relative_error_reduction,
    summarise,
    welch_p,
)
from dsonas.commands.comparison.study_folder import StudyFolder
from dsonas.commands.comparison.units import METHODS, Unit
from dsonas.run import versions

FORMAT, VERSION = "dsonas-compare", 1
Result = Mapping[str, Any]


def comparison(
    folder: StudyFolder, units: Sequence[Unit], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Everything a study has found so far.

    Args:
        folder: the study.
        units: its jobs.
        failed: jobs that failed, with the reason.

    Returns:
        A JSON value; ``docs/compare.md`` says what each key means.
    """
    found = {  # a result was written when its budget may have stood at another place of the list
        unit.name: {**result, "budget": unit.budget}
        for unit in units
        if (result := folder.result(unit))
    }
    results = list(found.values())
    study, config = folder.study, folder.study.config
    rankings = {r["space"]: r["errors"] for r in results if r["kind"] == "rank"}
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": len(found) == len(units),
        "data": {
            "name": config.run.data.name,
            "training_images": study.num_train,
            "test_images": study.num_test,
        },
        "budgets": [
            compare_at(results, budget, space, rankings.get(space))
            | {"macs": bounds.macs or _largest(results, budget), "bounds": bounds.bounds}
            | {"space": space}
            for budget, bounds in enumerate(config.budgets)
            for space in config.spaces
        ],
        "searches": [_without(r, "work", "budget", "method") for r in results
                     if r["kind"] == "search"],
        "cost": cost(results, {name: study.search_work(name) for name in study.spaces}),
        "networks": [_network(r) for r in results if r["kind"] == "train"],
        "trials": [
            {**_network(r), "validation_error": r["validation_error"]}
            for r in results if r["kind"] == "trial"
        ],
        "failed": dict(failed),
        "study": {
            "seed": config.run.seed, "seeds": config.seeds, "train_seeds": config.train_seeds,
            "random": config.random, "random_factors": config.random_factors,
            "random_searches": config.random_searches,
            "hand_made": config.hand_made,
            "trial_epochs": config.trial_epochs, "held_out": config.held_out,
            "jobs": len(units),
        },
        "settings": config.run.settings(),
        "versions": versions(),
        "hardware": hardware(),
    }  # fmt: skip


def compare_at(
    results: Iterable[Result], budget: int, space: str, ranking: Mapping[str, float] | None
) -> dict[str, Any]:
    """The comparison at one budget in one space.

    Args:
        results: of the jobs of a study.
        budget: its position in the study.
        space: ``share`` or ``full``; hand-made networks stand beside both.
        ranking: the supernet's error of each random architecture; None if it was not measured.

    Returns:
        Lists of test errors by method, their summaries, and how the searched networks differ from
        the others. p-values take architectures, not trainings, as independent values; those of
        hand-made networks take trainings, since there is one architecture.
    """
    by_method: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    for result in results:
        here = result["kind"] == "train" and result["budget"] == budget
        if here and result["space"] in (space, ""):
            subjects = by_method[result["method"]]
            subjects.setdefault(result["subject"], []).append(result["test_error"])
    groups = {method: list(by_method[method].values()) for method in METHODS[:-1]}
    for name, errors in sorted(by_method["hand_made"].items()):
        groups[name.replace("-", "_")] = [[error] for error in errors]
    searched = means(groups["searched"])
    against = {
        method: difference(searched, means(group))
        for method, group in groups.items() if method != "searched" and group
    }  # fmt: skip
    random = against.get("random", difference([], []))
    flat = {
        method: [error for errors in by_method[method].values() for error in errors]
        for method in METHODS
    }
    return {
        **flat,
        "relative_error_reduction": random["relative_error_reduction"],
        "p_value": random["p_value"],
        "trainings": {
            method: [error for errors in group for error in errors]
            for method, group in groups.items() if group
        },
        "summary": {
            method: asdict(summary)
            for method, group in groups.items() if (summary := summarise(group))
        },
        "against": against,
        "kendall_tau": _rank(by_method["random"], ranking),
    }  # fmt: skip


def difference(ours: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """How the searched networks differ from others: error avoided, and two p-values.

    Args:
        ours: independent test errors of searched networks, in percent.
        others: those of the others.
    """
    return {
        "relative_error_reduction": relative_error_reduction(ours, others),
        "p_value": welch_p(ours, others),
        "p_permutation": permutation_p(ours, others),
    }


def _rank(
    trained: Mapping[str, Sequence[float]], ranking: Mapping[str, float] | None
) -> dict[str, Any]:
    """How well the pretrained supernet ranks the random architectures."""
    if ranking is None:
        return {"tau": None, "reason": "no ranking: it takes pretraining and 3 random networks"}
    names = [name for name in trained if name in ranking]
    found = rank_correlation(
        [ranking[name] for name in names], means([trained[name] for name in names])
    )
    if found is None:
        return {"tau": None, "reason": "it takes 3 trained random networks with different errors"}
    return asdict(found)


def cost(results: Iterable[Result], search_work: Mapping[str, int]) -> dict[str, Any]:
    """What the study and its parts have cost.

    Args:
        results: of the jobs.
        search_work: counted multiply-adds of a search in each space.

    Returns:
        ``core_hours`` in all and by kind of job; for each space a search's counted multiply-adds
        and mean seconds of one core beside those of a random search.
    """
    seconds: dict[str, float] = {}
    searches: dict[str, list[float]] = {space: [] for space in search_work}
    trials: dict[str, dict[str, list[Result]]] = {space: {} for space in search_work}
    for result in results:
        kind = result["kind"]
        seconds[kind] = seconds.get(kind, 0.0) + result["core_seconds"]
        if kind == "search":
            searches[result["space"]].append(result["core_seconds"])
        if kind == "trial":
            name = result["subject"].rpartition("-")[0].replace("candidate", "random-search")
            trials[result["space"]].setdefault(name, []).append(result)
    return {
        "core_hours": round(sum(seconds.values()) / 3600, 3),
        "core_hours_by_kind": {kind: round(value / 3600, 3) for kind, value in seconds.items()},
        "search": {
            space: {"counted_macs": work, "core_seconds": searches[space]}
            for space, work in search_work.items()
        },
        "random_search": {
            name: {
                "candidates": len(group),
                "counted_macs": sum(result["work"] for result in group),
                "core_seconds": round(sum(result["core_seconds"] for result in group), 3),
            }
            for groups in trials.values() for name, group in sorted(groups.items())
        },
    }  # fmt: skip


def _largest(results: Iterable[Result], budget: int) -> int | None:
    """The largest number of multiply-adds, where the budget bounds something else."""
    return max((r["macs"] for r in results if r["kind"] == "train" and r["budget"] == budget),
               default=None)  # fmt: skip


def _network(result: Result) -> dict[str, Any]:
    keys = ("subject", "method", "space", "budget", "seed", "test_error", "macs", "params",
            "channels", "live_connections", "diverged", "core_seconds")  # fmt: skip
    return {key: result[key] for key in keys if key in result}


def _without(result: Result, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in keys}


def hardware() -> dict[str, Any]:
    """The machine, without its name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads_per_job": 1,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
