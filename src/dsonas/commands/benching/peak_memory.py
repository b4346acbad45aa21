"""Peak memory of a search step, measured in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsonas.commands.benching.stepper import BenchConfig, Stepper, environment
from dsonas.train import Engine

MEASURED_KINDS = ("fused", "recompute", "plain")


def peak_memory(config: BenchConfig, kind: str) -> int:
    """Peak memory, in bytes, that a weight and a lambda step add to the network and its batch."""
    code = (
        "from dsonas.commands.benching.peak_memory import measure_peak; "
        "from dsonas.commands.benching.stepper import BenchConfig; "
        "from dsonas.train.engine import EngineConfig; "
        f"print(measure_peak({replace(config, repeats=1)!r}, {kind!r}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_peak(config: BenchConfig, kind: str) -> int:
    """What ``peak_memory`` runs in its own process."""
    engine = Engine(config.engine)
    stepper = Stepper(config.complete(), config, engine, kind)
    before = high_water(engine)
    for _ in range(2):
        stepper.weight()
        stepper.factor()
    return high_water(engine) - before


def high_water(engine: Engine) -> int:
    """The most memory in use so far, in bytes."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux ru_maxrss would begin with the parent's
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bench_memory(config: BenchConfig) -> dict[str, Any]:
    """Peak memory of a pair of steps over the levels M = 2 to 6."""
    rows = []
    for levels in range(2, 7):
        at = replace(config, levels=levels)
        rows.append({"levels": levels, **{kind: peak_memory(at, kind) for kind in MEASURED_KINDS}})
    return {**environment(Engine(config.engine)), "memory_bytes": rows}
