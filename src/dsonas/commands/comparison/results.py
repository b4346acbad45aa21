"""From the results of a study's jobs to one JSON value, the comparison; its page and picture."""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dsonas.commands.charts import LEFT, LIGHT, TOP, fit_axis, picture
from dsonas.commands.comparison.jobs import read_json, result_file
from dsonas.commands.comparison.study import METHODS, Study
from dsonas.cost import MEASURES
from dsonas.run import readable_count, versions

FORMAT, VERSION = "dsonas-compare", 1
RESAMPLES = 99_999  # all regroupings of up to 5 and 20 values, or 8 and 10
Result = Mapping[str, Any]
Errors = Sequence[float]  # test errors, in percent


# the JSON value


def comparison(study: Study, path: Path, failed: Mapping[str, str]) -> dict[str, Any]:
    """Sum up what the study in a folder has found so far; ``docs/compare.md`` explains the keys."""
    found = {  # a result was written when its budget may have stood at another place of the list
        unit.name: {**read_json(file, unit.name), "budget": unit.budget}
        for unit in study.units
        if (file := result_file(path, unit.name)).exists()
    }
    results, config = list(found.values()), study.config
    widest = list(study.widest.skeleton.channels)
    rankings = {r["space"]: r["errors"] for r in results if r["kind"] == "rank"}
    largest = defaultdict(list)  # numbers of multiply-adds, where the budget bounds something else
    for result in results:
        if result["kind"] == "train":
            largest[result["budget"]].append(result["macs"])
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": len(found) == len(study.units),
        "data": {"name": config.run.data.name, "training_images": study.num_train,
                 "test_images": study.num_test},
        "budgets": [
            compare_at(results, budget, space, rankings.get(space))
            | {"macs": bounds.macs or max(largest[budget], default=None)}
            | {"bounds": bounds.bounds, "space": space}
            for budget, bounds in enumerate(config.budgets)
            for space in config.spaces
        ],
        "searches": [
            {key: r[key] for key in r if key not in ("work", "budget", "method")}
            for r in results if r["kind"] == "search"
        ],
        "cost": cost(results, {name: study.search_work(name) for name in study.spaces}),
        "networks": [_network(r) for r in results if r["kind"] == "train"],
        "trials": [
            {**_network(r), "validation_error": r["validation_error"]}
            for r in results if r["kind"] == "trial"
        ],
        # as wide as they may be, so that they may not use up their budget
        "widest": sum(r["kind"] == "train" and list(r["channels"]) == widest for r in results),
        "failed": dict(failed),
        "study": {
            "seed": config.run.seed, "jobs": len(study.units),
            **{name: n for name, n in vars(config).items() if isinstance(n, int | float)},
        },
        "settings": config.run.settings(),
        "versions": versions(),
        "hardware": hardware(),
    }  # fmt: skip


def compare_at(
    results: Iterable[Result], budget: int, space: str, ranking: Mapping[str, float] | None
) -> dict[str, Any]:
    """Compare at one budget, by its position, in one space; hand-made networks stand beside both.

    p-values take architectures, not trainings, as independent values; those of hand-made networks
    take trainings, since there is one architecture.
    """
    by_method: dict[str, dict[str, list[float]]] = {method: defaultdict(list) for method in METHODS}
    for result in results:
        here = result["kind"] == "train" and result["budget"] == budget
        if here and result["space"] in (space, ""):
            by_method[result["method"]][result["subject"]].append(result["test_error"])
    groups = {method: list(by_method[method].values()) for method in METHODS[:-1]}
    for name, errors in sorted(by_method["hand_made"].items()):
        groups[name.replace("-", "_")] = [[error] for error in errors]
    searched = means(groups["searched"])
    against = {
        method: _difference(searched, means(group))
        for method, group in groups.items() if method != "searched" and group
    }  # fmt: skip
    random = against.get("random", _difference([], []))
    return {
        **{method: [e for errors in by_method[method].values() for e in errors]
           for method in METHODS},
        "relative_error_reduction": random["relative_error_reduction"],
        "p_value": random["p_value"],
        "trainings": {method: [e for errors in group for e in errors]
                      for method, group in groups.items() if group},
        "summary": {method: summary for method, group in groups.items()
                    if (summary := summarise(group))},
        "against": against,
        "kendall_tau": _rank(by_method["random"], ranking),
    }  # fmt: skip


def _difference(ours: Errors, others: Errors) -> dict[str, float | None]:
    return {
        "relative_error_reduction": relative_error_reduction(ours, others),
        "p_value": welch_p(ours, others),
        "p_permutation": permutation_p(ours, others),
    }


