"""What ``dsonas run --pareto K`` does: K networks of different cost from one search.

The first network is that of the run itself. The others are trained in folders of their own, each a
complete run folder that ``evaluate``, ``predict`` and ``export`` read.
"""

from __future__ import annotations

import csv
import io
import json
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dsonas.commands.charts import ReportError, front_svg
from dsonas.commands.configuring import OptionParser, to_yaml
from dsonas.cost import Budget, measure_all, parse_count
from dsonas.graph import Architecture
from dsonas.run import (
    FrontConfig,
    Job,
    Reporter,
    RunConfig,
    RunError,
    RunFolder,
    StopSignal,
    bounded_by,
    final_latency,
    front_networks,
    load_chain,
    mark_best,
    point_budgets,
    readable_count,
    run_measures,
    time_account,
)
from dsonas.train import DivergedError

COLUMNS: tuple[str, ...] = (
    "point", "folder", "test_error", "macs", "params", "memory_bytes", "latency_ms",
    "live_connections", "channels", "train_seconds", "on_front",
)  # fmt: skip


def add_front_options(parser: OptionParser) -> None:
    """The options of a front; they are no settings of a run, so ``--print_config`` omits them."""
    add = parser.add_argument
    add("--pareto", type=int, default=SUPPRESS, metavar="K",
        help="train K networks from this one search, from the budget up to the supernet's cost;\n"
        "writes pareto.json, pareto.csv and pareto.svg")  # fmt: skip
    add("--pareto_to", type=str, default=SUPPRESS, metavar="N",
        help="cost of the last of them in the budget's first measure, such as 8M")  # fmt: skip


def asked_front(values: Namespace) -> FrontConfig | None:
    """The front that the options ask for; None if they ask for none.

    Raises:
        ValueError: if a value breaks its rule.
    """
    count, largest = values.get("pareto"), values.get("pareto_to")
    if count is None:
        if largest is not None:
            raise ValueError(f"pareto_to {largest} needs --pareto K, the number of networks")
        return None
    return FrontConfig(points=count, largest=largest and parse_count(largest, "pareto_to"))


def check_front(front: FrontConfig | None, job: Job) -> None:
    """Refuse, before any training, a front that has nothing above the budget."""
    if front and job.config.budget.bounds:
        supernet = job.config.space(job.data).complete()
        front.span(job.config.budget, measure_all(supernet, job.measures))


