"""Read what a run folder holds, as far as it is there: a report is also made of unfinished runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from dsonas.cost import MEASURES, Budget, Cost, architecture_cost
from dsonas.graph import Architecture, block_connections, doubled_channels
from dsonas.run import (
    CHOICES_FILE,
    COMPRESSED_FILE,
    RunError,
    RunFolder,
    choices_from_json,
    compressed_from_json,
    upgraded,
)
from dsonas.train import STAGES

Factors = list[list[float]]  # packed factors of each block, or one list for all blocks
Candidate = tuple[str, str]  # label and name
Value = TypeVar("Value")


class Epoch(NamedTuple):
    """A line of ``log.csv``: its stage, its number from 1, and what was measured."""

    stage: str
    number: int
    values: Mapping[str, float]


@dataclass(kw_only=True)
class RunRecord:
    """Everything of a run that a report shows."""

    path: Path
    config: dict[str, Any]  # nested as in config.yaml
    config_text: str
    epochs: list[Epoch] = field(default_factory=list)
    metrics: dict[str, Any] | None = None  # None if the run is not finished
    architecture: Architecture | None = None  # what was found or trained
    history: list[Factors] = field(default_factory=list)  # factors after each search epoch
    choices: dict[str, list[str]] | None = None  # what was found in a supernet of the user's
    compressed: dict[str, Any] | None = None  # what is left of a trained model of the user's
    # its factors from the start of the search on, as far as they are not 0
    choice_history: dict[Candidate, dict[int, float]] = field(default_factory=dict)
    # other networks that the folder knows: (multiply-adds, test error, kind)
    studies: list[tuple[float, float, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what could not be read, and why

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name or str(self.path)

    @property
    def is_study(self) -> bool:
        """Whether it is nothing but a comparison."""
        return bool(self.studies) and not self.epochs and not self.has_found

    @property
    def has_found(self) -> bool:
        """Whether its search has come to its end."""
        return self.architecture is not None or self.is_own

    @property
    def is_own(self) -> bool:
        """Whether the network found is out of a model of the user's."""
        return self.choices is not None or self.compressed is not None

    @property
    def unit(self) -> str:
        """What its search removes."""
        if self.compressed is not None:
            return "branches and channels"
        return "connections" if self.choices is None else "candidates"

    def factors(self, place: int) -> list[float] | None:
        """The scaling factors of a block at the end of the search; None if they are not known.

        Those that were 0 then have their last value before: the network that meets the budget may
        be one that the search passed on its way.
        """
        last: list[float] = []
        for epoch in self.history:
            factors = epoch[min(place, len(epoch) - 1)]
            last = [now or before for now, before in zip(factors, last or factors, strict=True)]
        return last or None

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
        last = {name: epochs[-1] for name in STAGES if (epochs := self.stage(name))}
        return {name: epoch.values.get("seconds", 0.0) for name, epoch in last.items()}

    @property
    def complete(self) -> Architecture | None:
        """The architecture with nothing removed."""
        found = self.architecture
        return found and Architecture.complete(found.skeleton, found.operations, found.num_levels)

    @property
    def supernet(self) -> Architecture | None:
        """The complete architecture in which the search began; None for a run without one."""
        complete, channels = self.complete, self.setting("network.channels")
        if complete is None or not self.stage("search"):
            return None
        stages = len(complete.skeleton.blocks)
        if isinstance(channels, int):
            channels = doubled_channels(channels, stages)
        valid = isinstance(channels, list | tuple) and len(channels) == stages
        return complete.with_channels(tuple(map(int, channels))) if valid else None

    @property
    def final_cost(self) -> dict[str, float]:
        """What the network found costs, by measure, as far as it is known."""
        if (cost := cost_of(self.architecture)) is not None:
            return asdict(cost)
        return {name: value for name, value in (self.metrics or {}).items() if name in MEASURES}

    @property
    def bounds(self) -> dict[str, float]:
        """The upper bounds that the run was given, by measure."""
        values = self.setting("budget")
        try:
            known = {k: values[k] for k in Budget.__dataclass_fields__ if k in values}
            metrics = self.metrics or {}
            return dict(Budget(**known).of(lambda name: metrics[f"supernet_{name}"]).bounds)
        except (ValueError, TypeError, KeyError):  # a share of a supernet that is not known
            return {}

    @property
    def fates(self) -> Iterator[tuple[str, list[str], dict[str, int]]]:
        """Each choice, what it kept, and what else there was with the epoch after which it went."""
        for label in dict.fromkeys([label for label, _ in self.choice_history]):
            kept = (self.choices or {}).get(label, [])
            last = {name: max(v) for (one, name), v in self.choice_history.items() if one == label}
            gone = [name for name in last if kept and name not in kept]
            yield label, kept, {name: last[name] + 1 for name in gone}