def _rank(trained: Mapping[str, Errors], ranking: Mapping[str, float] | None) -> dict[str, Any]:
    """How well the pretrained supernet ranks the random architectures."""
    if ranking is None:
        return {"tau": None, "reason": "no ranking: it takes pretraining and 3 random networks"}
    names = [name for name in trained if name in ranking]
    errors = means([trained[name] for name in names])
    found = rank_correlation([ranking[name] for name in names], errors)
    reason = "it takes 3 trained random networks with different errors"
    return found or {"tau": None, "reason": reason}


def cost(results: Sequence[Result], search_work: Mapping[str, int]) -> dict[str, Any]:
    """Sum up core-hours by kind of job, and searches beside random searches of each space."""

    def seconds(kind: str, space: str | None = None) -> list[float]:
        chosen = [r for r in results if r["kind"] == kind and space in (None, r["space"])]
        return [r["core_seconds"] for r in chosen]

    kinds = {kind: sum(seconds(kind)) for kind in dict.fromkeys(r["kind"] for r in results)}
    trials: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result["kind"] == "trial":
            trials[result["subject"].rpartition("-")[0]].append(result)
    places = list(search_work)
    names = sorted(trials, key=lambda name: (places.index(trials[name][0]["space"]), name))
    return {
        "core_hours": round(sum(kinds.values()) / 3600, 3),
        "core_hours_by_kind": {kind: round(value / 3600, 3) for kind, value in kinds.items()},
        "search": {
            space: {"counted_macs": work, "core_seconds": seconds("search", space)}
            for space, work in search_work.items()
        },
        "random_search": {
            name.replace("candidate", "random-search"): {
                "candidates": len(trials[name]),
                "counted_macs": sum(result["work"] for result in trials[name]),
                "core_seconds": round(sum(result["core_seconds"] for result in trials[name]), 3),
            }
            for name in names
        },
    }


def _network(result: Result) -> dict[str, Any]:
    keys = ("subject", "method", "space", "budget", "seed", "test_error", "macs", "params",
            "channels", "live_connections", "diverged", "core_seconds")  # fmt: skip
    return {key: result[key] for key in keys if key in result}


def hardware() -> dict[str, Any]:
    """The machine, without its name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads_per_job": 1,
    }


# statistics


def summarise(trainings: Sequence[Errors]) -> dict[str, Any] | None:
    """Summarise the errors of each architecture's trainings; None without any.

    Mean and standard deviation (n - 1; None for a single one) are between architectures, each the
    mean of its trainings. The best training is chosen on the test images, so for information.

    Example:
        >>> summarise([[8.0, 10.0], [12.0, 12.0]])["mean"]
        10.5
    """
    units, every = means(trainings), [error for errors in trainings for error in errors]
    if not units:
        return None
    return {
        "mean": fmean(units),
        "std": stdev(units) if len(units) > 1 else None,
        "best": min(every),
        "num_values": len(units),
        "num_trainings": len(every),
    }


def means(trainings: Iterable[Errors]) -> list[float]:
    """The mean of each architecture that has been trained: the independent values of a test."""
    return [fmean(errors) for errors in trainings if errors]


def relative_error_reduction(ours: Errors, others: Errors) -> float | None:
    """The share of the others' mean error that is avoided; 0.1 is 10 %. None without values."""
    if not ours or not others or fmean(others) == 0:
        return None
    return 1 - fmean(ours) / fmean(others)


