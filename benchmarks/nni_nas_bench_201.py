"""NNI 3.0's strategies on its own NAS-Bench-201 space, beside the rows of nas_bench_201.py.

The same images, size of the supernet, batches, and processor seconds as ``ours``, which must have
been run before. Steps are those of NNI's own modules: DARTS and GDAS update the architecture on a
batch of the factors' images, then the weights on one of the weights' images, after a warm-up of the
weights alone as long as ours; random weight sharing trains a cell drawn anew at every step, and
spends the last fifth of its time on cells drawn at random, of which it takes the best on the
factors' images. Learning rates fall to 0 with the time that is left.

    python -m venv nni && nni/bin/pip install -c constraints.txt -e ".[bench]"
    nni/bin/python benchmarks/nni_nas_bench_201.py --data DIR --seeds 201 202
    python benchmarks/nas_bench_201.py judge --table nas-bench-201-cifar10.csv
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas_bench_201 import (
    LABELS,
    OUT,
    Setting,
    accuracy,
    batches,
    read_images,
    read_rows,
    write_rows,
)
from stepper import cpu_name

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from nas_bench_201_space import cell_string  # pyright: ignore[reportMissingImports]

STRATEGIES = {"NNI DARTS": "DARTS", "NNI GDAS": "GumbelDARTS", "NNI random": "RandomOneShot"}
WARM_UP = 2 / 3  # of the time, in which weights alone are trained, as ours does
TRAINED = 0.8  # of the time, by random weight sharing


class NniSearch:
    """A supernet of NNI, and its time.

    Args:
        kind: of ``STRATEGIES``.
        setting: as ours.
        data: images and labels, half for the weights and half for the factors.
        seed: of all that is random.
        seconds: of the processor, for the whole search.
    """

    def __init__(
        self, kind: str, setting: Setting, data: tuple[Tensor, Tensor], seed: int, seconds: float
    ) -> None:
        from nni.nas import strategy  # pyright: ignore[reportMissingImports]
        from nni.nas.hub.pytorch import NasBench201  # pyright: ignore[reportMissingImports]

        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        half = setting.images // 2
        self.setting, self.kind, self.seconds = setting, kind, seconds
        parts = (part[: 2 * half].split(half) for part in data)
        self.weight_part, self.factor_part = zip(*parts, strict=True)
        space = NasBench201(setting.channels, setting.cells, 10)
        net = getattr(strategy, STRATEGIES[kind])().mutate_model(space)
        self.net: nn.Module = net.to(memory_format=torch.channels_last)
        self.modules = [m for m in self.net.modules() if hasattr(m, "export")]
        alphas = {
            id(parameter): parameter
            for module in self.modules
            if hasattr(module, "arch_parameters")
            for parameter in module.arch_parameters()  # pyright: ignore[reportCallIssue]
        }
        weights = [p for p in self.net.parameters() if id(p) not in alphas]
        self.weights = torch.optim.SGD(weights, setting.lr, momentum=0.9, weight_decay=5e-4)
        self.alphas = None
        if alphas:  # as its strategies set them
            self.alphas = torch.optim.Adam(
                list(alphas.values()), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3
            )
        self.start = time.process_time()

    @property
    def progress(self) -> float:
        """The part of the time that is used."""
        return (time.process_time() - self.start) / self.seconds

    def _batches(self, part: tuple[Tensor, Tensor]) -> Any:
        while True:
            yield from batches(*part, self.setting.batch, self.generator)

    def _choose(self, how: str) -> dict[str, str]:
        """Draw a cell, or name the best; of all places with a label the first decides."""
        found: dict[str, str] = {}
        for module in self.modules:
            found.update(getattr(module, how)(memo=found))
        return found

    def _step(self, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        self._choose("resample")
        optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        optimizer.step()

    def run(self) -> dict[str, Any]:
        """Search until the time is used up."""
        parts = zip(self._batches(self.weight_part), self._batches(self.factor_part), strict=False)
        until = 1.0 if self.alphas else TRAINED
        for (x, y), (xf, yf) in parts:
            progress = self.progress
            if progress >= until:
                break
            self._temper(progress)
            for group in self.weights.param_groups:
                lr = self.setting.lr
                group["lr"] = lr * (1 + math.cos(math.pi * progress / until)) / 2
            if self.alphas and progress >= WARM_UP:
                self._step(self.alphas, xf, yf)
            self._step(self.weights, x, y)
        tried = [] if self.alphas else self._try_cells()
        best = max(tried, key=lambda one: one[0])[1] if tried else self._choose("export")
        seconds = round(time.process_time() - self.start, 1)
        return {"cell": self._string(best), "cpu_seconds": seconds, "tried": len(tried)}

    def _temper(self, progress: float) -> None:
        """GDAS: its temperature falls from 1 to 0.33, NNI's defaults."""
        for module in self.net.modules():
            if hasattr(module, "tau"):
                module.tau = 1 - 0.67 * progress  # pyright: ignore[reportArgumentType]

    def _try_cells(self) -> list[tuple[float, dict[str, str]]]:
        """Measure random cells by the shared weights, each with statistics of a few batches."""
        tried = []
        images, labels = (part[:2000] for part in self.factor_part)
        while self.progress < 1:
            self.net.train()
            cell = self._choose("resample")
            with torch.no_grad():
                for (x, _), _ in zip(self._batches(self.weight_part), range(10), strict=False):
                    self.net(x)
            tried.append((accuracy(self.net, images, labels), cell))
        return tried

    def _string(self, cell: dict[str, str]) -> str:
        """Write a cell as the table does."""
        names = {label: cell[f"cell/{label.replace('->', '_')}"] for label in LABELS}
        renamed = {"conv_1x1": "nor_conv_1x1", "conv_3x3": "nor_conv_3x3"}
        return cell_string({k: [renamed.get(name, name)] for k, name in names.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seconds", type=float, help="default: those of ours")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="nni")
    torch.set_num_threads(1)
    setting, rows = Setting(), read_rows(options.out)
    data = read_images(options.data, setting)
    seconds = options.seconds or mean(r["cpu_seconds"] for r in rows if r["kind"] == "ours")
    for seed in options.seeds:
        for kind in options.kinds:
            case = {"kind": kind, "seed": seed, "setting": asdict(setting)}
            if any(case.items() <= row.items() for row in rows):
                continue
            row = NniSearch(kind, setting, data, seed, seconds).run()
            rows = read_rows(options.out)
            rows.append({**case, **row, "cpu": cpu_name(), "torch": torch.__version__})
            print(rows[-1], flush=True)
            write_rows(options.out, rows)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of NNI would wait for ever
