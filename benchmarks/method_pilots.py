"""Why does a search win or lose against random networks? Small trials that choose our defaults.

The setting of the study on Fashion-MNIST (compare_fashion_mnist.yaml) made smaller: fewer training
images, shorter trainings. Errors are those on other training images; the test images are not used.
Each group of cases is asked for by name; the result file holds all rows, and the same command goes
on where it was cut off.

    python benchmarks/method_pilots.py random hand-made chain --out pilots.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from dsonas.architecture import Architecture
from dsonas.baselines import HAND_MADE, blocks_macs, hand_made, random_architectures
from dsonas.benching import environment
from dsonas.budgets import Budget
from dsonas.chains import fit_chain
from dsonas.config import RunConfig
from dsonas.configuring import config_parser, parse, to_config
from dsonas.console import Reporter
from dsonas.costs import architecture_cost
from dsonas.data import ImageData, load_data
from dsonas.engine import Engine
from dsonas.pipeline import Job, fit_to_budget
from dsonas.runs import RunFolder, load_chain
from dsonas.search_config import SearchConfig
from dsonas.spaces import SearchSpace
from dsonas.trials import Trials

YAML = Path(__file__).parent / "compare_fashion_mnist.yaml"
SHARES = (0.35, 0.2, 0.12)  # of the blocks' multiply-adds, for members of a chain
SPARSE = {"rank": "flow", "thrift": 0.0, "structure": 0.2, "connections": 0.1}
TRIAL_EPOCHS = 2
AGAIN = (5, 7, 12, 6)  # two of the best of the first 15 random architectures, two of the worst
CHAIN = {"structure": 0.05, "connections": 1.0, "reached_at": 1.0}


class Pilot:
    """One setting: a budget, a space, numbers of images and epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        parsed = config_parser("pilot", "", ())
        config = to_config(parse(parsed, ["--config", str(YAML)]))
        train = replace(config.train, epochs=options.epochs, evaluate_every=options.epochs)
        self.config = replace(config, train=train, budget=Budget(macs=options.budget))
        self.data = self._data()

    def _data(self) -> ImageData:
        """Training images, and other training images in place of the test images."""
        data, options = load_data(self.config.data, 0), self.options
        rest, train = data.train.split(options.images / len(data.train), 0)
        held = rest.split(options.held_out / len(rest), 0)[1]
        return replace(data, train=train, test=held)

    def space(self) -> SearchSpace:
        """The space of the study."""
        return self.config.space(self.data)

    def _job(self, config: RunConfig, folder: str) -> Job:
        job = Job(config, RunFolder(folder), Reporter(Console(quiet=True)))
        job.data = self.data
        return job

    def train(self, chain: Sequence[Architecture], seed: int) -> dict[str, Any]:
        """Bring to the budget, train, measure; what there is to know of the network."""
        multiple = self.config.network.channel_multiple
        fitted = fit_chain(chain, self.config.budget, multiple=multiple)
        with tempfile.TemporaryDirectory() as folder:
            metrics = self._job(replace(self.config, seed=seed), folder).train(fitted)
        return {"error": round(metrics["test_error"], 3), "seed": seed, **self.facts(fitted)} | {
            "seconds": metrics["train_seconds"]
        }

    def facts(self, network: Architecture) -> dict[str, Any]:
        """Structure and cost of an architecture."""
        supernet = self.space().complete()
        alike = network.with_channels(supernet.skeleton.channels)
        graph = network.blocks[0]
        names = [network.operations[(n - 1) % len(network.operations)] for n in graph.kept_nodes]
        return {
            "channels": list(network.skeleton.channels),
            "macs": architecture_cost(network).macs,
            "params": architecture_cost(network).params,
            "structure": round(_share(alike, supernet), 4),
            "operations": names,
            "inputs": {str(node): list(found) for node, found in graph.inputs.items()},
            "reductions": [list(live) for live in network.reductions],
        }

    def search(
        self, seed: int, pretrain: int | None = None, **settings: Any
    ) -> tuple[list[Architecture], float]:
        """The chain of a search, and its processor seconds."""
        search: SearchConfig = replace(self.config.search, **settings)
        epochs = self.config.pretrain.epochs if pretrain is None else pretrain
        first = replace(self.config.pretrain, epochs=epochs)
        config = replace(self.config, pretrain=first, search=search, seed=seed)
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            self._job(config, folder).search()
            return load_chain(Path(folder) / "chain.json"), time.process_time() - start

    def refine(self, seed: int, chain: list[Architecture], trials: int) -> list[Architecture]:
        """The last choice by trials alone, from structures of any origin."""
        search = replace(self.config.search, trials=trials, trial_epochs=TRIAL_EPOCHS)
        config, quiet = (
            replace(self.config, search=search, seed=seed),
            Reporter(Console(quiet=True)),
        )
        fit = partial(fit_to_budget, config=config)
        with tempfile.TemporaryDirectory() as folder:
            run, engine = RunFolder(folder), Engine(config.engine)
            return Trials(config, self.data, engine, run, quiet, lambda: False, fit).choose(chain)


def _share(member: Architecture, supernet: Architecture) -> float:
    """Of the multiply-adds of the supernet's blocks, at the supernet's channels."""
    if member.operations != supernet.operations:
        return 0.0
    return blocks_macs(member) / blocks_macs(supernet)


Row = dict[str, Any]
Group = Callable[[Pilot, "Results"], Iterator[Row]]