def welch_p(ours: Errors, others: Errors) -> float | None:
    """Two-sided p-value of Welch's t-test; None below two values a side, or if nothing varies."""
    from scipy import stats  # takes half a second

    if min(len(ours), len(others)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all the same
        p_value = float(stats.ttest_ind(ours, others, equal_var=False).pvalue)  # pyright: ignore
    return p_value if math.isfinite(p_value) else None


def permutation_p(ours: Errors, others: Errors, seed: int = 0) -> float | None:
    """Two-sided p-value of the permutation test on Welch's statistic; None below two values.

    The statistic is studentised, so that the test stays right when the two sides vary differently.
    All regroupings are taken if there are at most ``RESAMPLES``, otherwise so many random ones.
    """
    from scipy import stats

    if min(len(ours), len(others)) < 2:
        return None
    found = stats.permutation_test(
        (ours, others), absolute_t, permutation_type="independent", alternative="greater",
        vectorized=True, n_resamples=RESAMPLES, batch=10_000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def absolute_t(ours: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
    """The absolute value of Welch's statistic; 1e12 for different values without any spread.

    Not by scipy's t-test, for which differences of rounding size are some.
    """
    difference = np.abs(np.mean(ours, axis) - np.mean(others, axis))
    variance = sum(np.var(x, axis, ddof=1) / np.shape(x)[axis] for x in (ours, others))
    with np.errstate(divide="ignore", invalid="ignore"):
        # an infinite statistic would count as larger than itself in a permutation test
        statistic = np.minimum(difference / np.sqrt(variance), 1e12)
    return np.where(difference < 1e-12, 0.0, statistic)


def rank_correlation(first: Errors, second: Errors) -> dict[str, float] | None:
    """Kendall's tau-b of two rankings; None below three items, or if one side is constant.

    Example:
        >>> rank_correlation([1, 2, 3, 4], [5, 6, 8, 7])["tau"]
        0.6666666666666669
    """
    from scipy import stats

    if len(first) < 3:
        return None
    tau, p_value = map(float, stats.kendalltau(first, second))  # pyright: ignore
    found = {"tau": tau, "p_value": p_value, "num_architectures": len(first)}
    return found if math.isfinite(tau) and math.isfinite(p_value) else None


# the page

TITLES = {
    "searched": "searched",
    "random": "random",
    "random_factors": "random factors, same plan",
    "random_search": "random search, equal cost",
    "hand_made_residual": "hand-made, two separable 3x3",
    "hand_made_mobile": "hand-made, inverted bottleneck",
}
_HEAD = """\
| space | {measure} | networks | architectures (trainings) | test error % | best \
| error avoided by searching | p (Welch) | p (permutation) |
|-|-|-|-|-|-|-|-|-|"""
_NOTE = """\
Test error: mean and standard deviation between architectures, each the mean of its trainings \
(hand-made: between trainings of one architecture). Best is chosen on the test images, so it is \
for information only. Error avoided: of the searched networks against those of the line; p-values \
are two-sided."""


def markdown(value: Mapping[str, Any]) -> str:
    """Write the table of a comparison, and what it takes to judge it, as Markdown."""
    data, study, machine = value["data"], value["study"], value["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    missing = "" if value["complete"] else "**Not complete: some jobs are missing.**\n\n"
    title = f"""\
# Searched against random and hand-made networks: {data["name"]}

{data["training_images"]} training and {data["test_images"]} test images; searches of each space: \
{study["seeds"]}, trainings of each architecture found: {study["train_seeds"]}, seed \
{study["seed"]}. All networks are trained alike, {value["settings"]["train.epochs"]} epochs on \
all training images, and count as they are at the end; nothing is chosen by the test images.

{missing}{_HEAD.format(measure=leading_bound(value["budgets"][0])[0])}"""
    machine = (
        f"- {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"{machine['threads_per_job']} thread for each job; {versions}"
    )
    rows = [row for entry in value["budgets"] for row in _rows(entry)]
    failed = [f"- failed: {name}: {reason}" for name, reason in value["failed"].items()]
    ranks = [_rank_line(entry) for entry in value["budgets"]]
    wide = [
        f"- {value['widest']} of {len(value['networks'])} networks are as wide as may be, so "
        "they may cost less than their budget: raise network.channels, or lower the budget"
    ]
    wide = wide if value["widest"] else []
    lines = [title, *rows, "", _NOTE, "", *ranks, *wide, *_costs(value["cost"]), machine, *failed]
    return "\n".join(lines) + "\n"


def _rows(entry: Mapping[str, Any]) -> Iterator[str]:
    for method, title in TITLES.items():
        if (summary := entry["summary"].get(method)) is None:
            continue
        against = entry["against"].get(method, {})
        avoided, spread = against.get("relative_error_reduction"), summary["std"]
        count = 1 if method.startswith("hand_made") else summary["num_values"]
        cells = [
            entry["space"],
            leading_bound(entry)[1],
            title,
            f"{count} ({summary['num_trainings']})",
            f"{summary['mean']:.2f}" + ("" if spread is None else f" ± {spread:.2f}"),
            f"{summary['best']:.2f}",
            "" if avoided is None else f"{100 * avoided:.1f} %",
            _p(against.get("p_value")),
            _p(against.get("p_permutation")),
        ]
        yield f"| {' | '.join(cells)} |"


def _rank_line(entry: Mapping[str, Any]) -> str:
    rank, where = entry["kendall_tau"], f"{entry['space']}, {leading_bound(entry)[1]}"
    if rank["tau"] is None:
        return f"- rank correlation ({where}): not measured, {rank['reason']}"
    return (
        f"- rank correlation of the pretrained supernet's error and the trained error of "
        f"{rank['num_architectures']} random architectures ({where}): Kendall's tau "
        f"{rank['tau']:.2f} (p {_p(rank['p_value'])})"
    )


def _costs(cost: Mapping[str, Any]) -> Iterator[str]:
    kinds = ", ".join(f"{kind} {hours:.2f}" for kind, hours in cost["core_hours_by_kind"].items())
    yield f"- cost of the study: {cost['core_hours']:.2f} core-hours ({kinds})"
    for space, search in cost["search"].items():
        seconds, counted = search["core_seconds"], readable_count(search["counted_macs"])
        mean = f"{fmean(seconds):.0f} core-seconds" if seconds else "not done"
        yield f"- a search of the {space} space: {counted} counted multiply-adds, {mean}"
    for name, search in cost["random_search"].items():
        yield (
            f"- {name}: {search['candidates']} candidates, "
            f"{readable_count(search['counted_macs'])} counted multiply-adds, "
            f"{search['core_seconds']:.0f} core-seconds"
        )


def leading_bound(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The measure that leads the searches of a budget, and its bound, in words."""
    name, bound = next(iter(entry["bounds"].items()))
    return MEASURES[name].title, readable_count(bound)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


# the picture

COLOURS = dict(zip(TITLES, map(LIGHT.get, ("k0", "k2", "k5", "k4", "k3", "k7")), strict=True))
PANEL, GAP, STEP = 340, 30, 10  # widths: of a panel, between panels, between methods


def svg(value: Mapping[str, Any]) -> str:
    """Draw a comparison as a self-contained SVG picture: test error at each budget, by space.

    Each dot is a training; the bars are the mean of a method and one standard deviation to each
    side, as in the table.
    """
    entries = [entry for entry in value["budgets"] if entry["summary"]]
    spaces = list(dict.fromkeys(entry["space"] for entry in entries))
    shown = [method for method in TITLES if any(method in entry["summary"] for entry in entries)]
    errors = [error for entry in entries for errors in entry["trainings"].values()
              for error in errors]  # fmt: skip
    for found in (found for entry in entries for found in entry["summary"].values()):
        errors += [found["mean"] - (found["std"] or 0), found["mean"] + (found["std"] or 0)]
    measure = leading_bound(value["budgets"][0])[0]
    columns = max(1, min(2, len(spaces)))  # of the legend; one panel has room for one
    below = 54 + 18 * math.ceil(len(shown) / columns)
    width = LEFT + (PANEL + GAP) * max(1, len(spaces))
    with picture(width, TOP + 260 + below) as drawn:
        for i, space in enumerate(spaces):
            here = [entry for entry in entries if entry["space"] == space]
            left = LEFT + i * (PANEL + GAP)
            axes = drawn.axes(left, width - left - PANEL, below)
            places = [PANEL * (at + 0.5) / len(here) for at in range(len(here))]
            axes.set_xlim(0, PANEL)
            axes.set_xticks(places, [leading_bound(entry)[1] for entry in here])
            axes.set_xlabel(f"{measure} →", loc="right")
            axes.set_title(f"{space} space", color=LIGHT["ink"])
            axes.set_title("" if i else "test error", loc="left")
            fit_axis(axes, "y", errors, "percent", zero=False)
            axes.tick_params(labelleft=i == 0)
            for place, entry in zip(places, here, strict=True):
                methods = [method for method in shown if method in entry["summary"]]
                for turn, method in enumerate(methods):
                    x = place + STEP * (turn - (len(methods) - 1) / 2)
                    found, values = entry["summary"][method], entry["trainings"][method]
                    axes.plot([x] * len(values), values, "o", color=COLOURS[method], ms=5.5, mew=0,
                              alpha=0.4, clip_on=False)  # fmt: skip
                    axes.errorbar(x, found["mean"], found["std"] or 0, 4, color=COLOURS[method],
                                  lw=1.8)  # fmt: skip
        if shown:
            discs = [axes.plot([], [], "o", color=COLOURS[method], ms=8)[0] for method in shown]
            names = [TITLES[method] for method in shown]
            drawn.figure.legend(discs, names, ncols=columns, loc="lower left",
                                bbox_to_anchor=((LEFT - 8) / width, 0))  # fmt: skip
        return drawn.svg(f"{value['data']['name']}: test error against {measure}")
