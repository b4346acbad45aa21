"""One setting of the pilots: a budget, a space, numbers of images and epochs; what they run."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsonas.commands.configuring import config_parser, parse, to_config
from dsonas.cost.budgets import Budget
from dsonas.cost.chains import fit_chain
from dsonas.cost.costs import architecture_cost
from dsonas.data import ImageData, load_data
from dsonas.graph.architecture import Architecture
from dsonas.graph.spaces import SearchSpace
from dsonas.run.pipeline import Job
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import load_chain
from dsonas.search.baselines import blocks_macs
from dsonas.search.search_config import PretrainConfig, SearchConfig
from small_study import EARLIER, silent_job

Row = dict[str, Any]
YAML = Path(__file__).parent / "compare_fashion_mnist.yaml"


class Pilot:
    """One setting: a budget, a space, numbers of images and epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        config = to_config(parse(config_parser("pilot", "", ()), ["--config", str(YAML)]))
        train = replace(config.train, epochs=options.epochs)
        network = replace(config.network, blocks=options.blocks, channels=options.channels)
        self.config = replace(
            config,
            network=network,
            pretrain=PretrainConfig(epochs=3),
            search=SearchConfig(epochs=6, lr=0.05, **EARLIER),
            train=train,
            budget=Budget(macs=options.budget),
        )
        self.data = self._data()

    def _data(self) -> ImageData:
        """Training images, and other training images in place of the test images."""
        data, options = load_data(self.config.data, 0), self.options
        rest, train = data.train.split(options.images / len(data.train), 0)
        held = rest.split(options.held_out / len(rest), 0)[1]
        return replace(data, train=train, test=held)

    def space(self) -> SearchSpace:
        """The space of the setting."""
        return self.config.space(self.data)

    def _job(self, config: RunConfig, folder: str) -> Job:
        job = silent_job(config, folder)
        job.data = self.data
        return job

    def train(self, chain: Sequence[Architecture], seed: int) -> dict[str, Any]:
        """Bring to the budget, train, measure; what there is to know of the network."""
        multiple = self.config.network.channel_multiple
        fitted = fit_chain(chain, self.config.budget, multiple=multiple)
        with tempfile.TemporaryDirectory() as folder:
            metrics = self._job(replace(self.config, seed=seed), folder).train(fitted)
        found = {"error": round(metrics["test_error"], 3), "seed": seed, **self.facts(fitted)}
        return {**found, "seconds": metrics["train_seconds"]}

    def facts(self, network: Architecture) -> dict[str, Any]:
        """Structure and cost of an architecture."""
        supernet = self.space().complete()
        alike = network.with_channels(supernet.skeleton.channels)
        graph = network.blocks[0]
        names = [graph.operation(node) for node in graph.kept_nodes]
        return {
            "channels": list(network.skeleton.channels),
            "macs": architecture_cost(network).macs,
            "params": architecture_cost(network).params,
            "structure": round(kept_share(alike, supernet), 4),
            "operations": names,
            "inputs": {str(node): list(found) for node, found in graph.inputs.items()},
            "reductions": [list(live) for live in network.reductions],
        }

    def rebuilt(self, row: Row) -> Architecture:
        """The architecture of a row, at the supernet's channels."""
        return self.structure(row["inputs"], *row["reductions"])

    def structure(
        self, inputs: Mapping[Any, Sequence[int]], *reductions: Sequence[bool]
    ) -> Architecture:
        """An architecture at the supernet's channels, from the sources of each target.

        Args:
            inputs: sources of the targets; what is left out has none.
            reductions: live branches of each reduction block; left out: all.
        """
        supernet = self.space().complete()
        complete = supernet.blocks[0]
        wanted = {(source, int(t)) for t, sources in inputs.items() for source in sources}
        graph = complete.prune([tuple(c) in wanted for c in complete.connections]).clean()
        live = tuple(tuple(branches) for branches in reductions) or supernet.reductions
        return replace(supernet, blocks=(graph,) * len(supernet.blocks), reductions=live)

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


def kept_share(member: Architecture, supernet: Architecture) -> float:
    """Of the multiply-adds of the supernet's blocks, at the supernet's channels."""
    if member.operations != supernet.operations:
        return 0.0
    return blocks_macs(member) / blocks_macs(supernet)
