"""Does the final network cost what was asked for? Targets from a tenth to nine tenths, 3 seeds.

For each space (share, full), leading measure (multiply-adds, parameters) and seed one search of a
small supernet on Fashion-MNIST at 14 x 14 pixels; from each search, a network for every target.
Targets are shares of the supernet's cost, and of that of the structure found at the supernet's
width. The cost is counted on the network that is built, by torch's own counter, not by ``costs``.

    python benchmarks/budget_accuracy.py --out benchmarks/results/budget-accuracy.json
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsonas.cost.budgets import Budget, fit_width
from dsonas.cost.chains import fit_chain
from dsonas.data import DataConfig, ImageData, load_data
from dsonas.graph.architecture import Architecture
from dsonas.nn.network import Network
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.search.stages import BlockResult, search
from dsonas.train.engine import Engine, EngineConfig
from stepper import environment

SHARES = (0.10, 0.25, 0.50, 0.75, 0.90)
MEASURES = ("macs", "params")
SPACES: tuple[Literal["share", "full"], ...] = ("share", "full")
TOLERANCE = 0.03


def settings(space: Literal["share", "full"], seed: int) -> RunConfig:
    """A supernet with few channels, where one channel is a large step of cost."""
    return RunConfig(
        data=DataConfig(name="fashion-mnist", image_size=14, max_train_images=2000),
        network=NetworkConfig(levels=3, blocks=(1, 1), channels=8),
        pretrain=PretrainConfig(epochs=1, batch_size=64),
        search=SearchConfig(space=space, epochs=6, batch_size=64),
        engine=EngineConfig(device="cpu", threads=1),
        seed=seed,
    )


def run_search(config: RunConfig, data: ImageData, measure: str) -> BlockResult:
    return search(
        config.space(data),
        data,
        budget=Budget(**{measure: 1e9}),  # only which bound it is counts here
        seed=config.seed,
        pretrain=config.pretrain,
        config=config.search,
        engine=Engine(config.engine),
    )


def counted(architecture: Architecture) -> dict[str, int]:
    """Multiply-adds and parameters of the network itself."""
    with torch.device("meta"):
        network = Network(architecture).eval()
        skeleton = architecture.skeleton
        side = skeleton.image_size
        images = torch.empty(1, skeleton.input_channels, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"macs": counter.get_total_flops() // 2, "params": params}


def fits(result: BlockResult, measure: str) -> list[dict[str, Any]]:
    """A network for every target, and how far from it its cost is."""
    wholes = {"supernet": result.supernet, "structure found": result.architecture}
    found = []
    for (reference, whole), share in product(wholes.items(), SHARES):
        target = share * counted(whole)[measure]
        budget = Budget(**{measure: target})
        network = fit_chain(result.chain, budget)
        alone = counted(fit_width(result.architecture, budget))[measure]
        cost = counted(network)[measure]
        found.append(
            {
                "of": reference,
                "share": share,
                "target": target,
                "cost": cost,
                "deviation": cost / target - 1,
                "deviation_by_width_alone": alone / target - 1,
                "channels": list(network.skeleton.channels),
                "same_structure": network.blocks == result.architecture.blocks,
            }
        )
    return found


def measure_all(seeds: int) -> dict[str, Any]:
    rows, start = [], time.perf_counter()
    for space, measure, seed in product(SPACES, MEASURES, range(seeds)):
        config = settings(space, seed)
        result = run_search(config, load_data(config.data, seed), measure)
        case = {"space": space, "measure": measure, "seed": seed}
        rows += [{**case, **row} for row in fits(result, measure)]
        print(space, measure, seed, f"{time.perf_counter() - start:.0f} s", flush=True)
    kept = [-TOLERANCE <= row["deviation"] <= 0 for row in rows]
    alone = [-TOLERANCE <= row["deviation_by_width_alone"] <= 0 for row in rows]
    return {
        "tolerance": TOLERANCE,
        "fits": len(rows),
        "within": sum(kept),
        "above": sum(row["deviation"] > 0 for row in rows),
        "within_by_width_alone": sum(alone),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(Engine(EngineConfig(device="cpu", threads=1))),
        "rows": rows,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: the smallest and the largest deviation over seeds and both references."""
    lines = [
        "| space | bound | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
        "|---|---|" + "---|" * len(SHARES),
    ]
    for space, measure in product(SPACES, MEASURES):
        cells = []
        for share in SHARES:
            deviations = [
                100 * row["deviation"]
                for row in rows
                if (row["space"], row["measure"], row["share"]) == (space, measure, share)
            ]
            cells.append(f"{min(deviations):.1f} to {max(deviations):.1f}")
        lines.append(f"| {space} | {measure} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/budget-accuracy.json"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    measured = measure_all(options.seeds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=1) + "\n")
    print("\n".join(table(measured["rows"])))
    print({name: measured[name] for name in measured if name not in ("rows", "environment")})


if __name__ == "__main__":
    main()
