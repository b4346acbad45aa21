"""The dense search step against the plain one, sparse steps, and how a step's cost grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dsonas.commands.benching.peak_memory import MEASURED_KINDS, peak_memory
from dsonas.commands.benching.roofline import components, roofline
from dsonas.commands.benching.stepper import BenchConfig, Stepper, environment, time_in_turn
from dsonas.cost import architecture_cost
from dsonas.train import Engine

SHARES = (1.0, 0.5, 0.25, 0.1)
LEVELS = (2, 3, 4, 5, 6)


def bench_step(config: BenchConfig) -> dict[str, Any]:
    """The dense search step against the plain path, in time and in peak memory.

    ``reference`` is the plain path as PyTorch runs it, every gradient computed; ``frozen`` the same
    without the gradients that a step does not need.
    """
    engine, architecture = Engine(config.engine), config.complete()
    names = {"fused": "fused", "recompute": "recompute", "reference": "plain", "frozen": "frozen"}
    steppers = {name: Stepper(architecture, config, engine, kind) for name, kind in names.items()}
    variants = {f"{name}_weight": stepper.weight for name, stepper in steppers.items()}
    variants |= {f"{name}_lambda": stepper.factor for name, stepper in steppers.items()}
    times = time_in_turn(variants, config.repeats)
    median = {name: value["median"] for name, value in times.items()}
    both = {kind: median[f"{kind}_weight"] + median[f"{kind}_lambda"] for kind in names}
    memory = {kind: peak_memory(config, kind) for kind in MEASURED_KINDS}
    return {
        **environment(engine),
        "images_per_second": config.batch_size / median["fused_weight"],
        "images_per_second_reference": config.batch_size / median["reference_weight"],
        "speedup_vs_reference": both["reference"] / both["fused"],
        "speedup_vs_frozen_reference": both["frozen"] / both["fused"],
        "lambda_vs_weight_step": median["fused_lambda"] / median["fused_weight"],
        "memory_bytes": memory["fused"],
        "memory_bytes_reference": memory["plain"],
        "memory_vs_reference": memory["fused"] / max(1, memory["plain"]),
        "recompute": {
            "seconds_vs_fused": both["recompute"] / both["fused"],
            "memory_vs_reference": memory["recompute"] / max(1, memory["plain"]),
        },
        "seconds": times,
        **(_explanation(config, steppers["fused"], times) if engine.device.type == "cpu" else {}),
    }


def _explanation(config: BenchConfig, stepper: Stepper, times: dict[str, Any]) -> dict[str, Any]:
    """Where the time of the steps goes, on a CPU."""
    return {
        "roofline": roofline(config, times["fused_weight"]["median"]),
        "components": {
            "weight": components(stepper.weight),
            "lambda": components(stepper.factor),
        },
    }


def bench_sparse(config: BenchConfig) -> dict[str, Any]:
    """Steps at shares of the supernet's multiply-adds: fast path, plain path, final network."""
    engine, rows = Engine(config.engine), []
    dense = architecture_cost(config.complete()).macs
    for share in SHARES:
        architecture = config.sparse(share)
        variants = {}
        for kind in ("fused", "frozen"):
            stepper = Stepper(architecture, config, engine, kind)
            variants |= {f"{kind}_weight": stepper.weight, f"{kind}_lambda": stepper.factor}
        variants["final"] = Stepper(architecture, config, engine, "final").weight
        times = time_in_turn(variants, config.repeats)
        median = {name: value["median"] for name, value in times.items()}
        search_step = (median["fused_weight"] + median["fused_lambda"]) / 2
        rows.append(
            {
                "share": architecture_cost(architecture).macs / dense,
                "live_connections": architecture.blocks[0].num_live,
                "search_step_vs_final": search_step / median["final"],
                "seconds": median,
            }
        )
    return {**environment(engine), "rows": rows}


def bench_growth(config: BenchConfig) -> dict[str, Any]:
    """How the time of a search step grows with blocks, batch and levels, with fitted models.

    Blocks and batch: the exponent of a power law through the smallest and the largest; 1 is linear.
    Levels: seconds = constant + per_node * nodes + per_connection * connections, least squares.
    """
    blocks = [tuple(n * one for one in (1,) * len(config.blocks)) for n in (1, 2, 4)]
    halves = (max(1, config.batch_size // 2), config.batch_size, 2 * config.batch_size)
    by_blocks = {sum(n): _pair(replace(config, blocks=n)) for n in blocks}
    by_batch = {size: _pair(replace(config, batch_size=size)) for size in halves}
    at_levels = [replace(config, levels=levels) for levels in LEVELS]
    by_levels = {at.levels: _pair(at) for at in at_levels}
    return {
        **environment(Engine(config.engine)),
        "seconds_by_blocks": by_blocks,
        "blocks_exponent": _exponent(by_blocks),
        "seconds_by_batch": by_batch,
        "batch_exponent": _exponent(by_batch),
        "seconds_by_levels": by_levels,
        "levels_model": _levels_model(at_levels, list(by_levels.values())),
    }


def _pair(config: BenchConfig) -> float:
    """Seconds of a weight step and a lambda step."""
    stepper = Stepper(config.complete(), config, Engine(config.engine))
    times = time_in_turn({"w": stepper.weight, "l": stepper.factor}, config.repeats)
    return sum(value["median"] for value in times.values())


def _exponent(seconds: dict[int, float]) -> float:
    (small, fast), (large, slow) = min(seconds.items()), max(seconds.items())
    return math.log(slow / fast) / math.log(large / small)


def _levels_model(configs: Sequence[BenchConfig], seconds: Sequence[float]) -> dict[str, float]:
    graphs = [config.complete().blocks[0] for config in configs]
    design = np.array([[1, len(graph.kept_nodes), graph.num_live] for graph in graphs])
    found, *_ = np.linalg.lstsq(design, np.array(seconds), rcond=None)
    worst = np.max(np.abs(design @ found - seconds) / seconds)
    names = ("constant", "per_node", "per_connection")
    return {**dict(zip(names, found.tolist(), strict=True)), "worst_relative_error": float(worst)}
