"""From run folders to one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsonas._utils import write_atomically
from dsonas.commands.report.blockdrawing import NUM_COLOURS, draw_block
from dsonas.commands.report.collect import Factors, RunRecord, read_run
from dsonas.commands.report.confusion import draw_confusion
from dsonas.commands.report.curves import charts
from dsonas.commands.report.examine import Examination, examine
from dsonas.commands.report.several_runs import compare
from dsonas.commands.report.skeleton import block_letters, draw_skeleton
from dsonas.commands.report.svg import clean_text, markup
from dsonas.commands.report.wording import (
    cards,
    circumstances,
    command,
    duration,
    headline,
    subtitle,
    times,
)
from dsonas.data import ImageData
from dsonas.graph import readable_operation
from dsonas.run import RunFolder

FILE_NAME = "report.html"
MAX_BYTES = 2_000_000
Examined = Examination | str  # or why there is none


class ReportError(ValueError):
    """A report that cannot be made; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How much of a run a report shows; less where it would become too large.

    Args:
        blocks: distinct blocks drawn.
        dead_lines: removed connections drawn, in all blocks together.
        factor_lines: scaling factors in the chart of all of them.
        mistakes: pictures of misclassified images.
        points: epochs of a curve.
        classes: of the largest confusion matrix that is drawn.
        whole: show each run, not only what is compared.
    """

    blocks: int = 40
    dead_lines: int = 4000
    factor_lines: int = 300
    points: int = 240
    mistakes: int = 24
    classes: int = 100
    whole: bool = True


DETAILS = (
    Detail(),
    Detail(blocks=16, dead_lines=1000, factor_lines=120, points=120, mistakes=12, classes=50),
    Detail(blocks=6, dead_lines=0, factor_lines=40, points=60, mistakes=6, classes=20),
    Detail(blocks=1, dead_lines=0, factor_lines=0, points=20, mistakes=0, classes=0),
    Detail(blocks=1, dead_lines=0, factor_lines=0, points=20, mistakes=0, classes=0, whole=False),
)


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    examines: bool = True,
    data: ImageData | None = None,
) -> Path:
    """Write one self-contained HTML file about one run, or several side by side.

    Args:
        runs: run folders, at least one; they need not be finished.
        out: the file; None writes ``report.html`` into the first folder.
        examines: run the networks on their test images, for confusions and mistakes.
        data: the data set of the runs, if it is in memory already.

    Returns:
        The file's path.

    Raises:
        RunError: if a folder is not that of a run.
        ReportError: if Jinja2 is missing.
    """
    records = [read_run(path) for path in runs]
    examined = [_examine(record, examines, data) for record in records]
    path = Path(out) if out else records[0].path / FILE_NAME
    write_atomically(path, render(records, examined).encode())
    return path


def _examine(record: RunRecord, wanted: bool, data: ImageData | None) -> Examined:
    if record.metrics is None:
        return "The run is not finished, so there is no trained network to look at yet."
    if not wanted:
        return "The test images were not looked at, as asked for."
    try:
        return examine(RunFolder(record.path), record.config, data)
    except (ValueError, OSError, RuntimeError) as error:
        return f"The network cannot be run on its test images here: {' '.join(str(error).split())}"


def render(records: Sequence[RunRecord], examined: Sequence[Examined]) -> str:
    """The page, in as much detail as fits into ``MAX_BYTES``."""
    text = ""
    for detail in DETAILS:
        text = _render(records, examined, detail)
        if len(text.encode()) < MAX_BYTES:
            break
    return text


def _render(records: Sequence[RunRecord], examined: Sequence[Examined], detail: Detail) -> str:
    environment = _environment()
    script = environment.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pairs = list(zip(records, examined, strict=True))
    if not detail.whole and len(records) > 1:
        pairs = []
    views = [_view(record, found, i, detail) for i, (record, found) in enumerate(pairs, 1)]
    return environment.get_template("report.html").render(
        title=headline(records[0]) if len(records) == 1 else f"{len(records)} runs compared",
        runs=views,
        num_runs=len(records),
        comparison=compare(records),
        script=_marked(script),
        script_hash=f"sha256-{digest}",
        num_colours=NUM_COLOURS,
    )


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError:
        raise ReportError(
            'a report needs Jinja2, which is not installed: pip install "dsonas[report]"'
        ) from None
    environment = Environment(
        loader=PackageLoader("dsonas.commands.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
    )
    environment.filters["svg"] = lambda element: _marked(markup(element))
    return environment


def _marked(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own markup: scripts, and SVG that markup() has escaped


def _view(record: RunRecord, examined: Examined, place: int, detail: Detail) -> dict[str, Any]:
    """What the templates show of a run."""
    examination = examined if isinstance(examined, Examination) else None
    found = record.architecture
    return {
        "anchor": f"run-{place}",
        "name": record.name,
        "is_study": bool(record.studies) and not record.epochs and record.architecture is None,
        "headline": headline(record),
        "subtitle": subtitle(record),
        "cards": cards(record, examination),
        "problems": record.problems,
        "strip": draw_skeleton(found) if found else None,
        "blocks": _blocks(record, detail) if found else [],
        "num_hidden_blocks": max(0, len(block_letters(found)) - detail.blocks) if found else 0,
        "legend": [readable_operation(name) for name in found.operations] if found else [],
        "weighted": record.factors is not None,
        "charts": charts(record, detail.factor_lines, detail.points),
        "quality": _quality(examination, record, detail) if examination else None,
        "no_quality": None if examination else examined,
        "times": times(record),
        "total_time": duration(sum(record.seconds.values())),
        "circumstances": circumstances(record),
        "command": command(record),
        "config": record.config_text,
        "config_uri": base64.b64encode(record.config_text.encode()).decode(),
    }


def _blocks(record: RunRecord, detail: Detail) -> list[dict[str, Any]]:
    """Every distinct block with its drawing."""
    assert record.architecture is not None
    graphs = record.architecture.clean().blocks
    views, dead_left = [], detail.dead_lines
    for graph, letter in list(block_letters(record.architecture).items())[: detail.blocks]:
        places = [i for i, other in enumerate(graphs) if other == graph]
        num_dead = len(graph.live) - graph.num_live
        with_dead = 0 < num_dead <= dead_left
        dead_left -= num_dead if with_dead else 0
        factors = _factors_of(record.factors, places[0], len(graph.live))
        views.append(
            {
                "letter": letter,
                "places": [place + 1 for place in places],
                "every": len(places) == len(graphs),
                "num_kept": len(graph.kept_nodes),
                "num_operations": graph.output_node - 1,
                "num_live": graph.num_live,
                "num_connections": len(graph.live),
                "with_dead": with_dead,
                "svg": draw_block(graph, factors, f"block {letter}", with_dead=with_dead),
            }
        )
    return views


def _factors_of(factors: Factors | None, place: int, size: int) -> list[float] | None:
    """The factors of a block; None if there are none, or they are not of this architecture."""
    if not factors or 1 < len(factors) <= place:
        return None
    chosen = factors[0 if len(factors) == 1 else place]
    return chosen if len(chosen) == size else None


def _quality(found: Examination, record: RunRecord, detail: Detail) -> dict[str, Any]:
    stated = (record.metrics or {}).get("test_error")
    measured = 100 * found.num_wrong / found.num_images
    num_classes = len(found.class_names)
    return {
        "found": found,
        "measured": measured,
        "differs": stated is not None and abs(stated - measured) > 0.01,
        "confusion": draw_confusion(found.counts, found.class_names)
        if num_classes <= detail.classes
        else None,
        "class_errors": found.class_errors[:20],
        "worst": max((error for _, error, _ in found.class_errors), default=0) or 1,
        "confusions": found.confusions[:8],
        "mistakes": found.mistakes[: detail.mistakes],
    }


def write_run_report(folder: Path, data: ImageData, say: Callable[[str], None]) -> None:
    """What ``dsonas run`` calls at its end: a report that fails does not fail the run.

    Args:
        folder: of the run.
        data: its data set.
        say: shows a line.
    """
    try:
        path = write_report([folder], data=data)
    except (ValueError, OSError) as error:
        say(f"no report: {' '.join(str(error).split())}")
    else:
        say(f"report: {path}")
