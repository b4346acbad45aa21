"""What a run folder holds, as far as it is there: a report is also made of an unfinished run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dsonas.cost import Budget
from dsonas.graph import Architecture, block_connections, doubled_channels
from dsonas.run import RunError
from dsonas.train import STAGES, CheckpointError, CheckpointFolder

Factors = list[list[float]]  # packed factors of each block, or one list for all blocks
Value = TypeVar("Value")


@dataclass(frozen=True)
class Epoch:
    """A line of ``log.csv``: its stage, its number from 1, and what was measured.

    Example:
        >>> Epoch("train", 3, {"loss": 0.5}).values["loss"]
        0.5
    """

    stage: str
    number: int
    values: Mapping[str, float]


@dataclass(kw_only=True)
class RunRecord:
    """Everything of a run that a report shows.

    Args:
        path: its folder.
        config: the settings, nested as in ``config.yaml``.
        config_text: that file.
        epochs: the log.
        metrics: what ``metrics.json`` holds; None if the run is not finished.
        architecture: what was found or trained.
        history: the scaling factors after each search epoch, or only after the last one.
        only_last: whether ``history`` holds nothing but the end of the search.
        studies: other networks that the folder knows: (multiply-adds, test error, kind).
        problems: what could not be read, and why.
    """

    path: Path
    config: dict[str, Any]
    config_text: str
    epochs: list[Epoch] = field(default_factory=list)
    metrics: dict[str, Any] | None = None
    architecture: Architecture | None = None
    history: list[Factors] = field(default_factory=list)
    only_last: bool = False
    studies: list[tuple[float, float, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name or str(self.path)

    @property
    def factors(self) -> Factors | None:
        """The scaling factors at the end of the search.

        Those that were 0 then have their last value before: the network that meets the budget may
        be one that the search passed on its way.
        """
        if not self.history:
            return None
        last = [list(factors) for factors in self.history[-1]]
        for earlier in reversed(self.history):
            for values, before in zip(last, earlier, strict=True):
                values[:] = [v or b for v, b in zip(values, before, strict=True)]
        return last

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; None if it is not there."""
        value: Any = self.config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def stage(self, name: str) -> list[Epoch]:
        """The epochs of a stage."""
        return [epoch for epoch in self.epochs if epoch.stage == name]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each stage so far."""
        times = {name: [e.values.get("seconds", 0.0) for e in self.stage(name)] for name in STAGES}
        return {name: values[-1] for name, values in times.items() if values}

    @property
    def supernet(self) -> Architecture | None:
        """The complete architecture in which the search began; None for a run without one."""
        if self.architecture is None or not self.stage("search"):
            return None
        found = self.architecture
        complete = Architecture.complete(found.skeleton, found.operations, found.num_levels)
        channels = self.setting("network.channels")
        stages = len(found.skeleton.blocks)
        if isinstance(channels, int):
            channels = doubled_channels(channels, stages)
        valid = isinstance(channels, list | tuple) and len(channels) == stages
        return complete.with_channels(tuple(map(int, channels))) if valid else None


def read_run(path: str | Path) -> RunRecord:
    """Read a run folder.

    Raises:
        RunError: if it has no readable ``config.yaml``, so is not the folder of a run.
    """
    path = Path(path)
    try:
        text = (path / "config.yaml").read_text()
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        config, text = None, ""
    if not isinstance(config, dict):
        raise RunError(
            f"{path} must be the folder of a run, but has no readable config.yaml: "
            "give what --out was when it ran"
        )
    record = RunRecord(path=path, config=config, config_text=text)
    record.epochs = _read(record, "log.csv", read_log) or []
    record.metrics = _read(record, "metrics.json", _read_metrics)
    record.architecture = _read(record, "architecture.json", Architecture.load)
    record.studies = _read(record, "compare.json", read_study) or []
    record.studies += _read(record, "pareto.csv", read_front) or []
    _add_factors(record)
    return record


def _read(record: RunRecord, name: str, read: Callable[[Path], Value]) -> Value | None:
    file = record.path / name
    if not file.is_file():
        return None
    try:
        return read(file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        record.problems.append(f"{name} cannot be read and is left out: {reason}")
        return None


def read_log(file: Path) -> list[Epoch]:
    """The lines of a ``log.csv``; empty fields are left out."""
    with open(file, newline="") as lines:
        return [
            Epoch(
                row["stage"],
                int(row["epoch"]),
                {
                    name: float(value)
                    for name, value in row.items()
                    if value and name not in ("stage", "epoch")
                },
            )
            for row in csv.DictReader(lines)
        ]


def _read_metrics(file: Path) -> dict[str, Any]:
    metrics = json.loads(file.read_text())
    for name in ("test_error", "macs", "params"):
        if not isinstance(metrics[name], int | float):
            raise ValueError(f"{name} must be a number, got {metrics[name]!r}")
    return metrics


def read_study(file: Path) -> list[tuple[float, float, str]]:
    """The networks of a comparison: (multiply-adds, test error in percent, how it was found).

    Args:
        file: JSON whose ``budgets`` is a list of objects; each has ``macs`` and, by the name of
            each way to find a network, the list of its test errors.
    """
    budgets = json.loads(file.read_text())["budgets"]
    return [
        (float(budget["macs"]), float(error), kind.replace("_", " "))
        for budget in budgets
        for kind, errors in budget.items()
        if isinstance(errors, list)
        for error in errors
        if isinstance(error, int | float)
    ]


def read_front(file: Path) -> list[tuple[float, float, str]]:
    """The networks of ``pareto.csv``, as ``read_study`` has them."""
    with open(file, newline="") as lines:
        return [
            (float(row["macs"]), float(row["test_error"]), "of the same search")
            for row in csv.DictReader(lines)
            if row["macs"] and row["test_error"]
        ]


def _add_factors(record: RunRecord) -> None:
    """From ``factors.csv``; without it, from the checkpoints."""
    if record.architecture is not None:
        found = record.architecture

        def read(file: Path) -> list[Factors]:
            return read_factors(file, found)

        record.history = _read(record, "factors.csv", read) or []
    if record.history:
        return
    try:
        saved = _checkpoint(record, "train").get("extras", {}).get("factors")
        state = _checkpoint(record, "search").get("state", {}) if saved is None else {}
    except CheckpointError as error:
        record.problems.append(f"the scaling factors cannot be read: {error}")
        return
    record.history = [saved] if saved else state.get("history", [])
    record.only_last = bool(saved)


def _checkpoint(record: RunRecord, stage: str) -> dict[str, Any]:
    return CheckpointFolder(record.path / "checkpoints" / stage).load_last() or {}


def read_factors(file: Path, architecture: Architecture) -> list[Factors]:
    """The scaling factors after each epoch, from ``factors.csv``.

    Args:
        file: one line for each factor that is not 0.
        architecture: whose blocks they belong to.
    """
    connections = block_connections(architecture.num_levels, len(architecture.operations))
    index = {tuple(pair): i for i, pair in enumerate(connections)}
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    shared = any(row["block"] == "all" for row in rows)
    num_sets = 1 if shared else len(architecture.blocks)
    num_epochs = max((int(row["epoch"]) for row in rows), default=0)
    history = [[[0.0] * len(connections) for _ in range(num_sets)] for _ in range(num_epochs)]
    for row in rows:
        place = 0 if shared else int(row["block"]) - 1
        pair = int(row["source"]), int(row["target"])
        history[int(row["epoch"]) - 1][place][index[pair]] = float(row["factor"])
    return history


def budget_bounds(record: RunRecord) -> dict[str, float]:
    """The upper bounds that the run was given, by measure."""
    values = record.setting("budget")
    try:
        known = {k: values[k] for k in Budget.__dataclass_fields__ if k in values}
        return dict(Budget(**known).bounds)
    except (ValueError, TypeError):
        return {}
