"""What the studies on small networks share: one setting, silent jobs, results that go on.

Fashion-MNIST at 14 x 14 pixels, two blocks of three levels, 8 and 16 channels. Results are written
after every row; the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dsonas.cost.budgets import Budget
from dsonas.data import DataConfig
from dsonas.run.console import Reporter
from dsonas.run.pipeline import Job
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.run.runs import RunFolder
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.training import TrainConfig
from stepper import environment

ENGINE = EngineConfig(device="cpu", threads=1)
EARLIER: dict[str, Any] = {"keep_cost": 0.35, "keep_connections": 0.35}  # once defaults


def study_parser(description: str | None, out: str, search_epochs: int) -> argparse.ArgumentParser:
    """A parser with the options that all studies have."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--space", choices=("share", "full"), default="share")
    parser.add_argument("--images", type=int, default=10000, help="training images")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--search-epochs", type=int, default=search_epochs)
    parser.add_argument("--train-epochs", type=int, default=15)
    return parser


def study_config(
    options: argparse.Namespace, seed: int, budget: Budget, **search: Any
) -> RunConfig:
    """The configuration of one run of a study; what is not given is the tool's default."""
    chosen = {"epochs": options.search_epochs, "batch_size": 64, **search}
    return RunConfig(
        data=DataConfig(
            name="fashion-mnist",
            image_size=14,
            max_train_images=options.images,
            max_test_images=options.test_images,
        ),
        network=NetworkConfig(levels=3, blocks=(1, 1), channels=8),
        pretrain=PretrainConfig(epochs=options.pretrain_epochs, batch_size=64),
        search=SearchConfig(space=options.space, **chosen),
        budget=budget,
        train=TrainConfig(epochs=options.train_epochs, batch_size=64),
        engine=ENGINE,
        seed=seed,
    )


def silent_job(config: RunConfig, folder: str) -> Job:
    """A job that prints nothing."""
    return Job(config, RunFolder(folder), Reporter(Console(quiet=True)))


def mean_and_spread(given: Iterable[float]) -> str:
    """Mean and standard deviation, as tables show them."""
    values = list(given)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


class Study:
    """The rows of a study, kept in its result file.

    Args:
        options: what it was asked for; rows of other options are forgotten.
        apart: options besides ``out`` and ``seeds`` that do not change what a row says.
    """

    def __init__(self, options: argparse.Namespace, apart: Sequence[str] = ()) -> None:
        self.path: Path = options.out
        keys = sorted(set(vars(options)) - {"out", "seeds", *apart})
        self.options = {key: str(getattr(options, key)) for key in keys}
        self.start = time.perf_counter()
        held = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        if held.get("options") == self.options:
            self.rows, self.seconds = held["rows"], held["seconds"]

    def has(self, **case: Any) -> bool:
        """Whether there is a row of a case."""
        return any(case.items() <= row.items() for row in self.rows)

    def fill(
        self, cases: Iterable[Mapping[str, Any]], attempt: Callable[..., Mapping[str, Any]]
    ) -> None:
        """Add the row of every case that has none."""
        for case in cases:
            if not self.has(**case):
                self.add(attempt(**case))

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row and write all."""
        self.rows.append(dict(row))
        print(self.rows[-1], flush=True)
        value = {
            "options": self.options,
            "seconds": round(self.seconds + time.perf_counter() - self.start, 1),
            "environment": environment(Engine(ENGINE)),
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(value, indent=1) + "\n")
