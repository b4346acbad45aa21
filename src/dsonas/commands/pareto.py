"""What ``dsonas run --pareto K`` does: K networks of different cost from one search.

The first network is that of the run itself. The others are trained in folders of their own, each a
complete run folder that ``evaluate``, ``predict`` and ``export`` read.
"""

from __future__ import annotations

import csv
import io
import json
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsonargparse import Namespace

from dsonas.commands.charts import ReportError, front_svg, kind_of, text_of
from dsonas.commands.configuring import OptionParser, to_yaml
from dsonas.cost import Budget, Measures, measure_all, parse_count
from dsonas.data import ImageData
from dsonas.graph import Architecture
from dsonas.run import (
    Job,
    Reporter,
    RunConfig,
    RunError,
    RunFolder,
    StopSignal,
    final_latency,
    fit_to_budget,
    load_chain,
    run_measures,
)
from dsonas.train import DivergedError

COLUMNS: tuple[str, ...] = (
    "point", "folder", "test_error", "macs", "params", "memory_bytes", "latency_ms",
    "live_connections", "channels", "train_seconds", "on_front",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FrontConfig:
    """What front is asked for."""

    points: int  # networks to train, the one for the budget among them, >= 2
    # cost of the last one, in the measure that leads the budget (multiply-adds without one); a
    # positive number. None: that of the supernet
    largest: float | None = None

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"pareto must be at least 2 networks, got {self.points}")

    def budgets(self, budget: Budget, supernet: Mapping[str, float]) -> list[Budget]:
        """Budgets in equal ratios from the first to the largest; all bounds grow alike.

        Raises:
            ValueError: if there is nothing above the first budget.

        Example:
            >>> found = FrontConfig(points=3).budgets(Budget(macs=1000), {"macs": 4000})
            >>> [round(one.macs) for one in found]
            [1000, 2000, 4000]
        """
        bound = budget.bounds[budget.leading]
        if self.largest is None:
            span, name = budget.use(supernet), f"the supernet has {supernet[budget.leading]:.6g}"
        else:
            span, name = self.largest / bound, f"pareto_to is {self.largest:.6g}"
        if span <= 1:
            raise ValueError(
                f"a front of several networks needs costs above the budget, but {name} and "
                f"budget.{budget.leading} is {bound:.6g}: lower the budget or raise --pareto_to"
            )
        ratios = [span ** (k / (self.points - 1)) for k in range(self.points)]
        return [
            Budget(**{name: ratio * value for name, value in budget.bounds.items()})
            for ratio in ratios
        ]


def add_front_options(parser: OptionParser) -> None:
    """The options of a front; they are no settings of a run, so ``--print_config`` omits them."""
    add = parser.add_argument
    add("--pareto", type=int, default=SUPPRESS, metavar="K",
        help="train K networks from this one search, from the budget up to the supernet's cost;\n"
        "writes pareto.json, pareto.csv and pareto.svg")  # fmt: skip
    add("--pareto_to", type=str, default=SUPPRESS, metavar="N",
        help="cost of the last of them in the budget's first measure, such as 8M")  # fmt: skip


def asked_front(values: Namespace) -> FrontConfig | None:
    """The front that the options ask for; None if they ask for none."""
    count, largest = values.get("pareto"), values.get("pareto_to")
    if count is None:
        if largest is not None:
            raise ValueError(f"pareto_to {largest} needs --pareto K, the number of networks")
        return None
    return FrontConfig(points=count, largest=largest and parse_count(largest, "pareto_to"))


def check_front(front: FrontConfig | None, job: Job) -> None:
    """Refuse, before any training, a front that has nothing above the budget."""
    if front is None:
        return
    job.config.require_blocks()
    if job.config.budget.bounds:
        supernet = job.config.space(job.data).complete()
        front.budgets(job.config.budget, measure_all(supernet, job.measures))


def front_networks(
    chain: Sequence[Architecture],
    first: Architecture,
    budgets: Sequence[Budget],
    config: RunConfig,
    measures: Measures | None = None,
) -> dict[Architecture, Budget]:
    """Find the networks of a front with their budgets, cheapest first; no network twice.

    Between the supernet's cost and that of the structure found, some member of the chain meets a
    budget at about full width; below that the width of the structure found does the rest. The
    ``first`` network is that of the first budget.
    """
    found = {first: budgets[0]}
    for one in budgets[1:]:
        point = replace(config, budget=one)
        found.setdefault(fit_to_budget(chain, point, measures, at_full_width=True), one)
    return found