def random_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """Random architectures, the two kinds in turn."""
    drawn = random_architectures(pilot.space(), 0)
    for index, architecture in enumerate(islice(drawn, pilot.options.random)):
        case = {"group": "random", "index": index}
        if not results.has(**case):
            yield {**case, **pilot.train([architecture], 1000 + index)}


def again_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """Further trainings of some random architectures: how much of the spread is training noise?"""
    drawn = list(islice(random_architectures(pilot.space(), 0), max(AGAIN) + 1))
    for repeat in range(1, pilot.options.trainings):
        for index in AGAIN:
            case = {"group": "again", "index": index, "repeat": repeat}
            if not results.has(**case):
                yield {**case, **pilot.train([drawn[index]], 1000 + 100 * repeat + index)}


def hand_made_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """The hand-made networks."""
    for kind in HAND_MADE:
        for index in range(pilot.options.trainings):
            case = {"group": "hand-made", "kind": kind, "index": index}
            if not results.has(**case):
                yield {**case, **pilot.train([hand_made(pilot.space(), kind)], 2000 + index)}


def chain_rows(pilot: Pilot, results: Results, rank: str = "loss") -> Iterator[Row]:
    """Members of the chain of a search that is led down to a small structure."""
    supernet = pilot.space().complete()
    group = "chain" if rank == "loss" else f"chain-{rank}"
    for seed in range(pilot.options.seeds):
        cases = [{"group": group, "search": seed, "share": share} for share in SHARES]
        if all(results.has(**case) for case in cases):
            continue
        chain, seconds = pilot.search(seed, rank=rank, **CHAIN)
        for place, case in enumerate(cases):
            if not results.has(**case):
                member = min(chain, key=lambda net: abs(_share(net, supernet) - case["share"]))
                row = pilot.train([member], 3000 + 10 * seed + place)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


def sparse_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """The new defaults: operations by flow, whatever they cost, and few connections."""
    for seed in range(pilot.options.seeds):
        cases = [{"group": "sparse", "search": seed, "index": i} for i in range(2)]
        if all(results.has(**case) for case in cases):
            continue
        chain, seconds = pilot.search(seed, pretrain=2, epochs=5, **SPARSE)
        for index, case in enumerate(cases):
            if not results.has(**case):
                row = pilot.train(chain, 7000 + 10 * seed + index)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


def trials_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """Shorter searches whose last choice is made by trials."""
    for seed in range(pilot.options.seeds):
        cases = [{"group": "trials-repeated", "search": seed, "index": i} for i in range(2)]
        if all(results.has(**case) for case in cases):
            continue
        short = {"epochs": 3, "trials": 20, "trial_epochs": TRIAL_EPOCHS}
        chain, seconds = pilot.search(seed, pretrain=1, **CHAIN, **short)
        for index, case in enumerate(cases):
            if not results.has(**case):
                row = pilot.train(chain, 5000 + 10 * seed + index)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


def trials_only_rows(pilot: Pilot, results: Results) -> Iterator[Row]:
    """No search: the trials begin with random structures; four more for what the search costs."""
    for seed in range(pilot.options.seeds):
        cases = [{"group": "trials-only", "search": seed, "index": i} for i in range(2)]
        if all(results.has(**case) for case in cases):
            continue
        drawn = islice(random_architectures(pilot.space(), 77 + seed, ("cost",)), 8)
        begin = sorted(drawn, key=lambda net: -architecture_cost(net).macs)
        start = time.process_time()
        chain = pilot.refine(seed, [pilot.space().complete(), *begin], 24)
        seconds = time.process_time() - start
        for index, case in enumerate(cases):
            if not results.has(**case):
                row = pilot.train(chain, 6000 + 10 * seed + index)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


GROUPS: dict[str, Group] = {
    "random": random_rows,
    "again": again_rows,
    "hand-made": hand_made_rows,
    "chain": chain_rows,
    "sparse": sparse_rows,
    "trials-repeated": trials_rows,
    "trials-only": trials_only_rows,
    "chain-flow": lambda pilot, results: chain_rows(pilot, results, "flow"),
}


class Results:
    """The rows so far, kept in a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.out
        keys = ("budget", "images", "held_out", "epochs")
        self.options = {key: getattr(options, key) for key in keys}
        held = json.loads(self.path.read_text()) if self.path.exists() else {}
        if held and held["options"] != self.options:
            raise SystemExit(f"{self.path} has other options: give another --out")
        self.rows: list[Row] = held.get("rows", [])

    def has(self, **case: Any) -> bool:
        """Whether there is a row of a case."""
        return any(case.items() <= row.items() for row in self.rows)

    def add(self, row: Row, engine: Engine) -> None:
        """Keep a row and write all."""
        self.rows.append(row)
        shown = {key: row[key] for key in row if key not in ("inputs", "macs", "params", "seed")}
        print(shown, flush=True)
        value = {"options": self.options, "environment": environment(engine), "rows": self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/method-pilots.json"))
    parser.add_argument("--budget", default="1M")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--held_out", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=3)
    options = parser.parse_args()
    pilot, results = Pilot(options), Results(options)
    engine = Engine(pilot.config.engine)
    for name in options.groups:
        for row in GROUPS[name](pilot, results):
            results.add(row, engine)
        found = [row["error"] for row in results.rows if row["group"] == name]
        print(name, f"{statistics.mean(found):.2f} +- {statistics.stdev(found):.2f}", len(found))


if __name__ == "__main__":
    main()
