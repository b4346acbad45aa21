"""How much faster do two processes of one thread search than one?

All train the same supernet on the same global batch, weight and scaling-factor steps in turn. With
batch normalisation over the whole batch (``synchronised``) what two processes compute is what one
computes; without, each normalises by its part, as torch's DDP does when nothing is said
(``--apart``). ``independent`` is what the machine has to give: two processes that know nothing of
each other, each on half of the batch. Rounds of all four are timed in turn,
each in fresh processes. An idle machine of two cores is needed: ``others_busy`` is how much of a
core other programs took, and should be near 0.

    python benchmarks/two_processes.py --out benchmarks/results/two-processes.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
VARIANTS = ("one", "two, synchronised", "two", "independent")


def timed_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each pair of a weight and a factor step, and of the processor, in this process."""
    from dsonas.train.engine import Engine, EngineConfig
    from dsonas.train.world import current_world
    from stepper import BenchConfig, Stepper

    engine = Engine(EngineConfig(device="cpu", threads=1), current_world())
    engine.synchronises &= not options.apart
    number = engine.processes.world.size
    config = BenchConfig(channels=options.channels, batch_size=options.batch_size)
    stepper = Stepper(
        config.complete(), replace(config, batch_size=config.batch_size // number), engine
    )
    wall, own = [], []
    for _ in range(options.repeats + 1):
        began, used = time.perf_counter(), time.process_time()
        stepper.weight()
        stepper.factor()
        wall.append(time.perf_counter() - began)
        own.append(time.process_time() - used)
    # without the warm-up
    return {"first": engine.processes.is_first, "seconds": wall[1:], "cpu_seconds": own[1:]}


def measured(variant: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """The seconds of a variant, as its first process sees them."""
    independent, size = variant == "independent", options.batch_size
    numbers = {
        "channels": options.channels,
        "batch_size": size // 2 if independent else size,
        "repeats": options.repeats,
    }
    launcher = TORCHRUN if variant.startswith("two") else []
    command = [sys.executable, *launcher, __file__, "--worker"]
    command += [f"--{name}={value}" for name, value in numbers.items()]
    command += ["--apart"] if variant == "two" else []
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{number}.json" for number in range(2 if independent else 1)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [subprocess.Popen([*command, "--out", str(out)], env=environment) for out in outs]
        if any([process.wait() for process in running]):  # a list: all are waited for
            raise SystemExit(f"{variant}: a process failed")
        return json.loads(outs[0].read_text(encoding="utf-8"))


def others_busy(seconds: float = 2.0) -> float:
    """Cores that are at work now, while this program only waits; a Linux system."""

    def ticks() -> int:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()
        return sum(map(int, fields[1:4]))

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def compared(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    found: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "cpu_seconds": []} for name in VARIANTS
    }
    busy = []
    for _ in range(options.rounds):
        for name, kept in found.items():
            busy.append(round(others_busy(), 2))
            for key, values in measured(name, options).items():
                kept[key] += [round(value, 4) for value in values]
    medians = {name: statistics.median(kept["seconds"]) for name, kept in found.items()}
    images = 2 * options.batch_size  # in a pair of steps
    return {
        "speedup": {name: medians["one"] / value for name, value in medians.items()},
        "images_per_second": {name: images / value for name, value in medians.items()},
        "others_busy": busy,
        "processes": found,
        "channels": options.channels,
        "batch_size": options.batch_size,
        "threads_of_a_process": 1,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=6, help="pairs of steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = timed_steps(options)
        if found["first"]:
            del found["first"]
            options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    found = compared(options)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, speedup in found["speedup"].items():
        print(f"{name}: {speedup:.2f} times, {found['images_per_second'][name]:.1f} images/s")


if __name__ == "__main__":
    main()
