"""Measure the search step on the machine at hand: speed, memory, roofline, whole searches.

Variants are timed in turn in one process (A B A B ...), so that both see the same machine; each
figure is a median with its quartiles. Peak memory is measured in a process of its own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dsonas.architecture import Architecture, Skeleton, doubled_channels
from dsonas.costs import architecture_cost
from dsonas.data import Augmentation, ImageData, TensorImages
from dsonas.engine import Engine, EngineConfig
from dsonas.loop import Journal
from dsonas.network import Network
from dsonas.operations import PAPER_OPERATIONS
from dsonas.optimizers import sgd
from dsonas.proximal import ProximalNAG
from dsonas.search_config import PretrainConfig, SearchConfig
from dsonas.searching import search
from dsonas.spaces import SearchSpace
from dsonas.steps import factor_step, weight_step

MEMORY_VARIANTS = ("fused", "reference")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure.

    Args:
        levels: levels of a block.
        blocks: blocks in each stage.
        channels: of the first stage.
        batch_size: images.
        image_size: pixels.
        sharing: ``share`` or ``full``.
        repeats: timed rounds, after one warm-up round.
        engine: device, precision, threads.

    Raises:
        ValueError: if a number is below 1.
    """

    levels: int = 4
    blocks: tuple[int, ...] = (2, 2, 2)
    channels: int = 16
    batch_size: int = 64
    image_size: int = 32
    sharing: str = "share"
    repeats: int = 10
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("levels", "channels", "batch_size", "image_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def complete(self) -> Architecture:
        """The supernet's architecture."""
        skeleton = Skeleton(
            image_size=self.image_size,
            blocks=tuple(self.blocks),
            channels=doubled_channels(self.channels, len(self.blocks)),
        )
        return Architecture.complete(skeleton, PAPER_OPERATIONS, self.levels)


class Stepper:
    """A network with its optimizers and a fixed random batch.

    Args:
        architecture: what to run.
        config: batch and machine.
        sharing: None for a final network, which has only weight steps.
        reference: run the plain path.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: BenchConfig,
        engine: Engine,
        *,
        sharing: str | None = "share",
        reference: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.engine = engine
        self.network = Network(architecture, sharing=sharing, reference=reference).train()
        engine.place(self.network)
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        images = torch.randn(shape).to(memory_format=torch.channels_last)
        self.images = images.to(engine.device)
        self.labels = torch.randint(0, 10, shape[:1], device=engine.device)
        self.weights = sgd(self.network, 0.01, 1e-4, 0.9)
        scaling = self.network.scaling
        self.factors = ProximalNAG(scaling.parameters(), lr=0.01) if scaling else None

    def weight(self) -> None:
        """One weight step."""
        with self.engine.autocast():
            weight_step(self.network, self.weights, self.images, self.labels, clip=2.0)
        self._wait()

    def factor(self) -> None:
        """One scaling-factor step."""
        assert self.factors is not None
        with self.engine.autocast():
            factor_step(self.network, self.factors, self.images, self.labels)
        self._wait()

    def _wait(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)


def time_in_turn(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Median and quartiles, in seconds, of calls made in turn.

    Example:
        >>> sorted(time_in_turn({"a": lambda: None, "b": lambda: None}, 3))
        ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(repeats + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: _spread(values) for name, values in times.items()}


def _spread(values: list[float]) -> dict[str, float]:
    first, median, third = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": median, "first_quartile": first, "third_quartile": third}


def bench_step(config: BenchConfig) -> dict[str, Any]:
    """The dense search step against the plain reference, in time and in peak memory."""
    engine, architecture = Engine(config.engine), config.complete()
    fused = Stepper(architecture, config, engine, sharing=config.sharing)
    plain = Stepper(architecture, config, engine, sharing=config.sharing, reference=True)
    times = time_in_turn(
        {
            "fused_weight": fused.weight,
            "reference_weight": plain.weight,
            "fused_lambda": fused.factor,
            "reference_lambda": plain.factor,
        },
        config.repeats,
    )
    median = {name: value["median"] for name, value in times.items()}
    both = {kind: median[f"{kind}_weight"] + median[f"{kind}_lambda"] for kind in MEMORY_VARIANTS}
    memory = {kind: peak_memory(config, kind) for kind in MEMORY_VARIANTS}
    return {
        **environment(engine),
        "images_per_second": config.batch_size / median["fused_weight"],
        "images_per_second_reference": config.batch_size / median["reference_weight"],
        "speedup_vs_reference": both["reference"] / both["fused"],
        "lambda_vs_weight_step": median["fused_lambda"] / median["fused_weight"],
        "memory_bytes": memory["fused"],
        "memory_bytes_reference": memory["reference"],
        "memory_vs_reference": memory["fused"] / max(1, memory["reference"]),
        "seconds": times,
        "roofline": roofline(config, median["fused_weight"]),
    }


def environment(engine: Engine) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "device": str(engine.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def peak_memory(config: BenchConfig, kind: str) -> int:
    """Peak memory, in bytes, that a pair of steps adds to the network and its batch."""
    code = (
        "from dsonas.benching import *; "
        f"print(measure_peak({replace(config, repeats=1)!r}, {kind!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from dsonas.engine import EngineConfig; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def measure_peak(config: BenchConfig, kind: str) -> int:
    """What ``peak_memory`` runs in its own process."""
    engine = Engine(config.engine)
    stepper = Stepper(
        config.complete(), config, engine, sharing=config.sharing, reference=kind == "reference"
    )
    before = _memory(engine)
    for _ in range(2):
        stepper.weight()
        stepper.factor()
    return _memory(engine) - before


def _memory(engine: Engine) -> int:
    """The high-water mark so far, in bytes."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bench_memory(config: BenchConfig) -> dict[str, Any]:
    """Peak memory of a pair of steps, fused and plain, over the levels M = 2 to 6."""
    rows = []
    for levels in range(2, 7):
        at = replace(config, levels=levels)
        rows.append({"levels": levels, **{kind: peak_memory(at, kind) for kind in MEMORY_VARIANTS}})
    return {**environment(Engine(config.engine)), "memory_bytes": rows}


def bench_search(config: BenchConfig) -> dict[str, Any]:
    """A whole search from the complete supernet to 25 %, with and without shrinking."""
    results = {}
    for shrinks in (True, False):
        seconds, architecture = _timed_search(config, shrinks)
        results[shrinks] = architecture
        results[f"seconds_{shrinks}"] = seconds
    return {
        **environment(Engine(config.engine)),
        "seconds_shrinking": results["seconds_True"],
        "seconds_whole": results["seconds_False"],
        "shrinking_vs_whole": results["seconds_True"] / results["seconds_False"],
        "same_architecture": results[True] == results[False],
    }


SEARCH_BATCHES, SEARCH_EPOCHS = 4, 12


def _timed_search(config: BenchConfig, shrinks: bool) -> tuple[float, Architecture]:
    """Seconds of step 2 on random images, and what it found."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * SEARCH_BATCHES * config.batch_size
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
    complete = config.complete()
    space = SearchSpace(
        skeleton=complete.skeleton, num_levels=config.levels, sharing=config.sharing
    )
    searching = SearchConfig(
        space=config.sharing,
        epochs=SEARCH_EPOCHS,
        batch_size=config.batch_size,
        structure=0.25,
        connections=0.25,
        shrink=shrinks,
    )
    journal = Journal()
    result = search(
        space,
        data,
        pretrain=PretrainConfig(epochs=0),
        config=searching,
        engine=Engine(config.engine),
        journal=journal,
    )
    return journal.seconds["search"], result.architecture


def measure_machine() -> dict[str, float]:
    """Matrix products in GFLOP/s and copies in GB/s (bytes read and written) of the CPU."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    big = torch.randn(64 * 1024 * 1024)
    target = torch.empty_like(big)
    product = torch.empty_like(a)
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
    skeleton, features = architecture.skeleton, 0.0
    mixing = 0.0
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


BENCHES = {"step": bench_step, "search": bench_search, "memory": bench_memory}
