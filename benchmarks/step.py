"""How fast is a search step on this machine, and what keeps it from being faster?

The fast path beside the same network by its plain path: seconds, memory, what the machine's rates
allow, where the time goes, and the host's time for a step of published size with nothing to
compute. Variants are timed in turn in one process (A B A B ...), so that all see the same machine.
``host`` is the last of these alone; ``paths``, ``sparse``, ``growth`` and ``search`` are the other
tables of docs/speed.md.

    python benchmarks/step.py --json
    python benchmarks/step.py host --json
    python benchmarks/step.py sparse --engine.threads 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch.profiler import ProfilerActivity, profile

from dsonas.cost import architecture_cost
from dsonas.data import Augmentation, ImageData, TensorImages
from dsonas.graph import SearchSpace
from dsonas.search import PretrainConfig, SearchConfig, search
from dsonas.train import Engine, EngineConfig, Journal
from stepper import BenchConfig, Stepper, environment, peak_memory, time_in_turn

KINDS = {"fused": "fused", "recompute": "recompute", "reference": "plain", "frozen": "frozen"}
SHARES = (1.0, 0.5, 0.25, 0.1)
LEVELS = (2, 3, 4, 5, 6)
PATH_SIZES = ((4, 16), (8, 16), (8, 32), (16, 32), (8, 64), (16, 64), (32, 64), (16, 256))
SEARCH_BATCHES, SEARCH_EPOCHS = 4, 12
COMPONENTS = {
    "convolutions backward": ("convolution_backward",),
    "convolutions forward": ("mkldnn_convolution", "thnn_conv", "_conv_depthwise"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "batch normalisation": ("batch_norm",),
    "pools": ("pool",),
    "ReLU": ("threshold", "clamp", "relu"),
    "copies and fills": ("copy_", "fill_", "aten::cat"),
}


def bench_step(config: BenchConfig) -> dict[str, Any]:
    """The dense search step against the plain path.

    ``reference`` is the plain path as PyTorch runs it, every gradient computed; ``frozen`` the same
    without the gradients that a step does not need.
    """
    engine, architecture = Engine(config.engine), config.complete()
    steppers = {name: Stepper(architecture, config, engine, kind) for name, kind in KINDS.items()}
    variants = {f"{name}_weight": stepper.weight for name, stepper in steppers.items()}
    variants |= {f"{name}_lambda": stepper.factor for name, stepper in steppers.items()}
    times = time_in_turn(variants, config.repeats)
    median = {name: value["median"] for name, value in times.items()}
    both = {kind: median[f"{kind}_weight"] + median[f"{kind}_lambda"] for kind in KINDS}
    memory = {kind: peak_memory(config, kind) for kind in ("fused", "recompute", "plain")}
    found = {
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
    }
    if engine.device.type == "cpu":
        parts = {"weight": steppers["fused"].weight, "lambda": steppers["fused"].factor}
        found["roofline"] = roofline(config, median["fused_weight"])
        found["components"] = {name: components(step) for name, step in parts.items()}
    return found | host_time(config)


def host_time(config: BenchConfig) -> dict[str, float]:
    """Milliseconds of the host for a step of published size with nothing to compute.

    24 blocks on 2 images of 4 pixels, 2 channels, one thread: what remains is the interpreter and
    the dispatch of small calls, which on a fast device are the whole step.
    """
    threads, alone = torch.get_num_threads(), replace(config.engine, threads=1)
    tiny = replace(
        config, levels=4, blocks=(8, 8, 8), channels=2, batch_size=2, image_size=4, engine=alone
    )
    engine, variants = Engine(alone), {}
    for kind in ("fused", "buffer", "recompute", "plain", "frozen"):
        stepper, ending = Stepper(tiny.complete(), tiny, engine, kind), f"_{kind}"
        ending = ending.removesuffix("_fused")  # what a search takes
        variants[f"host_ms_weight_step{ending}"] = stepper.weight
        variants[f"host_ms_factor_step{ending}"] = stepper.factor
    times = time_in_turn(variants, config.repeats)
    torch.set_num_threads(threads)
    return {name: 1000 * value["median"] for name, value in times.items()}


def bench_host(config: BenchConfig) -> dict[str, Any]:
    """The host time of a step alone, by every kind of path."""
    return environment(Engine(config.engine)) | host_time(config)


def bench_paths(config: BenchConfig) -> dict[str, Any]:
    """The three ways to run a block at several sizes, dense and sparse: what ``choose_path`` knows.

    One block at 8x8 pixels, so that only channels and batch count.
    """
    engine, rows = Engine(config.engine), []
    for share in (1.0, 0.25):
        for channels, images in PATH_SIZES:
            at = replace(config, blocks=(1,), channels=channels, batch_size=images, image_size=8)
            architecture, variants = at.sparse(share), {}
            for kind in ("levels", "buffer", "frozen"):
                stepper = Stepper(architecture, at, engine, kind)
                variants |= {f"{kind}_weight": stepper.weight, f"{kind}_lambda": stepper.factor}
            times = time_in_turn(variants, config.repeats)
            graph = architecture.blocks[0]
            rows.append(
                {
                    "channels": channels,
                    "batch_size": images,
                    "values": channels * images * 64,
                    "connections_per_operation": graph.num_live / len(graph.kept_nodes),
                    "milliseconds": {name: 1000 * time["median"] for name, time in times.items()},
                }
            )
    return {**environment(engine), "rows": rows}


def measure_machine() -> dict[str, float]:
    """Matrix products in GFLOP/s and copies in GB/s (bytes read and written) of the CPU."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    big = torch.randn(64 * 1024 * 1024)
    target, product = torch.empty_like(big), torch.empty_like(a)
    variants = {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(big)}
    times = time_in_turn(variants, 7)
    return {
        "gflops": 2 * 2048**3 / times["product"]["median"] / 1e9,
        "copy_gb_per_second": 2 * 4 * big.numel() / times["copy"]["median"] / 1e9,
    }