@dataclass
class Front:
    """The networks of a front in the making."""

    front: FrontConfig  # what is asked for
    config: RunConfig  # of the finished run
    folder: RunFolder  # of the finished run
    reporter: Reporter  # where it is shown
    stop: StopSignal  # polled after every step
    images: ImageData | None = None  # of the run, once they are loaded

    def train(self) -> None:
        """Train what is not trained yet; write and show the front.

        Raises:
            Interrupted: after saving; a repetition goes on from there.
            RunError: if the folder holds another front, or a training diverges.
        """
        points: list[dict[str, Any]] = []
        planned, times = self._planned(), {}
        for number, (architecture, budget) in enumerate(planned, 1):
            folder = self.folder if number == 1 else self._point_folder(number)
            if number > 1:
                folder.require_architecture(architecture)
            if trains := (metrics := folder.metrics) is None:
                name = f"network {number} of {len(planned)}"
                metrics = self._trained(folder, name, architecture, budget)
            kept = {name: metrics[name] for name in COLUMNS if name in metrics}
            place = str(folder.path.relative_to(self.folder.path))
            points.append({"point": number, "folder": place, **kept})
            if trains or number == len(planned):
                times = self._write(points)
        self.reporter.say(
            "\n".join(["", *table(points, self.config.budget.leading)])
            + f"\none search and {len(points)} trainings took {times['total_seconds']:.0f} s; with "
            f"a search for each they would have taken {times['separate_seconds']:.0f} s\n"
            f"everything is in {self.folder.path}"
        )

    def _planned(self) -> list[tuple[Architecture, Budget]]:
        """The networks; written down, since a measured latency would not give the same again."""
        asked = {**vars(self.front), "bounds": self.config.budget.bounds}
        path = self.folder.path / "pareto" / "plan.json"
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            if plan["asked"] == asked:
                return [
                    (Architecture.from_json(one["architecture"]), Budget(**one["bounds"]))
                    for one in plan["networks"]
                ]
        except FileNotFoundError:
            pass
        except (ValueError, LookupError, TypeError, RecursionError):
            raise RunError(f"{path} is damaged: delete it and repeat the command") from None
        found, chain = self.folder.found, load_chain(self.folder.path / "chain.json")
        assert found is not None
        measures, budget = run_measures(self.config, final_latency(self.config)), self.config.budget
        if not budget.bounds:
            budget = Budget(macs=measures["macs"](found))
        budgets = self.front.budgets(budget, measure_all(chain[0], measures))
        planned = front_networks(chain, found, budgets, self.config, measures)
        for number, network in enumerate(planned, 1):  # before the old plan is lost
            if number > 1:
                self._point_folder(number).require_architecture(network)
        networks = [
            {"architecture": network.to_json(), "bounds": budget.bounds}
            for network, budget in planned.items()
        ]
        plan = json.dumps({"asked": asked, "networks": networks})
        self.folder.write("pareto/plan.json", plan + "\n")
        return list(planned.items())

    def _point_folder(self, number: int) -> RunFolder:
        return RunFolder(self.folder.path / "pareto" / str(number))

    def _trained(
        self, folder: RunFolder, name: str, architecture: Architecture, budget: Budget
    ) -> dict[str, Any]:
        self.reporter.say(f"\n{name}, in {folder.path}")
        config = replace(self.config, budget=budget)
        job = Job(config, folder, self.reporter, self.stop, images=self.images)
        self.images = job.data
        self.folder.require_images(self.images.split)
        job.check(("train",), architecture)
        folder.write("architecture.json", architecture.to_json())
        origin = {"architecture": str(folder.path / "architecture.json")}
        folder.begin(to_yaml({**origin, **config.groups()}), searches=False)
        try:
            with job.tracking:
                return job.train(architecture)
        except DivergedError as error:
            folder.checkpoints.forget(error.stage)
            raise RunError(f"{name} of the front: {error}") from None

    def _write(self, points: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the front as it is now, unless it stands there; returns its account of time."""
        assert self.folder.metrics is not None
        measure = self.config.budget.leading
        mark_best(points, measure)
        trained = [point["train_seconds"] for point in points]
        times = time_account(self.folder.metrics["search_seconds"], trained)
        value = {"measure": measure, "asked": self.front.points, **times, "points": points}
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**p, "channels": "-".join(map(str, p["channels"]))} for p in points)
        texts = {"json": json.dumps(value, indent=1) + "\n", "csv": buffer.getvalue()}
        try:
            texts["svg"] = front_svg(points, measure)
        except ReportError as error:
            self.reporter.say(f"no pareto.svg: {error}")
        for kind, text in texts.items():
            file = self.folder.path / f"pareto.{kind}"
            if not file.is_file() or file.read_bytes() != text.encode():
                self.folder.write(file.name, text)
        return times


def mark_best(points: Sequence[dict[str, Any]], measure: str) -> None:
    """Write ``on_front`` into points: whether no other is both cheaper and as good, or better.

    Example:
        >>> points = [{"macs": m, "test_error": e} for m, e in ((1, 9.0), (2, 9.5), (3, 8.0))]
        >>> mark_best(points, "macs")
        >>> [point["on_front"] for point in points]
        [True, False, True]
    """
    values = [(point[measure], point["test_error"]) for point in points]
    for point, mine in zip(points, values, strict=True):
        point["on_front"] = not any(
            other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in values
        )


def time_account(search_seconds: float, train_seconds: Sequence[float]) -> dict[str, Any]:
    """What one search for all points took, and what a search for each would have taken.

    Example:
        >>> time_account(100.0, [10.0, 20.0])["separate_seconds"]
        230.0
    """
    trained, points = sum(train_seconds), len(train_seconds)
    return {
        "searches": 1,
        "search_seconds": search_seconds,
        "train_seconds": round(trained, 3),
        "total_seconds": round(search_seconds + trained, 3),
        "separate_searches": points,
        "separate_seconds": round(points * search_seconds + trained, 3),
    }


def table(points: Sequence[dict[str, Any]], measure: str = "macs") -> Iterator[str]:
    """The lines of the table that is printed; a star marks what none beats in error and measure."""
    costs = {name: max(9, len(name) + 2) for name in ("macs", "params", measure)}
    head = "".join(f"{name:>{width}}" for name, width in costs.items())
    yield f"{'error %':>9}{head}{'connections':>13}{'seconds':>9}  channels"
    for point in points:
        texts = {name: text_of(point[name], kind_of(name)) for name in costs}
        yield (
            f"{point['test_error']:>7.2f}{' *' if point['on_front'] else '  '}"
            + "".join(f"{text:>{costs[name]}}" for name, text in texts.items())
            + f"{point['live_connections']:>13}{point['train_seconds']:>9.0f}  "
            f"{'-'.join(map(str, point['channels']))}  {point['folder']}"
        )
