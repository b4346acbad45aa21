"""Several runs, and the networks of a study, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from dsonas.commands.report.blockdrawing import NUM_COLOURS
from dsonas.commands.report.charts import Dot, Series, line_chart, scatter_chart
from dsonas.commands.report.collect import RunRecord
from dsonas.commands.report.wording import data_name, duration
from dsonas.run import readable_count


def compare(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Several runs, or a run and the networks of a study, by cost and error."""
    dots = [
        Dot(record.metrics["macs"], record.metrics["test_error"], name, f"c{i % NUM_COLOURS}")
        for i, (record, name) in enumerate(zip(records, _names(records), strict=True))
        if record.metrics
    ]
    studies = sorted({study for record in records for study in record.studies})
    kinds = sorted({kind for _, _, kind in studies})
    dots += [
        Dot(macs, error, kind, f"k{kinds.index(kind) % NUM_COLOURS} other", labelled=False)
        for macs, error, kind in studies
    ]
    if len(records) == 1 and not studies:
        return None
    return {
        "scatter": scatter_chart("test error against multiply-adds", dots) if dots else None,
        "kinds": kinds,
        "rows": _rows(records),
        "curve": _test_curve(records),
    }


def _names(records: Sequence[RunRecord]) -> list[str]:
    """The folders' names; with their parents where that is needed to tell them apart."""
    short = [record.name for record in records]
    return [
        name if short.count(name) == 1 else f"{record.path.resolve().parent.name}/{name}"
        for record, name in zip(records, short, strict=True)
    ]


def _rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    return [
        {
            "anchor": f"run-{i + 1}",
            "name": name,
            "kind": f"c{i % NUM_COLOURS}",
            "data": data_name(record),
            "metrics": record.metrics,
            "macs": readable_count(record.metrics["macs"]) if record.metrics else "",
            "params": readable_count(record.metrics["params"]) if record.metrics else "",
            "live": record.architecture.num_live if record.architecture else "",
            "seed": record.setting("seed"),
            "seconds": duration(sum(record.seconds.values())),
        }
        for i, (record, name) in enumerate(zip(records, _names(records), strict=True))
    ]


def _test_curve(records: Sequence[RunRecord]) -> Element | None:
    """The test error over the epochs of training, a line for each run."""
    series = []
    for i, (record, name) in enumerate(zip(records, _names(records), strict=True)):
        points = [
            (float(epoch.number), epoch.values["test_error"])
            for epoch in record.stage("train")
            if "test_error" in epoch.values
        ]
        if points:
            series.append(Series(name=name, points=points, kind=f"c{i % NUM_COLOURS}", dots=True))
    if len(records) == 1 or not series:
        return None
    return line_chart("test error", series, kind="percent", log=True, wide=True)
