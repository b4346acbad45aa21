"""How much does ``Searcher.step()`` add to the backward pass before it, on 1000 factors?

Process CPU time of both in turn, in one process, so that other work on the machine counts little;
a rebuild is among the steps. Models: convolutions on images of 16x16 and of 8x8 pixels, and linear
layers of 8 features, which compute next to nothing: the least favourable.

    python benchmarks/searcher_overhead.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import dsonas

CHOICES, STEPS = 200, 50  # steps from one rebuild to the next
OUT = Path(__file__).with_name("results") / "searcher-overhead.json"


def convolutions(channels: int = 16, size: int = 16) -> tuple[nn.Module, Tensor]:
    """Choices among convolutions, for 16 images."""

    def layer() -> nn.Module:
        convs = (nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3, 5))
        return dsonas.LayerChoice([*convs, nn.AvgPool2d(3, 1, 1), nn.Identity()])

    model = nn.Sequential(*[layer() for _ in range(CHOICES)])
    return model, torch.randn(16, channels, size, size)


def small_convolutions() -> tuple[nn.Module, Tensor]:
    """The same, of 8 channels and 8x8 pixels."""
    return convolutions(8, 8)


def linear() -> tuple[nn.Module, Tensor]:
    """Choices among linear layers of 8 features, 16 rows."""

    def layer() -> nn.Module:
        return dsonas.LayerChoice([*(nn.Linear(8, 8) for _ in range(4)), nn.Identity()])

    return nn.Sequential(*[layer() for _ in range(CHOICES)]), torch.randn(16, 8)


def measure(make: Callable[[], tuple[nn.Module, Tensor]]) -> dict[str, float]:
    """Milliseconds of both, the median and, of the steps, also the mean with its rebuilds."""
    torch.manual_seed(0)
    model, x = make()
    bound = dsonas.Budget(macs="50%")
    searcher = dsonas.Searcher(model, x[:1], budget=bound, steps=40 * STEPS)
    factors = sum(vector.numel() for vector in searcher.supernet.vectors())
    times: dict[str, list[float]] = {"backward": [], "step": []}
    for _ in range(STEPS):
        loss = model(x).square().mean()
        begin = time.process_time()
        loss.backward()
        between = time.process_time()
        searcher.step()
        times["backward"].append(1e3 * (between - begin))
        times["step"].append(1e3 * (time.process_time() - between))
    backward, step = median(times["backward"]), median(times["step"])
    share = sum(times["step"]) / sum(times["backward"])
    return {"factors": factors, "backward_ms": backward, "step_ms": step,
            "percent": 100 * step / backward, "percent_with_rebuilds": 100 * share}  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    found = {make.__name__: measure(make) for make in (convolutions, small_convolutions, linear)}
    cpu = torch.backends.cpu.get_cpu_capability()
    value = {**found, "threads": 1, "torch": torch.__version__, "cpu": cpu, "clock": "CPU time"}
    text = json.dumps(value, indent=1)
    print(text)
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()
