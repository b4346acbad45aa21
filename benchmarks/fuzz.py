"""What reaches a user when files and options are random? One line and exit code 2, nothing else.

Each target makes random inputs (hypothesis), gives them to the real command line in this process
and checks the exit code and what is printed: no traceback, no warning that is not ours, no case
beyond its time, no growth of memory. The steps of a run themselves are left out, except one step
after a checkpoint. A finding is reduced to its smallest form, printed, and ends the fuzzing.

    python benchmarks/fuzz.py --target config --seconds 600
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis

from dsonas.train.engine import Engine, EngineConfig
from fuzz_targets import ENDED, Target, prepare, targets
from stepper import environment

CASE_SECONDS = 20
ROUND = 200  # cases after which hypothesis begins anew, with another seed
ALLOWED_GROWTH_MB = 60
SPARE_BYTES = 3 * 2**30


class TooSlow(BaseException):
    """Not an ``Exception``, so that nothing takes it for an error of the case."""


def resident_mb() -> float:
    """Memory that the process holds now, without what has been freed and is kept for reuse."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End what takes too long."""

    def late(number: int, frame: object) -> None:
        raise TooSlow

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TooSlow:
        raise AssertionError(f"no end within {seconds} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def fuzz(target: Target, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzz for a time; the result says how many cases there were and what was found."""
    began, count, memory, slowest = time.monotonic(), 0, [], 0.0

    def check(case: Any) -> None:
        nonlocal count, slowest
        start = time.monotonic()
        if start - began > seconds:
            return
        count += 1
        with warnings.catch_warnings(), time_limit(CASE_SECONDS):
            target.check(case)
        slowest = max(slowest, time.monotonic() - start)

    finding = None
    while finding is None and time.monotonic() - began < seconds:
        test = hypothesis.given(target.inputs)(check)
        how = hypothesis.settings(
            max_examples=ROUND, deadline=None, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        try:
            hypothesis.seed(seed + len(memory))(how(test))()
        except Exception:
            finding = traceback.format_exc()
        memory.append(round(resident_mb(), 1))
    if finding is None and memory[-1] - memory[len(memory) // 4] > ALLOWED_GROWTH_MB:
        finding = f"memory grows: {memory} MB after each {ROUND} cases"
    return {
        "cases": count,
        "exit_codes": {str(code): number for code, number in sorted(ENDED.items())},
        "seconds": round(time.monotonic() - began, 1),
        "slowest_case_seconds": round(slowest, 2),
        "memory_mb": [memory[len(memory) // 4], memory[-1]],
        "finding": finding,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("config", "options", "architecture", "images", "checkpoints", "folder", "folders")
    parser.add_argument("--target", choices=names, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file to add the result to")
    options = parser.parse_args()
    out = options.out and options.out.resolve()
    logging.basicConfig(handlers=[logging.NullHandler()])  # warnings of ours are no findings
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        result = fuzz(targets()[options.target], options.seconds, options.seed)
    finding = result.pop("finding")
    row = {"target": options.target, "seed": options.seed, **result, "found": bool(finding)}
    print(finding or "nothing found", json.dumps(row), sep="\n")
    if out:
        engine = Engine(EngineConfig(device="cpu", threads=1))
        held = json.loads(out.read_text())["rows"] if out.exists() else []
        value = {"environment": environment(engine), "rows": [*held, row]}
        out.write_text(json.dumps(value, indent=1) + "\n")
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
