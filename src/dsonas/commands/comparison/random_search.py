"""The jobs that only a study has: trials of a random search, and rankings by a supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsonas._utils import derive_seed, write_atomically
from dsonas.commands.comparison.study_folder import to_json
from dsonas.data import Batches, ImageData, ImageSet, load_data, split_for_search
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.run import Job, Reporter, RunConfig, RunError, RunFolder
from dsonas.train import CheckpointFolder, DivergedError, Engine

BATCH = 250


def hold_out(data: ImageData, fraction: float, seed: int) -> ImageData:
    """A data set whose test images are training images set aside; the test images are not in it.

    Args:
        data: the data set.
        fraction: share of its training images, in (0, 1).
        seed: the same seed sets the same images aside.

    Example:
        >>> from dsonas.data import DataConfig
        >>> data = load_data(DataConfig(name="digits"))
        >>> parts = hold_out(data, 0.1, seed=0)
        >>> len(parts.train), len(parts.test)
        (1294, 144)
    """
    train, held = data.train.split(fraction, seed)
    return replace(data, train=train, test=held)


def run_trial(
    config: RunConfig, task: Mapping[str, Any], folder: Path, stop: Callable[[], bool]
) -> None:
    """Train a candidate briefly and measure it on training images that were set aside.

    One whose training diverges has an error of 100 % and no loss.

    Args:
        config: the study's.
        task: ``seed``, ``epochs``, ``held_out``, ``split``.
        folder: of the job; it holds ``given.json``, and gets what a run folder holds.
        stop: polled after every step.

    Raises:
        Interrupted: after saving.
    """
    run = RunFolder(folder)
    if run.metrics:
        return
    epochs = task["epochs"]
    train = replace(config.train, epochs=epochs, evaluate_every=epochs)
    data = load_data(config.data, config.seed)  # by the study's seed: the same for all candidates
    config = replace(config, seed=task["seed"], train=train)
    architecture = Architecture.load(folder / "given.json")
    with Reporter() as reporter:
        job = Job(config, run, reporter, stop)
        job.data = hold_out(data, task["held_out"], derive_seed(0, "trial", task["split"]))
        job.check(("train",), architecture)
        try:
            job.train(architecture)
        except DivergedError:  # a bad candidate, not a failed job
            run.write_metrics({"test_error": 100.0, "test_loss": None, "diverged": True})


def run_ranking(config: RunConfig, task: Mapping[str, Any], folder: Path) -> None:
    """Judge architectures by the pretrained supernet of a search; writes ``ranking.json``.

    Args:
        config: the study's.
        task: ``seed``, ``space``, ``search`` (the job whose supernet it is), ``subjects``, and
            ``images`` at most.
        folder: of the job, beside that of the search.

    Raises:
        RunError: if the search has kept no pretrained supernet.
    """
    config = replace(config, seed=task["seed"], search=replace(config.search, space=task["space"]))
    engine, data = Engine(config.engine), load_data(config.data, config.seed)
    network = pretrained_supernet(config, data, folder.parent / task["search"])
    engine.place(network)
    split = derive_seed(config.seed, "split")
    images = split_for_search(data.train, config.data.factor_split, split)[1]
    images = images.sample(task["images"], derive_seed(config.seed, "ranking"))
    architectures = folder.parent.parent / "architectures"
    errors, seen = {}, 0
    for name in task["subjects"]:
        architecture = Architecture.load(architectures / f"{name}.json")
        errors[name], seen = supernet_error(network, architecture, images, data, engine)
    found = {"errors": errors, "images": seen, "split": bool(config.data.factor_split)}
    write_atomically(folder / "ranking.json", to_json(found))


def pretrained_supernet(config: RunConfig, data: ImageData, run: Path) -> Network:
    """The supernet as step 1 left it in a run folder: complete, all factors 1.

    Raises:
        RunError: if it is not there.
    """
    state = CheckpointFolder(run / "checkpoints" / "pretrain").load_last()
    if state is None:
        raise RunError(f"{run} has no checkpoint of the pretrained supernet: search it again")
    space = config.space(data)
    network = Network(space.complete(), sharing=space.sharing)
    network.load_state_dict(state["state"]["network"])
    return network


@torch.no_grad()
def supernet_error(
    network: Network, architecture: Architecture, images: ImageSet, data: ImageData, engine: Engine
) -> tuple[float, int]:
    """The error of an architecture with the supernet's weights, its other factors set to 0.

    BN takes the statistics of each batch, of which only whole ones are measured: the running ones
    are those of the complete supernet. In the share space the graph of the first block stands for
    all.

    Args:
        network: a complete supernet; its factors are changed.
        architecture: of its space, at its channels.
        images: to be measured on.
        data: the data set they belong to.
        engine: where to compute.

    Returns:
        The error in percent, and the number of images it was measured on.
    """
    scaling = network.scaling
    assert scaling is not None
    for vector in scaling.parameters():
        vector.fill_(1.0)
    scaling.write_zeros(architecture)
    batches = Batches(
        images, data, batch_size=min(BATCH, len(images)), augmentation=None, shuffle=True,
        drop_last=True, seed=0, device=engine.device,
    )  # fmt: skip
    network.train()
    wrong = torch.zeros((), device=engine.device)
    seen = 0
    for pixels, labels in batches.epoch(0):
        with engine.autocast():
            wrong += (network(pixels).argmax(1) != labels).sum()
        seen += len(labels)
    return round(100 * wrong.item() / seen, 4), seen
