"""What ``dsonas report`` does, from its arguments to its exit code."""

from __future__ import annotations

from dsonas.commands.configuring import OptionParser, parse
from dsonas.commands.report import write_report
from dsonas.run import StopSignal

DESCRIPTION = (
    "One self-contained HTML file about a run: the network found, how the search went, errors and\n"
    "misclassified images, cost, and how to repeat it. Several runs are compared in one file.\n"
    "Runs need not be finished. The file is DIR/report.html of the first run; it loads nothing."
)


def report(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write a report."""
    parser = OptionParser(command, "DIR... [--out FILE] [--no_images]", DESCRIPTION)
    add = parser.add_argument
    add("runs", nargs="+", type=str, metavar="DIR", help="run folders")
    add("--out", type=str, default=None, metavar="FILE", help="the file to write")
    text = "do not run the network on its test images: no confusion matrix, no mistakes"
    add("--no_images", action="store_true", help=text)
    values = parse(parser, arguments)
    print(write_report(values.runs, values.out, examines=not values.no_images))
    return 0