def roofline(config: BenchConfig, seconds: float) -> dict[str, float]:
    """The time that the machine's rates allow a dense weight step, beside the measured time.

    Multiply-adds: those of the network and of the mixing sums, once forward and twice backward.
    Least bytes: every operation reads its sum and writes its result, every sum reads what it adds,
    forward; twice that backward; in float32.
    """
    architecture, machine = config.complete(), measure_machine()
    skeleton, features, mixing = architecture.skeleton, 0.0, 0.0
    for graph, stage in zip(architecture.blocks, skeleton.block_stages, strict=True):
        plane = skeleton.channels[stage] * skeleton.stage_sizes[stage] ** 2
        mixing += plane * sum(target < graph.output_node for _, target in graph.connections)
        features += plane * (3 * len(graph.kept_nodes) + len(graph.connections))
    macs = 3 * config.batch_size * (architecture_cost(architecture).macs + mixing)
    moved = 3 * 4 * config.batch_size * features
    compute = 2 * macs / machine["gflops"] / 1e9
    copying = moved / machine["copy_gb_per_second"] / 1e9
    return {
        **machine,
        "multiply_adds": macs,
        "least_bytes": moved,
        "seconds_for_compute": compute,
        "seconds_for_bytes": copying,
        "seconds_measured": seconds,
        "measured_over_allowed": seconds / max(compute, copying),
    }


