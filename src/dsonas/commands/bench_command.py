"""What ``dsonas bench`` does, from its arguments to its exit code."""

from __future__ import annotations

import json

from dsonas.commands.benching import BENCHES, BenchConfig
from dsonas.commands.configuring import OptionParser, UsageError, add_groups, parse
from dsonas.run import StopSignal
from dsonas.train import EngineConfig

DESCRIPTION = (
    "Measure this machine: a dense search step against plain PyTorch (step), steps of\n"
    "sparse supernets (sparse), growth with blocks, batch and levels (growth), searches with and\n"
    "without shrinking (search), peak memory over the levels (memory)."
)


def bench(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Measure the search on this machine."""
    what = "|".join(BENCHES)
    parser = OptionParser(command, f"{what} [--json] [OPTIONS]", DESCRIPTION)
    parser.add_argument("what", type=str, metavar=what, help="what to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    defaults = BenchConfig()
    for name in ("levels", "channels", "batch_size", "image_size", "repeats"):
        default = getattr(defaults, name)
        text = f"see docs/speed.md (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    add_groups(parser, ("engine",), ("engine",))
    values = parse(parser, arguments)
    if values.what not in BENCHES:
        raise UsageError(f"bench must be one of {', '.join(BENCHES)}, got {values.what!r}")
    sizes = {name: values[name] for name in vars(defaults) if name in values and name != "engine"}
    config = BenchConfig(**sizes, engine=EngineConfig(**values.engine.as_dict()))
    measured = BENCHES[values.what](config)
    print(json.dumps(measured) if values.json else json.dumps(measured, indent=2))
    return 0
