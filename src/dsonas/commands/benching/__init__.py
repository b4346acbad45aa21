"""Measure the search on the machine at hand: speed, memory, roofline, growth, whole searches.

Variants are timed in turn in one process (A B A B ...), so that both see the same machine; each
figure is a median with its quartiles. Peak memory is measured in a process of its own.
"""

from dsonas.commands.benching.peak_memory import bench_memory
from dsonas.commands.benching.searches import bench_search
from dsonas.commands.benching.stepper import BenchConfig, Stepper, environment, time_in_turn
from dsonas.commands.benching.steps import bench_growth, bench_sparse, bench_step

BENCHES = {
    "step": bench_step,
    "sparse": bench_sparse,
    "growth": bench_growth,
    "search": bench_search,
    "memory": bench_memory,
}

__all__ = ["BENCHES", "BenchConfig", "Stepper", "environment", "time_in_turn"]
