"""NAS-Bench-201 on CIFAR-10: what searches find, looked up in the table of all 15 625 cells.

Every row is a search with a seed of its own, on one thread; rows are kept, and the same command
goes on where it was cut off. Searches never see the table: ``judge`` looks their cells up.

    python benchmarks/nas_bench_201.py search --data DIR --seeds 201 202 --kinds ours "penalty 0"
    python benchmarks/nas_bench_201.py judge --table nas-bench-201-cifar10.csv

DIR holds train/CLASS/*.jpg. The supernet is that of examples/nas_bench_201_space.py, small; weights
and factors train on the same images. Kinds:

- ours: the Searcher's defaults; a path of skip connections through the cell has to stay
- penalty 0: the same, from the same first epoch; all that goes is cut at the end
- no path: from the same first epoch as ours, and nothing has to stay
- 25M, 50M, 100M, 150M: as ours, with a bound on the multiply-adds of the table's network
- random factors: the same plan and path, by factors drawn at random, without any training
- random cells: drawn from the whole space, without any training
- best of random: the best on one half of the images of random cells, each trained on the other
  for as many epochs as our search, until the processor seconds of ``ours`` are used up
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import PermutationMethod, mannwhitneyu, ttest_ind
from torch import Tensor, nn

import cifar_folders
from dsonas import Budget, Searcher, apply_choices
from dsonas.search import SearchConfig
from dsonas.sparse import Choices
from stepper import cpu_name

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from nas_bench_201_space import (  # pyright: ignore[reportMissingImports]
    EDGES,
    cell_string,
    nas_bench_201,
)

OUT = Path("benchmarks/results/nas-bench-201.json")
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
LABELS = [f"{source}->{target}" for source, target in EDGES]
HELD_OUT = 2000  # training images by which what a search ends with is measured
BUDGETS = ("25M", "50M", "100M", "150M")
TRAINED = {
    "ours": {},
    "penalty 0": {"penalty": 0.0},
    "no path": {"path": False},
    **{bound: {"budget": bound} for bound in BUDGETS},
}
KINDS = (*TRAINED, "random factors", "random cells", "best of random")
Cell = Mapping[str, Sequence[str]]
"""A candidate's name, alone in a sequence, by label."""


@dataclass(frozen=True)
class Setting:
    """What all searches share.

    Args:
        images: of the training part, for weights and factors alike.
        size: pixels a side; CIFAR-10's 32 are averaged down to it.
        channels: of the first stage.
        cells: in each of three stages.
        batch: images a step.
        lr: of the weights, falling to 0 over pretraining and search.
        factor_lr: of the factors, falling to a tenth over the search.
        pretrain: epochs of the weights alone.
        epochs: of the search, in each of which both see all images.
    """

    images: int = 20_000
    size: int = 16
    channels: int = 8
    cells: int = 1
    batch: int = 64
    lr: float = 0.05
    factor_lr: float = 0.02
    pretrain: int = 6
    epochs: int = 3


def read_images(folder: Path, setting: Setting) -> tuple[Tensor, Tensor]:
    """Read training images, the same ones always: (n, 3, size, size) in [-1, 1], labels.

    The last ``HELD_OUT`` are trained on by nobody.
    """
    pixels, labels = cifar_folders.read_images(folder, "train", setting.size)
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    some = some[: setting.images + HELD_OUT]
    return pixels[some].float() / 127.5 - 1, labels[some]


