"""The charts of a run: how its loss, error, connections, cost and factors went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from xml.etree.ElementTree import Element

from dsonas.commands.report.blockdrawing import colour, node_name
from dsonas.commands.report.charts import Band, Level, Series, line_chart
from dsonas.commands.report.collect import Epoch, RunRecord, budget_bounds
from dsonas.commands.report.wording import cost_of
from dsonas.cost import Cost, architecture_cost
from dsonas.graph import BlockGraph, readable_operation
from dsonas.train import STAGES


@dataclass(frozen=True)
class Chart:
    """A chart with its title and what to know about it."""

    title: str
    note: str
    svg: Element
    legend: Sequence[tuple[str, str]] = ()  # names and classes of the lines


def charts(record: RunRecord, most_lines: int, most_points: int) -> list[Chart]:
    """All charts for which the run has data.

    Args:
        record: the run.
        most_lines: so many scaling factors are drawn at most.
        most_points: of a line, about so many epochs are drawn at most.
    """
    record = replace(record, epochs=_thinned(record, most_points))
    found = [_progress(record, "loss", "Loss", "number"), _progress(record, "error", "Error",
             "percent"), *_search_charts(record), _trajectories(record, most_lines)]  # fmt: skip
    return [chart for chart in found if chart]


def _thinned(record: RunRecord, most: int) -> list[Epoch]:
    """The log without epochs that cannot be told apart; tests and the last of a stage stay."""
    kept = []
    for stage in STAGES:
        epochs = record.stage(stage)
        every = -(-len(epochs) // most)
        kept += [
            epoch
            for i, epoch in enumerate(epochs)
            if i % every == 0 or i + 1 == len(epochs) or "test_error" in epoch.values
        ]
    return kept


def _stages(record: RunRecord) -> dict[str, int]:
    """The stages that the log has, each with the number of epochs before it."""
    offsets, total = {}, 0
    for name in STAGES:
        if epochs := record.stage(name):
            offsets[name] = total
            total += epochs[-1].number
    return offsets


def _progress(record: RunRecord, column: str, title: str, kind: str) -> Chart | None:
    """Training and test values over all stages; the lines are broken where the network changes."""
    offsets = _stages(record)
    parts = [
        ("training", "c0", column, offsets),
        ("test", "c2", f"test_{column}", offsets),
    ]
    series = []
    for name, colour_class, key, places in parts:
        for stage, offset in places.items():
            points = _points(record, stage, key, offset)
            dots = name == "test" and len(points) <= 30
            if points:
                series.append(Series(name=name, points=points, kind=colour_class, dots=dots))
    if not series:
        return None
    ends = [*offsets.values(), offsets[list(offsets)[-1]] + record.stage(list(offsets)[-1])[-1]
            .number]  # fmt: skip
    bands = [
        Band(start, end, name) for (start, end), name in zip(pairwise(ends), offsets, strict=True)
    ]
    svg = line_chart(title, series, kind=kind, log=True, bands=bands)
    legend = list(dict.fromkeys((line.name, line.kind) for line in series))
    return Chart(title, "all stages, a new network in the last", svg, legend)


def _points(
    record: RunRecord, stage: str, column: str, offset: int = 0
) -> list[tuple[float, float]]:
    return [
        (float(offset + epoch.number), epoch.values[column])
        for epoch in record.stage(stage)
        if column in epoch.values
    ]


def _search_charts(record: RunRecord) -> list[Chart | None]:
    start = _supernet_cost(record)
    supernet, bounds = record.supernet, budget_bounds(record)
    charts = [
        _search_chart(
            record, "live_connections", "Live connections", "what the search has not removed",
            "whole", supernet.num_live if supernet else None,
        ),
        _cost_chart(record, "macs", "Multiply-adds", start.macs if start else None, bounds),
        _cost_chart(record, "params", "Parameters", start.params if start else None, bounds),
        _factor_chart(record),
    ]  # fmt: skip
    return charts


def _factor_chart(record: RunRecord) -> Chart | None:
    """How far the factors are, and how hard they are pressed."""
    named = (("mean factor", "mean_factor", "c0"), ("pressure", "pressure", "c2"))
    series = [
        Series(name=name, points=[(0.0, 1.0), *points], kind=kind)
        for name, column, kind in named
        if (points := _points(record, "search", column))
    ]
    if not series:
        return None
    svg = line_chart("factors and pressure", series, log=True, x_label="search epoch")
    legend = [(line.name, line.kind) for line in series]
    return Chart("Factors and pressure", "mean λ, and the penalty against its start", svg, legend)


def _supernet_cost(record: RunRecord) -> Cost | None:
    try:
        return architecture_cost(record.supernet) if record.supernet else None
    except ValueError:  # an operation that is registered only where the run was made
        return None


def _cost_chart(
    record: RunRecord, column: str, title: str, start: float | None, bounds: dict[str, float]
) -> Chart | None:
    levels, final = [], cost_of(record)
    note = "at the supernet's width; it is fitted afterwards"
    if column in bounds:
        levels.append(Level(bounds[column], "budget"))
    if final:
        levels.append(Level(getattr(final, column), "final network", "final"))
    return _search_chart(record, column, title, note, "count", start, levels)


def _search_chart(
    record: RunRecord,
    column: str,
    title: str,
    note: str,
    kind: str,
    start: float | None,
    levels: Sequence[Level] = (),
) -> Chart | None:
    points = _points(record, "search", column)
    if not points:
        return None
    if start is not None:
        points = [(0.0, float(start)), *points]
    series = [Series(name=title.lower(), points=points)]
    svg = line_chart(title, series, kind=kind, levels=levels, x_label="search epoch")
    return Chart(title, note, svg)


def _trajectories(record: RunRecord, most_lines: int) -> Chart | None:
    """Each scaling factor over the search epochs, up to where it becomes 0."""
    if record.architecture is None or record.only_last or not record.history or not most_lines:
        return None
    found = record.architecture
    graph = BlockGraph.complete(found.operations, found.num_levels)
    num_sets = len(record.history[0])
    lines = [
        _trajectory(record, graph, place, i)
        for place in range(num_sets)
        for i in range(len(graph.connections))
    ]
    # those that live longest last, so that they are drawn on top
    lines.sort(key=lambda line: (len(line.points), line.points[-1][1]))
    drawn = lines[-most_lines:]
    svg = line_chart("scaling factors", drawn, wide=True, x_label="search epoch")
    note = "every λ from 1 at the start; coloured by the operation that it leaves"
    if len(drawn) < len(lines):
        note += f"; the {len(drawn)} of {len(lines)} that lived longest"
    legend = [(readable_operation(graph.operation(n)), colour(graph, n)) for n in _first(graph)]
    return Chart("Scaling factors", note, svg, [("block input", "input"), *legend])


def _first(graph: BlockGraph) -> range:
    """The operations of level 1, so one node of each operation."""
    return range(1, 1 + len(graph.operations))


def _trajectory(record: RunRecord, graph: BlockGraph, place: int, index: int) -> Series:
    source, target = graph.connections[index]
    values = [1.0, *(epoch[place][index] for epoch in record.history)]
    dead = next((i for i, value in enumerate(values) if value == 0), None)
    points = [(float(i), value) for i, value in enumerate(values[: dead and dead + 1])]
    name = f"{node_name(graph, source)} → {node_name(graph, target)}"
    if len(record.history[0]) > 1:
        name = f"block {place + 1}: {name}"
    end = f"λ = {values[-1]:.3f} at the end" if dead is None else f"0 after epoch {dead}"
    state = "alive" if dead is None else "dying"
    return Series(
        name=name,
        points=points,
        kind=f"{state} {colour(graph, source)}",
        tip=f"{name}\n{end}",
    )
