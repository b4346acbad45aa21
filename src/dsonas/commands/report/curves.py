"""The charts of a run: how its loss, error, connections, cost and factors went; and of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dsonas.commands.charts import NUM_COLOURS, Dot, Line, lines, scatter, text_of
from dsonas.commands.report.collect import Epoch, RunRecord, cost_of
from dsonas.commands.report.drawings import colour, node_name
from dsonas.graph import BlockGraph, readable_operation
from dsonas.train import STAGES

Points = list[tuple[float, float]]


class Chart(NamedTuple):
    """A chart with its title, what to know about it, and names and colours of the lines."""

    title: str
    note: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False


def charts(record: RunRecord, most: Mapping[str, int]) -> Iterator[Chart]:
    """Draw all charts for which the run has data: about so many epochs, at most so many factors."""
    stages = {name: _thinned(record.stage(name), max(20, most["epochs"])) for name in STAGES}
    yield from _progress(stages, "loss", "Loss", "number")
    yield from _progress(stages, "error", "Error", "percent")
    epochs, supernet, unit = stages["search"], record.supernet, record.unit
    start, final, bounds = cost_of(supernet), record.final_cost, record.bounds
    if record.is_own:
        live, cost = "what the search has not removed", "of what is left"
    else:
        live = "those with λ above 0; one at 0 that is not removed yet may come back"
        cost = "of live connections, at the supernet's width; it is fitted afterwards"
    first = supernet and supernet.num_live
    columns = {"live_connections": (f"live {unit}", first)}
    yield from _course(epochs, columns, f"Live {unit}", live, "whole")
    if record.is_own:
        columns = {
            "removed_by_penalty": ("at exactly 0", 0),
            "removed_by_budget": ("by the budget", 0),
        }
        yield from _course(
            epochs, columns, "Removed", "candidates that have gone, all in all", "whole"
        )
    for name, title in (("macs", "Multiply-adds"), ("params", "Parameters")):
        levels = [(bounds[name], "budget", "budget")] if name in bounds else []
        levels += [(final[name], "final network", "muted")] if name in final else []
        columns = {name: (title.lower(), start and getattr(start, name))}
        yield from _course(epochs, columns, title, cost, "count", levels=levels)
    columns = {"mean_factor": ("mean factor", 1.0), "penalty_scale": ("penalty scale", None)}
    note = "mean λ, and how strongly what is due is pressed, in distances to 0"
    yield from _course(epochs, columns, "Factors and penalty", note, log=True)
    if most["factor_lines"] and record.complete and record.history:
        yield _factors(record, record.complete.blocks[0], most["factor_lines"])
    if most["factor_lines"] and record.choice_history:
        yield _choice_factors(record, most["factor_lines"])


def _course(
    epochs: Sequence[Epoch],
    columns: Mapping[str, tuple[str, float | None]],  # of the log: name, and value at the start
    title: str,
    note: str,
    kind: str = "number",
    **options: Any,
) -> Iterator[Chart]:
    """How something went in the search."""
    series = [
        Line(name, points, f"k{2 * i}")
        for i, (column, (name, first)) in enumerate(columns.items())
        if (points := _points(epochs, column, first))
    ]
    if series:
        svg = lines(title, series, kind, x_label="search epoch", **options)
        yield Chart(title, note, svg, [(line.name, line.colour) for line in series])


def _thinned(epochs: Sequence[Epoch], most: int) -> list[Epoch]:
    """Leave out epochs that cannot be told apart; tests and the last of a stage stay."""
    every = -(-len(epochs) // most)
    return [epoch for i, epoch in enumerate(epochs)
            if i % every == 0 or i + 1 == len(epochs) or "test_error" in epoch.values]  # fmt: skip


def _points(
    epochs: Sequence[Epoch], key: str, first: float | None = None, start: int = 0
) -> Points:
    points = [(float(start + e.number), e.values[key]) for e in epochs if key in e.values]
    return points if first is None or not points else [(0.0, float(first)), *points]


def _progress(
    stages: Mapping[str, Sequence[Epoch]], key: str, title: str, kind: str
) -> Iterator[Chart]:
    """Training and test values over all stages; the lines are broken where the network changes."""
    end, bands, series = 0, [], []
    for stage, epochs in stages.items():
        for name, column, shade in (("training", key, "k0"), ("test", f"test_{key}", "k2")):
            if points := _points(epochs, column, start=end):
                series.append(Line(name, points, shade, name == "test" and len(points) <= 30))
        if epochs:
            bands.append((end, end + epochs[-1].number, stage))
            end += epochs[-1].number
    if series:
        svg = lines(title, series, kind, log=True, bands=bands)
        legend = list(dict.fromkeys((line.name, line.colour) for line in series))
        yield Chart(title, "all stages, a new network in the last", svg, legend)


def _factors(record: RunRecord, graph: BlockGraph, most: int) -> Chart:
    """Each scaling factor over the search epochs, up to where it becomes 0."""
    drawn: list[Line] = []
    num_sets = len(record.history[0])
    for place in range(num_sets):
        for i, (source, target) in enumerate(graph.connections):
            values = [1.0, *(epoch[place][i] for epoch in record.history)]
            dead = values.index(0) if 0 in values else None
            name = f"block {place + 1}: " if num_sets > 1 else ""
            name += f"{node_name(graph, source)} → {node_name(graph, target)}"
            end = f"λ = {values[-1]:.3f} at the end" if dead is None else f"0 after epoch {dead}"
            points = [(float(at), value) for at, value in enumerate(values[: dead and dead + 1])]
            shade, tip = colour(graph, source), f"{name}\n{end}"
            drawn.append(Line(name, points, shade, tip=tip, faint=dead is not None))
    legend = [("block input", "neutral")]
    legend += [(readable_operation(name), colour(graph, node))
               for node, name in enumerate(graph.operations, 1)]  # fmt: skip
    return _all_factors(drawn, most, "by the operation that it leaves", legend)


def _choice_factors(record: RunRecord, most: int) -> Chart:
    """Each candidate's scaling factor over the search epochs, up to where it is gone."""
    names = dict.fromkeys(name for _, name in record.choice_history)
    shades = {name: f"k{i % NUM_COLOURS}" for i, name in enumerate(names)}
    drawn: list[Line] = []
    for (label, name), factors in record.choice_history.items():
        kept = name in (record.choices or {}).get(label, ())
        points = [(float(epoch), value) for epoch, value in sorted(factors.items())]
        points += [] if kept else [(points[-1][0] + 1, 0.0)]
        epoch, value = points[-1]
        tip = f"{label}: {name}\n"
        tip += f"λ = {value:.3f} at the end" if kept else f"gone after epoch {epoch:.0f}"
        drawn.append(Line(label, points, shades[name], tip=tip, faint=not kept))
    return _all_factors(drawn, most, "by candidate, in every choice alike", list(shades.items()))