def batches(
    images: Tensor, labels: Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches; images are mirrored at random, and each batch is shifted."""
    most, pixels = images.shape[3] // 8, images.shape[3]
    for some in torch.randperm(len(labels), generator=generator).split(size):
        if len(some) < size:
            return
        x = images[some]
        x = torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
        down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
        x = F.pad(x, [most] * 4)[..., down : down + pixels, right : right + pixels]
        yield x.contiguous(memory_format=torch.channels_last), labels[some]


def final_macs(cell: Cell) -> float:
    """Count multiply-adds of the table's network: 16 channels, five cells a stage, 32 pixels.

    Example:
        >>> round(final_macs(dict.fromkeys(LABELS, ("none",))) / 1e6, 2)
        7.78
    """
    kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
    edges = sum(kernels.get(cell[label][0], 0) for label in LABELS)
    reduction = 256 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    return 15 * 16 * 16 * 1024 * edges + 3 * 16 * 9 * 1024 + 2 * reduction + 640


def has_path(cell: Cell) -> bool:
    """Tell whether skip connections lead from the cell's input to its output.

    Example:
        >>> has_path({**dict.fromkeys(LABELS, ("none",)), "0->3": ("skip_connect",)})
        True
    """
    reached = {0}
    for source, target in EDGES:
        if source in reached and cell[f"{source}->{target}"][0] == "skip_connect":
            reached.add(target)
    return 3 in reached


def optimizer_of(weights: Iterable[nn.Parameter], setting: Setting, updates: int) -> Any:
    """An optimizer, and its learning rate that falls to 0."""
    optimizer = torch.optim.SGD(weights, setting.lr, momentum=0.9, weight_decay=5e-4)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)


def train_step(model: nn.Module, optimizer: Any, schedule: Any, x: Tensor, y: Tensor) -> float:
    """Update weights on a batch; its loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    schedule.step()
    return loss.item()


class Search:
    """One search: weights alone first, then weights and factors in turn."""

    def __init__(
        self,
        setting: Setting,
        data: tuple[Tensor, Tensor],
        seed: int,
        *,
        path: bool = True,
        penalty: float | None = None,
        budget: str = "1G",  # above all cells: it is the path that is demanded
    ) -> None:
        self.setting, (images, labels) = setting, data
        self.data = images[: setting.images], labels[: setting.images]
        self.held_out = images[setting.images :], labels[setting.images :]
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = nas_bench_201(setting.channels, setting.cells)
        steps = setting.images // setting.batch
        self.searcher = Searcher(
            self.model.to(memory_format=torch.channels_last),
            data[0][:1],
            budget=Budget(macs=budget),
            steps=setting.epochs * steps,
            seed=seed,
            cost=lambda cell: final_macs(cell) if has_path(cell) or not path else float("inf"),
            config=SearchConfig(epochs=setting.epochs, penalty=penalty, lr=setting.factor_lr),
        )
        updates = (setting.pretrain + setting.epochs) * steps
        self.trajectory: list[dict[str, Any]] = []
        self.optimizer, self.schedule = optimizer_of(self.searcher.weights(), setting, updates)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(*self.data, self.setting.batch, self.generator)

    def _weight_step(self, x: Tensor, y: Tensor) -> float:
        return train_step(self.model, self.optimizer, self.schedule, x, y)

    def begin(self, kept: Path) -> float:
        """Train the weights alone, then search for an epoch, in which nothing is decided yet.

        Returns:
            Processor seconds; what was kept of another kind of search is taken instead.
        """
        parts = self.searcher, self.model, self.optimizer, self.schedule
        if not kept.exists():
            start = time.process_time()
            for _ in range(self.setting.pretrain):
                for batch in self._batches():
                    self._weight_step(*batch)
            self._epoch()
            states = [part.state_dict() for part in parts]
            kept.parent.mkdir(parents=True, exist_ok=True)
            state = states, self.generator.get_state(), self.trajectory, time.process_time() - start
            torch.save(state, kept)
        states, random_state, self.trajectory, seconds = torch.load(kept)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        self.generator.set_state(random_state)
        return seconds

    def _epoch(self) -> None:
        """Update weights and factors in turn; note the factors, and how many are left."""
        losses = []
        for batch, (x, y) in zip(self._batches(), self._batches(), strict=True):
            losses.append(self._weight_step(*batch))
            F.cross_entropy(self.model(x), y).backward()
            self.searcher.step()
        vectors = self.searcher.supernet.vectors()
        factors = [[round(factor, 3) for factor in vector.tolist()] for vector in vectors]
        live = sum(map(len, self.searcher.live.values()))
        self.trajectory.append({"loss": round(mean(losses), 4), "live": live, "factors": factors})
        print(json.dumps(self.trajectory[-1]), flush=True)

    def run(self) -> dict[str, Any]:
        """Go on to the end; what was found."""
        while len(self.trajectory) < self.setting.epochs:
            self._epoch()
        found = self.searcher.finish()
        measured = {"cut_accuracy": round(accuracy(found.model, *self.held_out), 1)}
        cell = {"cell": cell_string(found.choices)}
        return {**cell, **vars(found.removals), **measured, "trajectory": self.trajectory}


def searched(kind: str, setting: Setting, data: Any, seed: int, kept: Path) -> dict[str, Any]:
    """A row of a search with training."""
    search = Search(setting, data, seed, **TRAINED[kind])
    name = "-".join(f"{value:g}" for key, value in asdict(setting).items() if key != "factor_lr")
    seconds = search.begin(kept / f"begun-{name}-{seed}.pt")
    start = time.process_time()
    row = search.run()
    return {**row, "cpu_seconds": round(seconds + time.process_time() - start, 1)}


def random_factors(setting: Setting, data: Any, seed: int) -> dict[str, Any]:
    """What the same plan leaves of factors that are drawn at random."""
    search = Search(setting, data, seed)
    with torch.no_grad():
        for vector in search.searcher.supernet.vectors():
            vector.copy_(torch.rand(vector.shape, generator=search.generator))
    return {"cell": cell_string(search.searcher.finish().choices)}


def random_cell(draw: random.Random) -> Choices:
    """A cell of the space, all alike."""
    return Choices({label: [draw.choice(NAMES)] for label in LABELS})


def best_of_random(setting: Setting, data: Any, seed: int, seconds: float) -> dict[str, Any]:
    """Train random cells until the processor seconds are used up; the best on the factor part."""
    start, draw = time.process_time(), random.Random(seed)
    half, tried = setting.images // 2, []
    while time.process_time() - start < seconds:
        cell = random_cell(draw)
        torch.manual_seed(seed + len(tried))
        generator = torch.Generator().manual_seed(seed + len(tried))
        net = apply_choices(nas_bench_201(setting.channels, setting.cells), cell)
        net(data[0][:2])  # makes the normalisations
        net = net.to(memory_format=torch.channels_last)
        updates = setting.epochs * (half // setting.batch)
        optimizer, schedule = optimizer_of(net.parameters(), setting, updates)
        for _ in range(setting.epochs):
            for x, y in batches(data[0][:half], data[1][:half], setting.batch, generator):
                train_step(net, optimizer, schedule, x, y)
        rest = slice(half, setting.images)
        tried.append((accuracy(net, data[0][rest], data[1][rest]), cell_string(cell)))
    used = round(time.process_time() - start, 1)
    return {"cell": max(tried)[1], "tried": len(tried), "cpu_seconds": used}


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that a network tells, in %."""
    right = [
        net.eval()(x).argmax(1) == y
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return 100 * torch.cat(right).float().mean().item()


def search(options: argparse.Namespace) -> None:
    """Add the rows that are missing."""
    torch.set_num_threads(1)
    setting = Setting(**{key: getattr(options, key) for key in asdict(Setting())})
    rows, data = read_rows(options.out), read_images(options.data, setting)
    for seed in options.seeds:
        for kind in options.kinds:
            case = {"kind": kind, "seed": seed, "setting": asdict(setting)}
            if any(case.items() <= row.items() for row in rows):
                continue
            if kind in TRAINED:
                row = searched(kind, setting, data, seed, options.data)
            elif kind == "random factors":
                row = random_factors(setting, data, seed)
            elif kind == "random cells":
                row = {"cell": cell_string(random_cell(random.Random(seed)))}
            else:
                spent = [r["cpu_seconds"] for r in rows if r["kind"] == "ours"]
                row = best_of_random(setting, data, seed, mean(spent))
            rows.append({**case, **row, "cpu": cpu_name(), "torch": torch.__version__})
            print(
                {key: value for key, value in rows[-1].items() if key != "trajectory"}, flush=True
            )
            write_rows(options.out, rows)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, each on a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def judge(options: argparse.Namespace) -> None:
    """Look all cells up, and compare the kinds with ours."""
    with options.table.open() as lines:
        table = {row[0]: float(row[1]) for row in list(csv.reader(lines))[1:]}
    rows = [{**row, "accuracy": table[row["cell"]]} for row in read_rows(options.out)]
    write_rows(options.out, rows)
    found = {
        kind: [row["accuracy"] for row in rows if row["kind"] == kind]
        for kind in dict.fromkeys(row["kind"] for row in rows)
    }
    print("| kind | n | mean ± std, % | worst | best | p, Welch | p, ranks | processor s |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, values in found.items():
        spread = stdev(values) if len(values) > 1 else float("nan")
        by_means, by_ranks = better(found.get("ours", values), values)
        spent = [row["cpu_seconds"] for row in rows if row["kind"] == kind and "cpu_seconds" in row]
        print(
            f"| {kind} | {len(values)} | {mean(values):.2f} ± {spread:.2f} | {min(values):.2f} | "
            f"{max(values):.2f} | {by_means:.2g} | {by_ranks:.2g} | "
            f"{mean(spent) if spent else 0:.0f} |"
        )

    for bound in BUDGETS:
        limit = Budget(macs=bound).bounds["macs"]
        within = {cell: value for cell, value in table.items() if macs_of(cell) <= limit}
        near = [value for cell, value in within.items() if macs_of(cell) >= 0.9 * limit]
        if values := found.get(bound):
            highest = max(macs_of(row["cell"]) for row in rows if row["kind"] == bound) / 1e6
            best = max(within.values())
            print(
                f"{bound}: found {mean(values):.2f} with at most {highest:.1f} M, best within "
                f"{best:.2f} ({best - mean(values):.2f} above), mean of the {len(near)} cells "
                f"at most 10 % below {mean(near):.2f}"
            )


def better(ours: Sequence[float], others: Sequence[float]) -> tuple[Any, Any]:
    """One-sided p of ours being better: Welch's, and of ranks, which does not need any spread."""
    if min(len(ours), len(others)) < 2:
        return math.nan, math.nan
    with warnings.catch_warnings(action="ignore"):  # kinds without any spread
        by_means = ttest_ind(ours, others, equal_var=False, alternative="greater")[1]
    orders: Any = PermutationMethod(n_resamples=200_000, batch=10_000)  # all, of few values
    by_ranks = mannwhitneyu(ours, others, alternative="greater", method=orders)[1]
    return by_means, by_ranks


def macs_of(cell: str) -> float:
    """Count the multiply-adds of a cell as the table writes it."""
    names = [part.split("~")[0] for part in cell.strip("|").replace("+", "").split("|") if part]
    return final_macs({label: (name,) for label, name in zip(LABELS, names, strict=True)})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("search", help=search.__doc__)
    one.set_defaults(run=search)
    one.add_argument("--data", type=Path, required=True, help="images, and weights that are kept")
    one.add_argument("--seeds", type=int, nargs="+", required=True)
    one.add_argument("--kinds", nargs="+", choices=KINDS, default=["ours"])
    for key, value in asdict(Setting()).items():
        one.add_argument(f"--{key}", type=type(value), default=value)
    two = commands.add_parser("judge", help=judge.__doc__)
    two.set_defaults(run=judge)
    two.add_argument("--table", type=Path, required=True)
    for command in (one, two):
        command.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
