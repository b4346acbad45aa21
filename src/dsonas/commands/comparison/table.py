"""The comparison as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsonas.run import readable_count

Value = Mapping[str, Any]

TITLES = {
    "searched": "searched",
    "random": "random",
    "random_factors": "random factors, same plan",
    "random_search": "random search, equal cost",
    "hand_made_residual": "hand-made, two separable 3x3",
    "hand_made_mobile": "hand-made, inverted bottleneck",
}
_HEAD = (
    "| space | multiply-adds | networks | architectures (trainings) | test error % | best "
    "| error avoided by searching | p (Welch) | p (permutation) |"
)
_NOTE = (
    "Test error: mean and standard deviation between architectures, each the mean of its "
    "trainings (hand-made: between trainings of one architecture). Best is chosen on the test "
    "images, so it is for information only. Error avoided: of the searched networks against "
    "those of the line; p-values are two-sided."
)


def markdown(value: Value) -> str:
    """The table and what it takes to judge it.

    Args:
        value: what ``comparison.results.comparison`` returns.
    """
    lines = [_title(value), "", _HEAD, "|-" * 9 + "|"]
    for entry in value["budgets"]:
        lines += _rows(entry)
    lines += ["", _NOTE, "", *_ranks(value["budgets"]), *_costs(value), *_machine(value)]
    lines += [f"- failed: {name}: {reason}" for name, reason in value["failed"].items()]
    return "\n".join(lines) + "\n"


def _title(value: Value) -> str:
    data, study = value["data"], value["study"]
    text = (
        f"# Searched against random and hand-made networks: {data['name']}\n\n"
        f"{data['training_images']} training and {data['test_images']} test images; "
        f"searches of each space: {study['seeds']}, trainings of each architecture "
        f"found: {study['train_seeds']}, seed {study['seed']}. All networks are trained alike, "
        f"{value['settings']['train.epochs']} epochs on all training images, and measured once, "
        "at the end; nothing is chosen by the test images."
    )
    return text if value["complete"] else f"{text}\n\n**Not complete: some jobs are missing.**"


def _rows(entry: Value) -> Iterator[str]:
    for method, title in TITLES.items():
        summary = entry["summary"].get(method)
        if summary is None:
            continue
        spread = "" if summary["std"] is None else f" ± {summary['std']:.2f}"
        against = entry["against"].get(method, {})
        cells = [
            entry["space"],
            _count(entry["macs"]),
            title,
            f"{summary['num_values']} ({summary['num_trainings']})"
            if not method.startswith("hand_made") else f"1 ({summary['num_trainings']})",
            f"{summary['mean']:.2f}{spread}",
            f"{summary['best']:.2f}",
            _percent(against.get("relative_error_reduction")),
            _p(against.get("p_value")),
            _p(against.get("p_permutation")),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _ranks(entries: list[Value]) -> Iterator[str]:
    for entry in entries:
        rank, where = entry["kendall_tau"], f"{entry['space']}, {_count(entry['macs'])}"
        if rank["tau"] is None:
            yield f"- rank correlation ({where}): not measured, {rank['reason']}"
        else:
            yield (
                f"- rank correlation of the pretrained supernet's error and the trained error of "
                f"{rank['num_architectures']} random architectures ({where}): Kendall's tau "
                f"{rank['tau']:.2f} (p {_p(rank['p_value'])})"
            )


def _costs(value: Value) -> Iterator[str]:
    cost = value["cost"]
    kinds = ", ".join(f"{kind} {hours:.2f}" for kind, hours in cost["core_hours_by_kind"].items())
    yield f"- cost of the study: {cost['core_hours']:.2f} core-hours ({kinds})"
    for space, search in cost["search"].items():
        seconds = search["core_seconds"]
        mean = f"{sum(seconds) / len(seconds):.0f} core-seconds" if seconds else "not done"
        counted = _count(search["counted_macs"])
        yield f"- a search of the {space} space: {counted} counted multiply-adds, {mean}"
    for name, search in cost["random_search"].items():
        yield (
            f"- {name}: {search['candidates']} candidates, {_count(search['counted_macs'])} "
            f"counted multiply-adds, {search['core_seconds']:.0f} core-seconds"
        )


def _machine(value: Value) -> Iterator[str]:
    hardware = value["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    yield (
        f"- {hardware['processor']}, {hardware['cores']} cores, {hardware['system']}, "
        f"{hardware['threads_per_job']} thread for each job; {versions}"
    )


def _count(number: float | None) -> str:
    return "?" if number is None else readable_count(number)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"
