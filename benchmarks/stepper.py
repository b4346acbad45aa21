"""Search steps on a fixed batch, timed in turn, and their peak memory: what benchmarks share."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from dsonas.commands.forecast import high_water
from dsonas.cost import architecture_cost
from dsonas.graph import PAPER_OPERATIONS, Architecture, Skeleton, doubled_channels
from dsonas.nn import Network
from dsonas.sparse import ProximalNAG
from dsonas.train import Engine, EngineConfig, factor_gradients, sgd, weight_step

PATHS: dict[str, Any] = {
    "fused": None, "recompute": None, "levels": "levels", "buffer": "buffer",
    "frozen": "plain", "plain": "plain", "final": None,
}  # fmt: skip


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
        return Architecture.complete(skeleton, PAPER_OPERATIONS, self.levels, self.sharing)

    def sparse(self, share: float) -> Architecture:
        """The supernet after random connections have gone, down to a share of its multiply-adds.

        Args:
            share: in (0, 1]; the result is at or just below it, or as near as one operation gets.
        """
        architecture = self.complete()
        limit = share * architecture_cost(architecture).macs
        count = len(architecture.blocks[0].live)
        for lost in Random(0).sample(range(count), count):
            if architecture_cost(architecture).macs <= limit:
                break
            smaller = architecture.without_connection((0, lost))
            architecture = smaller if smaller.blocks[0].kept_nodes else architecture
        return architecture


class Stepper:
    """A network with its optimizers and a fixed random batch.

    Args:
        architecture: what to run.
        config: batch and sharing.
        engine: device and precision.
        kind: ``fused``, the way that a search takes; ``recompute``, the same with operations run
            again in backward; ``levels`` and ``buffer``, one of the ways (``choose_path``);
            ``frozen``, the plain path with the gradients of a step's
            other part left out too; ``plain``, the plain path as PyTorch runs it when nothing is
            said, every gradient computed; ``final``, a network without scaling factors, which has
            only weight steps.

    Raises:
        ValueError: if the kind is none of these.
    """

    def __init__(
        self, architecture: Architecture, config: BenchConfig, engine: Engine, kind: str = "fused"
    ) -> None:
        if kind not in PATHS:
            raise ValueError(f"kind must be one of {tuple(PATHS)}, got {kind!r}")
        torch.manual_seed(0)
        self.engine, self.kind = engine, kind
        self.network = Network(
            architecture,
            scaled=kind != "final",
            path=PATHS[kind],
            recompute=kind == "recompute",
        ).train()
        engine.place(self.network)
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        images = torch.randn(shape).to(memory_format=torch.channels_last)
        self.images = images.to(engine.device)
        self.labels = torch.randint(0, 10, shape[:1], device=engine.device)
        self.weights = sgd(self.network.weights(), 0.01, 1e-4, 0.9)
        scaling = self.network.scaling
        self.factors = ProximalNAG(scaling.parameters(), lr=0.01) if scaling else None

    def weight(self) -> None:
        """One weight step."""
        with self.engine.autocast():
            if self.kind == "plain":
                self._plain_step(self.weights)
            else:
                weight_step(
                    self.network,
                    self.weights,
                    self.images,
                    self.labels,
                    clip=2.0,
                    engine=self.engine,
                )
        self.engine.wait()

    def factor(self) -> None:
        """One scaling-factor step."""
        assert self.factors is not None
        with self.engine.autocast():
            if self.kind == "plain":
                self._plain_step(self.factors)
            else:
                factor_gradients(self.network, self.images, self.labels, engine=self.engine)
                self.factors.step()
                self.factors.zero_grad()
        self.engine.wait()

    def _plain_step(self, optimizer: torch.optim.Optimizer) -> None:
        F.cross_entropy(self.network(self.images), self.labels).backward()
        if optimizer is self.weights:
            torch.nn.utils.clip_grad_value_(self.network.weights(), 2.0)
        optimizer.step()
        self.network.zero_grad()


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


def environment(engine: Engine) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "device": str(engine.device),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The processor's name and number of model, as the system says."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = [re.search(rf"^{key}\s*: (.+)", text, re.M) for key in ("model name", "model")]
    known = [match[1] for match in found if match]
    return ", model ".join(known) or platform.processor() or platform.machine()


def peak_memory(config: BenchConfig, kind: str) -> int:
    """Bytes that a weight and a factor step add to network and batch, in a process of its own."""
    code = (
        "from stepper import BenchConfig, measure_peak\n"
        "from dsonas.train.engine import EngineConfig\n"
        f"print(measure_peak({replace(config, repeats=1)!r}, {kind!r}))"
    )
    command, place = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place)
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
