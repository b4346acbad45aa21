"""What ``dsonas latency`` does, from its arguments to its exit code."""

from __future__ import annotations

import json
from pathlib import Path

from dsonas._utils import PositiveInt, Threads, write_atomically
from dsonas.commands.configuring import GROUPS, OptionParser, UsageError, config_parser, parse
from dsonas.commands.size_options import add_size_options, stated_run
from dsonas.cost import latency_from_table, measure_table
from dsonas.graph import scale_channels
from dsonas.run import StopSignal
from dsonas.train import Engine

DESCRIPTION = (
    "Time the parts of a run's networks on this device, and write them as a table by which a\n"
    "run on another machine is led: dsonas run --budget.latency_ms 4 --engine.latency_table FILE.\n"
    "Takes the options of dsonas run; no image is loaded. Leave the device idle meanwhile."
)
WIDTHS = "0.25,0.5,1,2,4,8,16"


def latency(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write the latency table of this device."""
    values = parse(_parser(command), arguments)
    multipliers = _multipliers(values.widths)
    config, data = stated_run(values)
    supernet = config.space(data).complete()
    networks = [
        supernet.with_channels(scale_channels(supernet.skeleton.channels, multiplier))
        for multiplier in multipliers
    ]
    device = str(Engine(config.engine).device)
    table = measure_table(
        networks, device, batch_size=values.latency_batch, threads=values.latency_threads
    )
    write_atomically(Path(values.table), (json.dumps(table, indent=1) + "\n").encode())
    milliseconds = latency_from_table(table)
    for network in networks:
        channels = "-".join(map(str, network.skeleton.channels))
        print(f"{channels:>16} channels  supernet {milliseconds(network):8.3f} ms")
    print(f"{len(table)} parts in {values.table}")
    return 0


def _parser(command: str) -> OptionParser:
    parser = config_parser(command, DESCRIPTION, GROUPS)
    text = "the table, a JSON file (default latency.json)"
    parser.add_argument("--table", type=str, default="latency.json", metavar="FILE", help=text)
    text = f"multiples of the supernet's channels to time, rising (default {WIDTHS})"
    parser.add_argument("--widths", type=str, default=WIDTHS, metavar="X,Y,...", help=text)
    text = "images at a time; a budget then holds for so many"
    parser.add_argument("--latency_batch", type=PositiveInt, default=1, metavar="N", help=text)
    text = "CPU threads that the networks get"
    parser.add_argument("--latency_threads", type=Threads, default=1, metavar="N", help=text)
    add_size_options(parser)
    return parser


def _multipliers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one <= 64 for one in found) or found != sorted(set(found)):
        raise UsageError(f"widths must be rising numbers above 0, at most 64, got {text!r}")
    if not found[0] <= 1 <= found[-1]:
        raise UsageError(f"widths must enclose 1, those of the supernet, got {text!r}")
    return found
