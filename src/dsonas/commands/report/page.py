"""``dsonas report``: from run folders to one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from dsonas._utils import write_atomically
from dsonas.commands.charts import LIGHT, ReportError
from dsonas.commands.configuring import OptionParser, parse
from dsonas.commands.report.collect import RunRecord, cost_of, read_run
from dsonas.commands.report.curves import charts, compare
from dsonas.commands.report.drawings import block_letters, draw_block, draw_skeleton, render
from dsonas.commands.report.examine import Examination, examine
from dsonas.data import ImageData, short_name
from dsonas.run import RunFolder, StopSignal
from dsonas.train import Outcome

FILE_NAME = "report.html"
MAX_BYTES = 2_000_000
MOST = {  # shown of a run; where the page would become too large, a share of that
    "blocks": 40, "dead_lines": 4000, "factor_lines": 300, "epochs": 240, "mistakes": 24,
    "classes": 100,
}  # fmt: skip
SHARES = (1.0, 0.4, 0.15, 0.02, 0.0)
# what is not taken from a report that has it
LASTING = ("<h3>The network</h3>", "<h3>Loss</h3>", "<h3>Error by class</h3>")
Examined = Examination | str  # or why there is none


def report(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write a report."""
    parser = OptionParser(
        command, "DIR... [--out FILE] [--no_images]",
        "One self-contained HTML file about a run: the network found, how the search went, errors "
        "and misclassified images, cost, and how to repeat it. Several runs are compared in one "
        "file. Runs need not be finished. The file is DIR/report.html of the first run; it loads "
        "nothing.",
    )  # fmt: skip
    add = parser.add_argument
    add("runs", nargs="+", type=str, metavar="DIR", help="run folders")
    add("--out", type=str, default=None, metavar="FILE", help="the file to write")
    text = "do not run the network on its test images: no confusion matrix, no mistakes"
    add("--no_images", action="store_true", help=text)
    values = parse(parser, arguments)
    print(write_report(values.runs, values.out, examines=not values.no_images))
    return 0


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    examines: bool = True,
    data: ImageData | None = None,
    outcome: Outcome | None = None,
) -> Path:
    """Write one self-contained HTML file about one run, or several side by side.

    Args:
        runs: run folders, at least one; they need not be finished.
        out: the file; None writes ``report.html`` into the first folder.
        examines: show confusions and mistakes: the networks are run on their test images, once; the
            run folder's ``evaluation.json`` keeps what came out.
        data: the data set of the runs, if it is in memory already.
        outcome: what the network made of its test images, if that is known already.

    Returns:
        The file's path.

    Raises:
        RunError: if a folder is not that of a run.
        ReportError: if Jinja2 or matplotlib is missing, or if the file holds a report that shows
            more than this one would.
    """
    records = [read_run(path) for path in runs]
    examined = [_examine(record, examines, data, outcome) for record in records]
    path, text = Path(out) if out else records[0].path / FILE_NAME, ""
    for share in SHARES:
        text = _page(records, examined, share)
        if len(text.encode()) < MAX_BYTES:
            break
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if lost := [mark[4:-5].lower() for mark in LASTING if mark in before and mark not in text]:
        reason = next((found for found in examined if isinstance(found, str)), "").rstrip(".")
        raise ReportError(
            f"{path} is kept, as it shows more than a new report would ({', '.join(lost)}). "
            f"{reason}: choose another file with --out, or delete it"
        )
    write_atomically(path, text.encode())
    return path


def write_run_report(
    folder: Path, data: ImageData, say: Callable[[str], None], outcome: Outcome | None = None
) -> None:
    """Write the report at the end of ``dsonas run``: if that fails, the run does not."""
    try:
        say(f"report: {write_report([folder], data=data, outcome=outcome)}")
    except (ValueError, OSError) as error:
        say(f"no report: {' '.join(str(error).split())}")


def _examine(
    record: RunRecord, wanted: bool, data: ImageData | None, outcome: Outcome | None
) -> Examined:
    if record.metrics is None:
        return "The run is not finished, so there is no trained network to look at yet."
    if not wanted:
        return "The test images were not looked at, as asked for."
    try:
        return examine(RunFolder(record.path), record.config, data, outcome)
    except (ValueError, OSError, RuntimeError) as error:
        return f"The network cannot be run on its test images here: {' '.join(str(error).split())}"


def _page(records: Sequence[RunRecord], examined: Sequence[Examined], share: float) -> str:
    """The page with so much of what it could show; of several runs perhaps only the comparison."""
    script = render("report.js")
    runs = [(record, found if isinstance(found, Examination) else None, found)
            for record, found in zip(records, examined, strict=True)]  # fmt: skip
    return render(
        "report.html",
        runs=runs if share or len(runs) == 1 else [],
        num_runs=len(runs),
        comparison=compare(records),
        most={name: ceil(share * value) for name, value in MOST.items()},
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        colours=LIGHT,
        blocks=_blocks,
        charts=charts,
        cost_of=cost_of,
        data_name=data_name,
        draw_skeleton=draw_skeleton,
        base64=lambda text: base64.b64encode(text.encode()).decode(),
    )


def _blocks(record: RunRecord, most: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Every distinct block with its drawing; what was removed from it, if that is not too much."""
    assert record.architecture is not None
    graphs, dead_left = record.architecture.clean().blocks, most["dead_lines"]
    for graph, letter in list(block_letters(record.architecture).items())[: most["blocks"]]:
        places = [i for i, other in enumerate(graphs, 1) if other == graph]
        dead_left -= (num_dead := len(graph.live) - graph.num_live)
        shows = num_dead > 0 <= dead_left
        svg = draw_block(graph, record.factors(places[0] - 1), letter, with_dead=shows)
        yield {"letter": letter, "places": places, "graph": graph, "with_dead": shows, "svg": svg}


def data_name(record: RunRecord) -> str:
    """The data set, a folder by its own name."""
    name = short_name(str(record.setting("data.name") or "images"))
    known = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    return known.get(name, name)
