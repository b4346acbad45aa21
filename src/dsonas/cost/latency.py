"""Latency of an architecture, measured whole on the device at hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dsonas.graph import Architecture
from dsonas.nn import Network


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
