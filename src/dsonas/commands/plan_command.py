"""What ``dsonas plan`` does, from its arguments to its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dsonas.commands.configuring import GROUPS, config_parser, parse
from dsonas.commands.forecast import Forecast, Line, forecast
from dsonas.commands.size_options import add_size_options, stated_run
from dsonas.cost import architecture_cost
from dsonas.data import ImageData
from dsonas.graph import Architecture
from dsonas.run import StopSignal, readable_count

DESCRIPTION = (
    "What a run will take here, before anything is trained: steps, multiply-adds, memory and time\n"
    "of every stage. Takes the options of dsonas run. Ten steps of each kind are timed on this\n"
    "machine, on random images of the true size (some ten seconds); no image is loaded."
)


def plan(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Print the forecast of a run."""
    parser = config_parser(command, DESCRIPTION, GROUPS)
    add_size_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    values = parse(parser, arguments)
    config, data = stated_run(values)
    found = forecast(config, data)
    print(json.dumps(as_json(found, data)) if values.json else "\n".join(table(found, data)))
    return 0


def table(plan: Forecast, data: ImageData) -> Iterator[str]:
    """The lines of a plan: what is known, the stages with their sum, what had to be assumed."""
    yield f"data      {data.summary}"
    yield f"supernet  {_size(plan.supernet)}"
    yield f"network   {_size(plan.networks[0])} (assumed for step 3)"
    yield f"device    {plan.device}"
    yield ""
    yield _row("stage", "", "steps", "multiply-adds", "peak memory", "time")
    for line in [*plan.lines, _total(plan)]:
        memory = f"{readable_count(line.memory_bytes)}B" if line.memory_bytes else ""
        counts = str(line.steps), readable_count(line.macs), memory
        yield _row(line.stage, line.part, *counts, duration(line.seconds))
    yield from (f"note: {note}" for note in plan.notes)


def _size(architecture: Architecture) -> str:
    cost = architecture_cost(architecture)
    return (
        f"{architecture.num_live} connections, {readable_count(cost.macs)} multiply-adds, "
        f"{readable_count(cost.params)} parameters"
    )


def _row(stage: str, part: str, *numbers: str) -> str:
    widths = (10, 15, 13, 10)
    cells = "".join(f"{text:>{width}}" for text, width in zip(numbers, widths, strict=True))
    return f"{stage:<9} {part:<13}{cells}"


def _total(plan: Forecast) -> Line:
    lines = plan.lines
    steps, macs = sum(line.steps for line in lines), sum(line.macs for line in lines)
    return Line("all", "", steps, macs, max(line.memory_bytes for line in lines), plan.seconds)


def duration(seconds: float) -> str:
    """A time in three digits.

    Example:
        >>> duration(4), duration(90), duration(5400)
        ('4 s', '1.5 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.4g} h"


def as_json(plan: Forecast, data: ImageData) -> dict[str, Any]:
    """A plan as plain values, the hours of each line included."""
    return {
        "data": {
            "num_train": len(data.train),
            "num_val": len(data.val or ()),
            "num_test": len(data.test),
            "image_size": data.image_size,
            "input_channels": data.input_channels,
            "num_classes": data.num_classes,
        },
        "device": plan.device,
        "supernet": asdict(architecture_cost(plan.supernet)),
        "network": asdict(architecture_cost(plan.networks[0])),
        "notes": list(plan.notes),
        "lines": [{**asdict(line), "hours": line.seconds / 3600} for line in plan.lines],
        "hours": plan.seconds / 3600,
    }