def _all_factors(
    drawn: list[Line], most: int, coloured: str, legend: Sequence[tuple[str, str]]
) -> Chart:
    drawn.sort(key=lambda line: (len(line.points), line.points[-1][1]))  # what lives is on top
    note = f"every λ from 1 at the start; coloured {coloured}"
    if len(drawn) > most:
        note += f"; the {most} of {len(drawn)} that lived longest"
    svg = lines("scaling factors", drawn[-most:], wide=True, x_label="search epoch")
    return Chart("Scaling factors", note, svg, legend, wide=True)


def compare(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Several runs, or a run and the networks of a study, by cost and error; None for one run."""
    studies = sorted({study for record in records for study in record.studies})
    if len(records) == 1 and not studies:
        return None
    short = [record.name for record in records]
    names = [name if short.count(name) == 1 else f"{record.path.resolve().parent.name}/{name}"
             for record, name in zip(records, short, strict=True)]  # fmt: skip
    kinds = sorted({kind for _, _, kind in studies})
    networks = [(macs, error, kind, kinds.index(kind), "") for macs, error, kind in studies]
    series = []
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        if found := record.metrics:
            networks.append((found["macs"], found["test_error"], name, i, name))
        if points := _points(record.stage("train"), "test_error"):
            series.append(Line(name, points, f"k{i % NUM_COLOURS}", dots=True))
    dots = []
    for macs, error, name, i, label in networks:
        tip = f"{name}\n{text_of(macs, 'count')} multiply-adds, {text_of(error, 'percent')}"
        dots.append(Dot(macs, error, tip, f"k{i % NUM_COLOURS}", not label, label))
    curve = lines("test error", series, "percent", log=True, wide=True) if series else None
    return {
        "scatter": scatter("test error against multiply-adds", dots) if dots else None,
        "curve": curve if len(records) > 1 else None,
        "kinds": kinds,
        "runs": list(zip(names, records, strict=True)),
    }