def components(step: Callable[[], object]) -> dict[str, float]:
    """Shares of a step's CPU time by kind of work; they sum to 1."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    shares = dict.fromkeys([*COMPONENTS, "everything else"], 0.0)
    for event in profiler.key_averages():
        kinds = (kind for kind, parts in COMPONENTS.items() if any(p in event.key for p in parts))
        shares[next(kinds, "everything else")] += event.self_cpu_time_total
    total = sum(shares.values())
    return {name: round(value / total, 4) for name, value in shares.items()}


def bench_sparse(config: BenchConfig) -> dict[str, Any]:
    """Steps at shares of the supernet's multiply-adds: fast path, plain path, final network."""
    engine, rows = Engine(config.engine), []
    dense = architecture_cost(config.complete()).macs
    for share in SHARES:
        architecture, variants = config.sparse(share), {}
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

    def pair(**sizes: Any) -> float:
        """Seconds of a weight step and a factor step."""
        at = replace(config, **sizes)
        stepper = Stepper(at.complete(), at, Engine(at.engine))
        times = time_in_turn({"w": stepper.weight, "l": stepper.factor}, at.repeats)
        return sum(value["median"] for value in times.values())

    stages = len(config.blocks)
    by_blocks = {n * stages: pair(blocks=(n,) * stages) for n in (1, 2, 4)}
    halves = (max(1, config.batch_size // 2), config.batch_size, 2 * config.batch_size)
    by_batch = {size: pair(batch_size=size) for size in halves}
    by_levels = {levels: pair(levels=levels) for levels in LEVELS}
    return {
        **environment(Engine(config.engine)),
        "seconds_by_blocks": by_blocks,
        "blocks_exponent": _exponent(by_blocks),
        "seconds_by_batch": by_batch,
        "batch_exponent": _exponent(by_batch),
        "seconds_by_levels": by_levels,
        "levels_model": _levels_model(config, by_levels),
    }


def _exponent(seconds: dict[int, float]) -> float:
    (small, fast), (large, slow) = min(seconds.items()), max(seconds.items())
    return math.log(slow / fast) / math.log(large / small)


def _levels_model(config: BenchConfig, by_levels: dict[int, float]) -> dict[str, float]:
    graphs = [replace(config, levels=levels).complete().blocks[0] for levels in by_levels]
    seconds = np.array(list(by_levels.values()))
    design = np.array([[1, len(graph.kept_nodes), graph.num_live] for graph in graphs])
    found, *_ = np.linalg.lstsq(design, seconds, rcond=None)
    worst = np.max(np.abs(design @ found - seconds) / seconds)
    names = ("constant", "per_node", "per_connection")
    return {**dict(zip(names, found.tolist(), strict=True)), "worst_relative_error": float(worst)}


def bench_search(config: BenchConfig) -> dict[str, Any]:
    """A whole search from the complete supernet to 25 % on random images."""
    generator = torch.Generator().manual_seed(0)
    count, complete = 2 * SEARCH_BATCHES * config.batch_size, config.complete()
    shape = (count, 3, config.image_size, config.image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(count) % 10)
    data = ImageData(
        train=images,
        test=images,
        class_names=tuple("0123456789"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        train_augmentation=Augmentation(crop_padding=4, flip=True),
    )
    journal, engine = Journal(), Engine(config.engine)
    result = search(
        SearchSpace(skeleton=complete.skeleton, num_levels=config.levels, sharing=config.sharing),
        data,
        pretrain=PretrainConfig(epochs=0),
        config=SearchConfig(
            epochs=SEARCH_EPOCHS,
            batch_size=config.batch_size,
            penalty=0.0,  # random labels teach nothing: a penalty would remove everything at once
            keep_cost=0.25,
            keep_connections=0.25,
        ),
        engine=engine,
        journal=journal,
    )
    return {
        **environment(engine),
        "seconds_search": journal.seconds["search"],
        "live_connections": result.architecture.num_live,
    }


BENCHES = {
    "step": bench_step,
    "host": bench_host,
    "paths": bench_paths,
    "sparse": bench_sparse,
    "growth": bench_growth,
    "search": bench_search,
}


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=BENCHES, default="step")
    parser.add_argument("--json", action="store_true", help="one JSON object in one line")
    parser.add_class_arguments(BenchConfig)
    values = parser.parse_args(arguments)
    sizes = {name: values[name] for name in vars(BenchConfig()) if name != "engine"}
    config = BenchConfig(**sizes, engine=EngineConfig(**values.engine.as_dict()))
    measured = BENCHES[values.what](config)
    print(json.dumps(measured, indent=None if values.json else 2))


if __name__ == "__main__":
    main()
