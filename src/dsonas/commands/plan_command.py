"""What ``dsonas plan`` does, from its arguments to its exit code."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dsonas._utils import write_atomically
from dsonas.commands.configuring import GROUPS, OptionParser, UsageError, config_parser, parse
from dsonas.commands.planning import (
    Cluster,
    DataShape,
    Device,
    StatedDevice,
    growth,
    measured_device,
    project,
)
from dsonas.commands.planning.projecting import DEFAULT_LINK, Outline, outline
from dsonas.commands.planning.tables import as_json, growth_tables, table
from dsonas.commands.size_options import SIZES, add_options, stated_run, whole_number
from dsonas.run import RunConfig, StopSignal

DESCRIPTION = (
    "What a run will take, before anything is trained: steps, multiply-adds, memory and time of\n"
    "every stage. Takes the options of dsonas run. No image is loaded: the sizes of well-known\n"
    "data sets are known, a folder is counted, and others can be stated. The time is that of a\n"
    "stated device, or else a few steps of each kind are timed here (some ten seconds)."
)
_NUMBERS = {
    "device-tflops": "peak rate of the device in 10^12 operations a second; left out: measure here",
    "efficiency": "share of that rate that the steps reach (default 0.2, see docs/scaling.md)",
    "device-gbytes": "its memory bandwidth in GB/s; left out: no limit",
    "link-gbytes": f"bandwidth between two devices in GB/s each way (default {DEFAULT_LINK})",
}
_COUNTS = {"devices": "devices that share every batch (default 1)"}


def plan(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Print the plan of a run, and write it as JSON if asked to."""
    values = parse(_parser(command), arguments)
    config, shape = stated_run(values)
    found = outline(config, shape)
    cluster = _cluster(values, config, shape, found)
    projection = project(config, shape, found, cluster)
    print("\n".join(table(projection)))
    result = as_json(projection)
    if values.growth:
        rows = growth(config, shape, replace(cluster, devices=1))
        print("\n" + "\n".join(growth_tables(rows)))
        result["growth"] = rows
    if values.json:
        write_atomically(Path(values.json), (json.dumps(result, indent=1) + "\n").encode())
    return 0


def _parser(command: str) -> OptionParser:
    parser = config_parser(command, DESCRIPTION, GROUPS)
    add_options(parser, _NUMBERS, "X")
    add_options(parser, _COUNTS | SIZES, "N")
    text = "also tabulate pretraining and search over 1 to 64 devices, images and classes"
    parser.add_argument("--growth", action="store_true", help=text)
    text = "write the plan to a file too"
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help=text)
    return parser


def _cluster(values: Namespace, config: RunConfig, shape: DataShape, found: Outline) -> Cluster:
    link = _number(values, "link-gbytes") or DEFAULT_LINK
    devices = whole_number(values, "devices") or 1
    cluster = Cluster(device=StatedDevice(tflops=1), devices=devices, link_gbytes=link)
    project(config, shape, found, cluster)  # refuses what cannot be before anything is measured
    return replace(cluster, device=_device(values, config, shape, found, devices))


def _device(
    values: Namespace, config: RunConfig, shape: DataShape, found: Outline, devices: int
) -> Device:
    tflops = _number(values, "device-tflops")
    rates: dict[str, Any] = {
        "efficiency": _number(values, "efficiency"),
        "gbytes": _number(values, "device-gbytes"),
    }
    rates = {name: value for name, value in rates.items() if value is not None}
    if tflops is not None:
        return StatedDevice(tflops=tflops, **rates)
    if rates:
        raise UsageError("efficiency and device-gbytes need --device-tflops: state it too")
    return measured_device(config, shape, found, devices=devices)


def _number(values: Namespace, name: str) -> float | None:
    text = values[name.replace("-", "_")]
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"{name} must be a number above 0, got {text!r}: see --help")
    return number
