"""``dsonas evaluate`` and ``predict``: what the network of a finished run makes of images."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from dsonas._utils import PositiveInt
from dsonas.commands.configuring import (
    OptionParser,
    UsageError,
    add_groups,
    parse,
    stored_config,
    to_config,
)
from dsonas.data import DataConfig, plain_name
from dsonas.run import (
    FinishedNetwork,
    Prediction,
    RunConfig,
    RunFolder,
    StopSignal,
    evaluate_run,
    predict_images,
)

_MEASURING = (
    "data.name", "data.labels", "data.workers", "data.max_test_images",
    "engine.device", "engine.precision", "engine.threads",
)  # fmt: skip
_PARTS = ("data.test", "data.val")  # places of them are used, shares are not: nothing is held out


def evaluate(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Measure a finished run on its test images."""
    parser = _parser(
        command, "--run DIR [--json] [OPTIONS]",
        "Measure the network of a finished run on its test images. The options say where "
        "the data are now and where to compute; they default to those of the run.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_groups(parser, ("data", "engine"), (*_MEASURING, *_PARTS))
    parser.default_is = "that of the run"
    first = parse(parser, arguments)
    folder = RunFolder(first.run)
    stored, _ = stored_config(folder.path)
    settings = stored.settings().items()
    parser.set_defaults({k: v for k, v in settings if k.split(".")[0] in ("data", "engine")})
    config = to_config(parse(parser, arguments), seed=stored.seed)
    if config.data.name != stored.data.name:  # where its parts are the run does not know
        given, names = to_config(first).data, ("labels", "test", "val")
        own = {name: getattr(given, name) for name in names}
        config = replace(config, data=replace(config.data, **own))
        default = {name: getattr(DataConfig, name) for name in names}
        stored = replace(stored, data=replace(stored.data, **default))
    network = folder.load_network()
    _refuse_unused(config, stored, network)
    measured = evaluate_run(folder, network, config)
    if first.json:
        print(json.dumps(measured))
    else:
        print(f"test error {measured['test_error']} %  test loss {measured['test_loss']}  "
              f"{beside(measured)}  {measured['images']} images")  # fmt: skip
    return 0


def beside(measured: dict[str, Any]) -> str:
    """What an error is worth where classes differ in size."""
    return (
        f"balanced accuracy {100 * measured['balanced_accuracy']:.2f} %, and "
        f"{100 * (1 - measured['majority_rate']):.2f} % error if it always said the largest class"
    )


def _refuse_unused(config: RunConfig, stored: RunConfig, network: FinishedNetwork) -> None:
    """Refuse options that change nothing in what is measured, unless they say what is so anyway."""
    own, before = network.preprocessing.settings(network.shape), stored.settings()
    for name, value in config.settings().items():
        places = name in _PARTS and (isinstance(value, str) or value == 0)
        unchanged = value in (before[name], own.get(name, before[name]))
        if name in _MEASURING or places or unchanged or not name.startswith(("data.", "engine.")):
            continue
        rule = f"{own[name]!r}, as the network has it" if name in own else "left out"
        raise UsageError(
            f"{name} must be {rule}, got {value!r}: a finished network is measured as it is; to "
            "measure other images than those of its run, give --data.name folder:PATH"
        )


def _parser(command: str, usage: str, description: str) -> OptionParser:
    parser = OptionParser(command, usage, description)
    text = "the folder of a finished run"
    parser.add_argument("--run", type=str, required=True, metavar="DIR", help=text)
    return parser


def predict(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Classify image files."""
    parser = _parser(
        command, "--run DIR IMAGE... [OPTIONS]",
        "Classify image files; prints file, class and probability, separated by tabs. "
        "Files that cannot be read are named on stderr with the reason, with --json and --csv "
        "there too, and the others go on.",
    )  # fmt: skip
    add = parser.add_argument
    add("images", nargs="+", type=str, metavar="IMAGE",
        help="image files, folders of them, or - for names on standard input, one a line or each "
        "ended by a zero byte")  # fmt: skip
    add("--top", type=PositiveInt, default=1, metavar="N", help="the N most probable classes")
    add("--json", action="store_true", help="print a JSON list, an object for each image")
    add("--csv", action="store_true", help="print CSV with a header")
    add("--device", type=str, default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, auto, ...")
    values = parse(parser, arguments)
    if values.json and values.csv:
        raise UsageError("--json and --csv exclude each other: give one of them")
    paths = [name for path in values.images for name in (_listed() if path == "-" else [path])]
    found = predict_images(RunFolder(values.run), paths, top=values.top, device=values.device)
    printed = _print_json if values.json else _print_csv if values.csv else _print_lines
    printed(found, values.top)
    return 0


def _listed() -> list[str]:
    """The names on standard input."""
    text = os.fsdecode(sys.stdin.buffer.read())
    return [name for name in (text.split("\0") if "\0" in text else text.splitlines()) if name]


def _cells(classes: list[tuple[str, float]]) -> list[str]:
    return [cell for label, value in classes for cell in (label, f"{value:.4f}")]


def _print_lines(found: Iterator[Prediction], top: int) -> None:
    for file, classes, skipped in found:
        if not skipped:  # that is said on stderr
            print(*map(plain_name, (file, *_cells(classes))), sep="\t")


def _print_csv(found: Iterator[Prediction], top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    first = [next(found)]
    while first[-1].skipped:  # one is readable, or that would have been an error
        first.append(next(found))
    count = len(first[-1].classes)
    columns = [f"{name}{end}" for end in ("", *(f"_{k}" for k in range(2, count + 1)))
               for name in ("class", "probability")]  # fmt: skip
    writer.writerow(["file", *columns, "skipped"])
    for file, classes, skipped in chain(first, found):
        cells = _cells(classes) or [""] * len(columns)
        writer.writerow([plain_name(file), *cells, skipped])


def _print_json(found: Iterator[Prediction], top: int) -> None:
    start = "["
    for file, classes, skipped in found:
        ranked = [{"class": label, "probability": round(value, 6)} for label, value in classes]
        item = {"skipped": skipped} if skipped else dict(ranked[0])
        item |= {"top": ranked} if top > 1 and ranked else {}
        print(start, json.dumps({"file": file, **item}), sep="\n ", end="")
        start = ","
    print("\n]")