@dataclass
class Front:
    """The networks of a front in the making.

    Args:
        front: what is asked for.
        config: of the finished run.
        folder: of the finished run.
        reporter: where it is shown.
        stop: polled after every step.
    """

    front: FrontConfig
    config: RunConfig
    folder: RunFolder
    reporter: Reporter
    stop: StopSignal

    def train(self) -> None:
        """Train what is not trained yet; write and show the front.

        Raises:
            Interrupted: after saving; a repetition goes on from there.
            RunError: if the folder holds another front, or a training diverges.
        """
        points = []
        planned = self._planned()
        for number, (architecture, budget) in enumerate(planned, 1):
            name = f"network {number} of {len(planned)}"
            metrics, path = self._metrics(number, name, architecture, budget)
            points.append(_point(number, str(path.relative_to(self.folder.path)), metrics))
            self._write(points)
        self.reporter.say("\n" + "\n".join(table(points)))
        self.reporter.say(self._account(points) + f"\neverything is in {self.folder.path}")

    def _planned(self) -> list[tuple[Architecture, Budget]]:
        """The networks; written down, since a measured latency would not give the same again."""
        asked = {**vars(self.front), "bounds": self.config.budget.bounds}
        path = self.folder.path / "pareto" / "plan.json"
        plan = json.loads(path.read_text()) if path.exists() else {}
        if plan.get("asked") != asked:
            networks = [
                {"architecture": network.to_json(), "bounds": budget.bounds}
                for network, budget in self._fitted()
            ]
            plan = {"asked": asked, "networks": networks}
            for number, one in enumerate(networks[1:], 2):  # before the old plan is lost
                held = self._point_folder(number)
                held.require_architecture(Architecture.from_json(one["architecture"]))
            self.folder.write("pareto/plan.json", json.dumps(plan) + "\n")
        return [
            (Architecture.from_json(one["architecture"]), Budget(**one["bounds"]))
            for one in plan["networks"]
        ]

    def _fitted(self) -> list[tuple[Architecture, Budget]]:
        found, chain = self.folder.found, load_chain(self.folder.path / "chain.json")
        assert found is not None
        measures = run_measures(self.config, final_latency(self.config))
        budget = bounded_by(self.config.budget, measure_all(found, measures))
        span = self.front.span(budget, measure_all(chain[0], measures))
        budgets = point_budgets(budget, span, self.front.points)
        multiple = self.config.network.channel_multiple
        return front_networks(chain, found, budgets, multiple=multiple, measures=measures)

    def _point_folder(self, number: int) -> RunFolder:
        return RunFolder(self.folder.path / "pareto" / str(number))

    def _metrics(
        self, number: int, name: str, architecture: Architecture, budget: Budget
    ) -> tuple[dict[str, Any], Path]:
        """What a network has reached; it is trained if need be."""
        if number == 1:
            assert self.folder.metrics is not None
            return self.folder.metrics, self.folder.path
        folder = self._point_folder(number)
        folder.require_architecture(architecture)
        if folder.metrics:
            return folder.metrics, folder.path
        self.reporter.say(f"\n{name}, in {folder.path}")
        config = replace(self.config, budget=budget)
        job = Job(config, folder, self.reporter, self.stop)
        job.check(("train",), architecture)
        folder.write("architecture.json", architecture.to_json())
        origin = {"architecture": str(folder.path / "architecture.json")}
        folder.begin(to_yaml({**origin, **config.groups()}), searches=False)
        try:
            with job.tracking:
                return job.train(architecture), folder.path
        except DivergedError as error:
            folder.checkpoints.forget(error.stage)
            raise RunError(f"{name} of the front: {error}") from None

    def _write(self, points: list[dict[str, Any]]) -> None:
        measure = self.config.budget.leading
        mark_best(points, measure)
        value = {"measure": measure, "asked": self.front.points, **self._times(points)}
        text = json.dumps({**value, "points": points}, indent=1)
        self.folder.write("pareto.json", text + "\n")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**p, "channels": "-".join(map(str, p["channels"]))} for p in points)
        self.folder.write("pareto.csv", buffer.getvalue())
        try:
            self.folder.write("pareto.svg", front_svg(points, measure))
        except ReportError as error:
            self.reporter.say(f"no pareto.svg: {error}")

    def _times(self, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self.folder.metrics is not None
        trained = [point["train_seconds"] for point in points]
        return time_account(self.folder.metrics["search_seconds"], trained)

    def _account(self, points: Sequence[dict[str, Any]]) -> str:
        times = self._times(points)
        return (
            f"one search and {len(points)} trainings took {times['total_seconds']:.0f} s; with a "
            f"search for each they would have taken {times['separate_seconds']:.0f} s"
        )


def _point(number: int, folder: str, metrics: dict[str, Any]) -> dict[str, Any]:
    kept = {name: metrics[name] for name in COLUMNS if name in metrics}
    return {"point": number, "folder": folder, **kept}


def table(points: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table that is printed; a star marks what no other network beats."""
    lines = [f"{'error %':>9}{'macs':>9}{'params':>9}{'connections':>13}{'seconds':>9}  channels"]
    lines += [
        f"{point['test_error']:>7.2f}{' *' if point['on_front'] else '  '}"
        f"{readable_count(point['macs']):>9}{readable_count(point['params']):>9}"
        f"{point['live_connections']:>13}{point['train_seconds']:>9.0f}  "
        f"{'-'.join(map(str, point['channels']))}  {point['folder']}"
        for point in points
    ]
    return lines
