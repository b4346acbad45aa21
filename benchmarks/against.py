"""Is a search step faster than it was? This source tree beside a former one, step by step in turn.

Each tree runs in a process of its own; only one of them computes at a time (A B A B ...), so both
see the same machine. Four sizes: that of docs/speed.md; the published one with nothing to
compute, whose time is the host's; that of the demo; and that of the study on Fashion-MNIST,
behind its stem. The load is told: other programs spoil all.

    git worktree add ../former COMMIT
    python benchmarks/against.py ../former --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from stepper import cpu_name

SIZES = {
    "host": "levels=4, blocks=(8, 8, 8), channels=2, batch_size=2, image_size=4",
    "demo": "levels=3, blocks=(1, 1), image_size=8",
    "study": "levels=3, blocks=(2, 2), image_size=7, batch_size=128",
    "default": "",
}
KINDS = ("fused", "frozen", "plain")
WORKER = """
import sys, time
from stepper import BenchConfig, Engine, EngineConfig, Stepper
config = BenchConfig({size})
engine = Engine(EngineConfig(device="cpu", threads={threads}))
stepper = Stepper(config.complete(), config, engine, "{kind}")
for line in sys.stdin:
    start = time.perf_counter()
    getattr(stepper, line.strip())()
    print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process that takes a step of a source tree when told to."""

    def __init__(self, tree: Path, size: str, kind: str, threads: int) -> None:
        code = WORKER.format(size=size, kind=kind, threads=threads)
        path = os.pathsep.join(str(tree.absolute() / part) for part in ("src", "benchmarks"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )

    def step(self, part: str) -> float:
        """Seconds of a step of ``weight`` or ``factor``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(part, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def compare(former: Path, size: str, repeats: int, threads: int) -> dict[str, Any]:
    """Medians in milliseconds of both trees, and the medians of paired ratios, now over former."""
    here = Path(__file__).parents[1]
    workers = {f"now_{kind}": Worker(here, size, kind, threads) for kind in KINDS}
    workers["former_fused"] = Worker(former, size, "fused", threads)
    found: dict[str, Any] = {}
    for part in ("weight", "factor"):
        rounds = [
            {name: worker.step(part) for name, worker in workers.items()}
            for _ in range(repeats + 2)
        ][2:]  # the first two warm up
        times = {name: statistics.median(row[name] for row in rounds) for name in workers}
        found |= {f"{name}_{part}_ms": 1000 * value for name, value in times.items()}
        for other in ("former_fused", "now_frozen", "now_plain"):
            ratios = [row["now_fused"] / row[other] for row in rounds]
            found[f"{part}_over_{other}"] = statistics.median(ratios)
    for worker in workers.values():
        worker.process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("former", type=Path, help="root of the other source tree")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds, after two")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="one JSON object in one line")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "threads": options.threads,
        "load_before": os.getloadavg()[0],
    }
    for name in options.sizes:
        found[name] = compare(options.former, SIZES[name], options.repeats, options.threads)
    print(json.dumps(found, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
