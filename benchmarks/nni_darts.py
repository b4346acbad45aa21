"""One full search step (architecture and weights) of NNI 3.0's one-shot DARTS beside ours.

Both at the same macro size: 16 channels, 8 cells or blocks, batch 64, 3 x 32 x 32, channels_last.
NNI's step is what its ``DartsLightningModule.training_step`` does: a step of the architecture
parameters on one batch, then a step of the weights on another. Ours is a lambda step and a weight
step. The two are timed in turn in one process; peak memory is taken in a process of its own.

    python -m venv nni && nni/bin/pip install -c constraints.txt -e ".[bench]"
    nni/bin/python benchmarks/nni_darts.py --out benchmarks/results/nni-darts.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dsonas.commands.forecast import high_water
from dsonas.train.engine import Engine, EngineConfig
from stepper import BenchConfig, Stepper, environment, time_in_turn

CHANNELS, BATCH, SIZE = 16, 64, 32
CELLS, BLOCKS = 8, (2, 3, 3)  # NNI puts its 8 cells into stages of these sizes


class NniDarts:
    """NNI's DARTS supernet with its two optimisers, as its own strategy sets them up."""

    def __init__(self) -> None:
        from nni.nas import strategy  # pyright: ignore[reportMissingImports]
        from nni.nas.hub import pytorch as hub  # pyright: ignore[reportMissingImports]

        torch.manual_seed(0)
        space = hub.DARTS(width=CHANNELS, num_cells=CELLS, dataset="cifar")
        network = strategy.DARTS().mutate_model(space)
        self.network = network.to(memory_format=torch.channels_last).train()
        architecture = {
            id(parameter): parameter
            for module in network.modules()
            if hasattr(module, "arch_parameters")
            for parameter in module.arch_parameters()
        }
        weights = [p for p in network.parameters() if id(p) not in architecture]
        self.alphas = torch.optim.Adam(
            list(architecture.values()), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.weights = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
        images = torch.randn(BATCH, 3, SIZE, SIZE)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (BATCH,))

    def step(self) -> None:
        """Architecture step, then weight step."""
        for optimizer in (self.alphas, self.weights):
            optimizer.zero_grad()
            loss = F.cross_entropy(self._logits(), self.labels)
            loss.backward()
            if optimizer is self.weights:
                nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            optimizer.step()

    def _logits(self) -> torch.Tensor:
        outputs = self.network(self.images)
        return outputs[0] if isinstance(outputs, tuple) else outputs


class Ours:
    """A dense supernet of the same macro size."""

    def __init__(self) -> None:
        config = BenchConfig(blocks=BLOCKS, channels=CHANNELS, batch_size=BATCH, image_size=SIZE)
        self.stepper = Stepper(config.complete(), config, Engine(EngineConfig()))

    def step(self) -> None:
        """Scaling-factor step, then weight step."""
        self.stepper.factor()
        self.stepper.weight()


VARIANTS = {"nni": NniDarts, "dsonas": Ours}


def peak_memory(name: str) -> int:
    """Bytes that two search steps add to what is there before them, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def measure_peak(name: str) -> int:
    variant = VARIANTS[name]()
    before = high_water(Engine(EngineConfig()))
    for _ in range(2):
        variant.step()
    return high_water(Engine(EngineConfig())) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nni-darts.json"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=sorted(VARIANTS))
    arguments = parser.parse_args()
    if arguments.peak:
        print(measure_peak(arguments.peak))
        return
    memory = {name: peak_memory(name) for name in VARIANTS}
    steps = {name: variant().step for name, variant in VARIANTS.items()}
    seconds = time_in_turn(steps, arguments.repeats)
    result = {
        **environment(Engine(EngineConfig())),
        "seconds": seconds,
        "memory_bytes": memory,
        "times_faster": seconds["nni"]["median"] / seconds["dsonas"]["median"],
        "memory_ratio": memory["dsonas"] / memory["nni"],
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