def cost_of(architecture: Architecture | None) -> Cost | None:
    """What a network costs; None without one, or if it has operations not registered here."""
    try:
        return architecture_cost(architecture) if architecture else None
    except ValueError:
        return None


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
    record = RunRecord(path=path, config=upgraded(config), config_text=text)

    def read(name: str, reader: Callable[[Path], Value]) -> Value | None:
        try:
            return reader(path / name) if (path / name).is_file() else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            record.problems.append(f"{name} cannot be read and is left out: {reason}")
            return None

    record.epochs = read("log.csv", _read_log) or []
    record.metrics = read("metrics.json", lambda _: RunFolder(path).summary)
    if found := read("architecture.json", Architecture.load):
        record.architecture = found
        record.history = read("factors.csv", lambda file: _read_factors(file, found)) or []
    if found_choices := read(CHOICES_FILE, choices_from_json):
        record.choices = found_choices
        record.choice_history = read("factors.csv", _read_choice_factors) or {}
    record.compressed = read(COMPRESSED_FILE, compressed_from_json)
    record.studies = read("compare.json", _read_study) or []
    record.studies += read("pareto.csv", _read_front) or []
    return record


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def _read_log(file: Path) -> list[Epoch]:
    return [
        Epoch(row.pop("stage"), int(row.pop("epoch")), {k: float(v) for k, v in row.items() if v})
        for row in _rows(file)
    ]


def _read_study(file: Path) -> list[tuple[float, float, str]]:
    """The networks of a ``compare.json``: each once, also if it stands beside both spaces."""
    return [
        (float(net["macs"]), float(net["test_error"]), net["method"].replace("_", " "))
        for net in json.loads(file.read_text())["networks"]
    ]


def _read_front(file: Path) -> list[tuple[float, float, str]]:
    return [
        (float(row["macs"]), float(row["test_error"]), "of the same search")
        for row in _rows(file)
        if row["macs"] and row["test_error"]
    ]


def _read_choice_factors(file: Path) -> dict[Candidate, dict[int, float]]:
    found: dict[Candidate, dict[int, float]] = {}
    for row in _rows(file):
        of = found.setdefault((row["choice"], row["candidate"]), {})
        of[int(row["epoch"])] = float(row["factor"])
    return found


def _read_factors(file: Path, architecture: Architecture) -> list[Factors]:
    """The factors after each epoch: the file has a line for each that is not 0."""
    connections = block_connections(architecture.num_levels, len(architecture.operations))
    index = {tuple(pair): i for i, pair in enumerate(connections)}
    rows = _rows(file)
    shared = any(row["block"] == "all" for row in rows)
    num_sets = 1 if shared else len(architecture.blocks)
    num_epochs = max((int(row["epoch"]) for row in rows), default=0)
    history = [[[0.0] * len(connections) for _ in range(num_sets)] for _ in range(num_epochs)]
    for row in rows:
        place = 0 if shared else int(row["block"]) - 1
        pair = int(row["source"]), int(row["target"])
        history[int(row["epoch"]) - 1][place][index[pair]] = float(row["factor"])
    return history
