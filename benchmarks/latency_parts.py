"""How close is the sum of a latency table's parts to what the whole network takes?

Random networks of the small studies' space at two widths, each measured whole several times, in
turn with new tables. The ratio of the medians says how close; the spread of single measurements of
one network says what a search would compare that measured each structure whole, once. On an idle
machine, about two minutes.

    python benchmarks/latency_parts.py --out benchmarks/results/latency-parts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsonas.cost.latency import LatencyMeter, measure_table
from dsonas.cost.latency_table import latency_from_table
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.search.baselines import random_architecture
from dsonas.train.engine import Engine, EngineConfig
from stepper import environment

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
WIDTHS = ((8, 16), (64, 128))


def networks() -> list[Architecture]:
    """The supernet and random smaller ones, narrow and wide."""
    skeleton = Skeleton(input_channels=1, image_size=14, blocks=(1, 1), channels=WIDTHS[0])
    space = SearchSpace(skeleton=skeleton, num_levels=3)
    generator = torch.Generator().manual_seed(0)
    found = [random_architecture(space, generator, "cost", share=share) for share in SHARES]
    return [net.with_channels(widths) for net in (space.complete(), *found) for widths in WIDTHS]


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each network."""
    nets = networks()
    wholes: list[list[float]] = [[] for _ in nets]
    sums: list[list[float]] = [[] for _ in nets]
    for _ in range(rounds):
        by_parts = latency_from_table(measure_table(nets[: len(WIDTHS)]))
        for i, net in enumerate(nets):
            wholes[i].append(LatencyMeter()(net))
            sums[i].append(by_parts(net))
    return [row(net, whole, sum_) for net, whole, sum_ in zip(nets, wholes, sums, strict=True)]


def row(net: Architecture, wholes: Sequence[float], sums: Sequence[float]) -> dict[str, Any]:
    whole, parts = statistics.median(wholes), statistics.median(sums)
    return {
        "channels": net.skeleton.channels[0],
        "live_connections": net.num_live,
        "whole_ms": round(whole, 4),
        "parts_ms": round(parts, 4),
        "ratio": round(parts / whole, 3),
        "whole_largest_over_smallest": round(max(wholes) / min(wholes), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency-parts.json"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.rounds)
    value = {"environment": environment(Engine(EngineConfig(device="cpu", threads=1)))}
    options.out.write_text(json.dumps({**value, "rows": rows}, indent=1) + "\n")
    for one in rows:
        print(one)


if __name__ == "__main__":
    main()
