"""Is it better to keep the weights of a search than to train what it has found anew?

The five searches of the study on Fashion-MNIST in the share space; what each has found is trained
at the channels of its supernet, where its weights fit: 4 epochs from new weights, 4 epochs from the
search's, and from new weights for as long as search and training cost together ("you only search
once", at equal total cost). The same seed, images and schedule each. Errors are those on the test
images; no choice is made by them. Two processes of one thread; goes on by the same command.

    python benchmarks/kept_weights.py        # 1.1 core-hours with the searches
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ablations import SEARCHES, compare
from dsonas._utils import derive_seed
from dsonas.commands.comparison.study import training_work
from dsonas.commands.configuring import config_parser, parse, to_config
from dsonas.cost.costs import architecture_cost
from dsonas.data import load_data
from dsonas.graph.architecture import REDUCTION_OPERATIONS
from dsonas.nn.blocks import Block, ConvBNReLU, ReductionBlock
from dsonas.nn.network import Network
from dsonas.run.measuring import held_out_batches, training_batches
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder, load_chain
from dsonas.train.engine import Engine
from dsonas.train.loop import Journal, run_stage
from dsonas.train.training import Training, evaluate
from small_study import Study, mean_and_spread

ARMS = ("new weights", "the search's weights", "new weights, equal total cost")


def search_folder(runs: Path, seed: int) -> Path:
    """The run folder of a search of the study."""
    return runs / f"jobs/search-share-{seed}"


def with_weights_of(supernet: Network) -> Network:
    """The final network of what a supernet has become: the same weights, factors absorbed.

    Every operation must read the block's input alone, as in all that the study's searches found.
    """
    network = Network(supernet.architecture)
    state = supernet.state_dict()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    assert supernet.scaling is not None
    with torch.no_grad():
        for i, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            end, factors = block.graph.output_node, supernet.scaling.for_block(i)
            sources = block.graph.inputs[end]
            kept = torch.stack([factors[block.positions[source, end]] for source in sources])
            block.output.weight *= kept.repeat_interleave(block.output.out_channels)[:, None, None]
        for block, factors in zip(network.reductions, supernet.scaling.reductions, strict=True):
            assert isinstance(block, ReductionBlock)
            for name, branch in block.branches.items():
                assert isinstance(branch, ConvBNReLU)
                branch[1].weight *= factors[REDUCTION_OPERATIONS.index(name)]
                branch[1].bias *= factors[REDUCTION_OPERATIONS.index(name)]
    return network


def supernet_of(folder: Path) -> Network:
    """The supernet at the end of a search, as its last checkpoint holds it."""
    saved = RunFolder(folder).last_checkpoint
    assert saved is not None, folder
    supernet = Network(load_chain(folder / "chain.json")[-1], scaled=True)
    supernet.load_state_dict(saved["state"]["network"])
    return supernet


def config_of(folder: Path) -> RunConfig:
    """The settings of a run."""
    return to_config(parse(config_parser("run", "", ()), ["--config", str(folder / "config.yaml")]))


def try_arm(runs: Path, seed: int, arm: str) -> dict[str, Any]:
    """Train what a search has found; the row of the study."""
    folder = search_folder(runs, seed)
    config, supernet = config_of(folder), supernet_of(folder)
    engine, data = Engine(config.engine), load_data(config.data, config.seed)
    torch.manual_seed(derive_seed(seed, "network"))
    network = Network(supernet.architecture)
    macs = architecture_cost(network.architecture).macs
    epochs = config.train.epochs
    if arm == ARMS[1]:
        network = with_weights_of(supernet)
    if arm == ARMS[2]:
        work = json.loads((folder / "result.json").read_text())["work"]
        epochs += round(work / training_work(macs, 1, len(data.train), config.train.batch_size, 0))
    config = replace(config, train=replace(config.train, epochs=epochs))
    engine.place(network)
    test = held_out_batches(data, engine)
    if arm == ARMS[1]:
        check_alike(supernet, network, next(iter(test.epoch(0)))[0])
    before = evaluate(network, test, engine)["test_error"]
    train = training_batches(data, engine, config)
    run_stage(Training(network, train, test, config.train, engine, seed), Journal(), engine.device)
    error = evaluate(network, test, engine)["test_error"]
    found = {"macs": macs, "channels": list(network.architecture.skeleton.channels)}
    return {"seed": seed, "arm": arm, "epochs": epochs, "before": before, "error": error, **found}


@torch.inference_mode()
def check_alike(supernet: Network, network: Network, images: torch.Tensor) -> None:
    """Refuse weights that were not carried over exactly."""
    torch.testing.assert_close(network.eval()(images), supernet.eval()(images))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each arm."""
    lines = [
        "| start, at 16 and 32 channels | epochs | test error, % | each search |",
        "|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"])
        errors = [row["error"] for row in mine]
        epochs = statistics.mean(row["epochs"] for row in mine)
        each = ", ".join(f"{error:.2f}" for error in errors)
        lines.append(f"| {arm} | {epochs:g} | {mean_and_spread(errors)} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kept-weights.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/kept-weights"), help="searches")
    study = Study(options := parser.parse_args(), apart=["runs"])
    compare(options.runs, trainings=0)
    cases = [c for c in product(range(SEARCHES), ARMS) if not study.has(seed=c[0], arm=c[1])]
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawning) as pool:
        jobs = [pool.submit(try_arm, options.runs, *case) for case in cases]
        for job in as_completed(jobs):
            study.add(job.result())
    print("\n".join(summary(study.rows)))


if __name__ == "__main__":
    main()
