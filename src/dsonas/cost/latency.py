"""Latency on the device at hand: of an architecture as a whole, or of its parts, for a table.

A search compares many structures over a long time. Measured whole, each at another moment, they
differ by how busy the machine was more than by themselves; the parts are timed in turn, within a
second or so, and sums of one table differ exactly by what structures differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.cost.latency_table import PARTS
from dsonas.graph import Architecture
from dsonas.nn import Candidate, Network, batch_norm

BRANCHES = 4  # of the wider of the output convolutions whose times tell one branch from the rest
_WIDE = "wide output"
Part = Callable[[], object]


@dataclass
class LatencyMeter:
    """Measures the final network of an architecture: the median of blocked runs.

    A structure is measured once; the result is kept. Measure on an otherwise idle machine.

    Args:
        device: where to run.
        batch_size: images at a time, >= 1.
        threads: CPU threads, >= 1.
        min_seconds: least time spent on a measurement.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> meter = LatencyMeter(min_seconds=0.01)
        >>> meter(cifar_space(channels=4, blocks=(1, 1)).complete()) > 0
        True
    """

    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1
    min_seconds: float = 0.2
    measured: dict[Architecture, float] = field(default_factory=dict)

    def __call__(self, architecture: Architecture) -> float:
        """Milliseconds for one batch."""
        architecture = architecture.clean()
        if architecture not in self.measured:
            self.measured[architecture] = self._measure(architecture)
        return self.measured[architecture]

    def _measure(self, architecture: Architecture) -> float:
        from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

        skeleton = architecture.skeleton
        network = placed(Network(architecture), self.device)
        shape = (self.batch_size, skeleton.input_channels, skeleton.image_size, skeleton.image_size)
        images = blank_features(shape, self.device)
        timer = Timer(
            "network(images)",
            globals={"network": network, "images": images},
            num_threads=self.threads,
        )
        with torch.inference_mode():
            return 1e3 * timer.blocked_autorange(min_run_time=self.min_seconds).median


def placed(module: nn.Module, device: str) -> nn.Module:
    """A module as it is timed: in evaluation mode, on the device, in channels_last."""
    return module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def blank_features(shape: tuple[int, ...], device: str) -> Tensor:
    """Zeros (B, C, H, W) in channels_last."""
    return torch.zeros(shape, device=device).to(memory_format=torch.channels_last)


def measure_table(
    architectures: Sequence[Architecture],
    device: str = "cpu",
    *,
    batch_size: int = 1,
    threads: int = 1,
    rounds: int = 15,
    round_seconds: float = 0.003,
) -> dict[str, float]:
    """Time the parts that architectures of a space are made of; see ``latency_from_table``.

    Args:
        architectures: any of the space, at all channels that count.
        device: where to run.
        batch_size: images at a time, >= 1.
        threads: CPU threads, >= 1.
        rounds: times that all parts are timed in turn, >= 1; the median of each is taken.
        round_seconds: of each part in each round.

    Returns:
        Milliseconds by part, each part of ``latency_from_table`` at every stage's channels. That
        of a reduction block, with the branches it has in ``architectures``, is in ``base``.

    Raises:
        ValueError: if an operation has the name of another part.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> table = measure_table([cifar_space(channels=4, blocks=(1,)).complete()], rounds=1)
        >>> sorted(table)[:3]
        ['add@4x32', 'average_pool3x3@4x32', 'base@4x32']
    """
    parts: dict[str, Part] = {}
    for architecture in architectures:
        parts |= _parts(architecture, device, batch_size)
    with torch.inference_mode():
        found = _time_in_turn(parts, threads, rounds, round_seconds)
    for place in {key.partition("@")[2] for key in parts}:
        narrow, wide = found[f"output@{place}"], found.pop(f"{_WIDE}@{place}")
        branch = max(0.0, (wide - narrow) / (BRANCHES - 1))
        found[f"output@{place}"], found[f"block@{place}"] = branch, max(0.0, narrow - branch)
    return found


def _parts(architecture: Architecture, device: str, batch_size: int) -> dict[str, Part]:
    """What is timed, by key; for outputs the whole end of a block with one and many branches."""
    skeleton = architecture.skeleton
    shape = (batch_size, skeleton.input_channels, skeleton.image_size, skeleton.image_size)
    base = Network(architecture.without_blocks())
    first = f"{skeleton.channels[0]}x{skeleton.stage_sizes[0]}"
    parts = {f"base@{first}": _call(placed(base, device), blank_features(shape, device))}
    for channels, size in zip(skeleton.channels, skeleton.stage_sizes, strict=True):
        place = f"{channels}x{size}"
        x = blank_features((batch_size, channels, size, size), device)
        for name in architecture.operations:
            if name in PARTS:
                raise ValueError(
                    f"operation {name!r} is named as a part of latency tables: rename it"
                )
            operation = nn.Sequential(Candidate(name, channels, True), nn.ReLU())
            parts[f"{name}@{place}"] = _call(placed(operation, device), x)
        parts[f"add@{place}"] = _call(torch.add, x, x)
        for key, branches in (("output", 1), (_WIDE, BRANCHES)):
            parts[f"{key}@{place}"] = _call(placed(_End(channels, branches), device), x)
    return parts


class _End(nn.Module):
    """The end of a block: concatenation, 1x1 convolution, BN, ReLU, shortcut."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.project = nn.Conv2d(branches * channels, channels, 1, bias=False)
        self.bn = batch_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), taken as every branch and as the shortcut, to the same shape."""
        joined = x if self.branches == 1 else torch.cat([x] * self.branches, 1)
        return F.relu(self.bn(self.project(joined))) + x


def _call(function: Callable[..., object], *arguments: Tensor) -> Part:
    return lambda: function(*arguments)


def _time_in_turn(
    parts: dict[str, Part], threads: int, rounds: int, round_seconds: float
) -> dict[str, float]:
    """Milliseconds of each part: the median over rounds in which all are timed."""
    from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

    timers = {
        key: Timer("run()", globals={"run": part}, num_threads=threads)
        for key, part in parts.items()
    }
    times = {key: timer.timeit(3).mean for key, timer in timers.items()}
    numbers = {key: max(1, round(round_seconds / time)) for key, time in times.items()}
    rows = [
        {key: timer.timeit(numbers[key]).mean for key, timer in timers.items()}
        for _ in range(rounds)
    ]
    return {key: 1e3 * statistics.median(row[key] for row in rows) for key in parts}
