"""The folder of a study, and a job in it: search, training, trial of a random search, ranking."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from dsonas._utils import derive_seed, write_atomically
from dsonas.commands.comparison.jobs import Unit, read_json, result_file, to_json
from dsonas.commands.comparison.study import RANKING_IMAGES, Study, numbered
from dsonas.cost import Budget, architecture_cost, chain_to_json, exact_measures
from dsonas.data import Batches, ImageData, ImageSet, load_data, split_for_search
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.run import (
    JOBS_FILE,
    Job,
    Reporter,
    RunConfig,
    RunError,
    RunFolder,
    StopSignal,
    fit_to_budget,
    load_chain,
)
from dsonas.search import blocks_macs
from dsonas.sparse import mask_factors
from dsonas.train import CheckpointFolder, DivergedError, Engine, Interrupted

MEASURED = (
    "test_error", "test_loss", "macs", "params", "channels", "live_connections", "train_seconds",
    "device", "threads", "versions", "diverged",
)  # fmt: skip
BATCH = 250
Task = Mapping[str, Any]  # a Unit, and what else its job has to know


def begin(path: Path, study: Study, config_text: str) -> None:
    """Write configuration, architectures and tasks into a folder, unless it holds other ones."""
    files = {path / f"architectures/{name}.json": net for name, net in study.known.items()}
    for file, net in files.items():
        if file.exists() and Architecture.load(file) != net:
            raise RunError(
                f"{file} is not what this study would draw: was another budget added that "
                "some architectures cannot meet? Choose another --out"
            )
    write_atomically(path / "config.yaml", config_text.encode())
    for file, net in files.items():
        if not file.exists():
            write_atomically(file, net.to_json().encode())
    tasks = {unit.name: asdict(unit) | _more(study, unit) for unit in study.units}
    write_atomically(path / JOBS_FILE, to_json(tasks))


def _more(study: Study, unit: Unit) -> dict[str, Any]:
    config = study.config
    if unit.kind == "rank":
        names = list(numbered(unit.subject, study.random(unit.space)))
        return {"subjects": names, "search": unit.needs[0], "images": RANKING_IMAGES}
    # a search takes from its budget which measures it bounds, not how much of them
    more: dict[str, Any] = {"bounds": config.budgets[unit.budget or 0].bounds}
    if unit.kind == "trial":
        more |= {"epochs": config.trial_epochs, "held_out": config.held_out}
        # all candidates of a random search see the same images
        more["split"] = f"{study.seed} {unit.subject.rpartition('-')[0]}"
    return more


def read_task(path: Path, name: str) -> Task:
    """Read what a job of the study in a folder has to know."""
    tasks = read_json(path / JOBS_FILE) if (path / JOBS_FILE).exists() else {}
    if name not in tasks:
        raise RunError(f"{path} has no job {name!r}: give the folder of a study, and one of jobs/")
    return tasks[name]


def do_job(
    path: Path, task: Task, config: RunConfig, user_code: Sequence[str], stop: StopSignal
) -> int:
    """Do a job of the study in a folder, or go on with it, up to its ``result.json``.

    If another process does it, left by a study that was killed, this waits for its end. Options
    that run ``user_code`` stand in no file, so they are given. Returns the exit code.
    """
    file, code = result_file(path, task["name"]), 1
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name("lock")):
        if file.exists():
            return 0
        try:
            code = _work(path, task, config, user_code, stop)
        finally:
            seconds = _record_attempt(file.with_name("attempts.json"), code)
        if code == 0:
            about = {
                entry.name: task[entry.name] for entry in fields(Unit) if entry.name != "needs"
            }
            found = _found(path, file.parent, task)
            write_atomically(file, to_json({**about, "core_seconds": seconds, **found}))
    return code


def _record_attempt(file: Path, code: int) -> float:
    """Note the processor time of this process and its children; that of all attempts so far."""
    attempts = read_json(file) if file.exists() else []
    attempts.append({"exit_code": code, "core_seconds": round(sum(os.times()[:4]), 3)})
    write_atomically(file, to_json(attempts))
    return round(sum(attempt["core_seconds"] for attempt in attempts), 3)


def _work(
    path: Path, task: Task, config: RunConfig, user_code: Sequence[str], stop: StopSignal
) -> int:
    from dsonas.commands import working

    kind, run = task["kind"], path / "jobs" / task["name"]
    if kind == "rank":
        run_ranking(config, task, run)
        return 0
    if kind != "search":
        write_given(path, task, config)
    if kind == "trial":
        stop.wait_for_step()
        try:
            run_trial(config, task, run, stop)
        except Interrupted:
            return stop.exit_code
        return 0
    given = ["--architecture", str(run / "given.json")]
    if kind == "search":
        bounds = [f"--budget.{name}={bound}" for name, bound in task["bounds"].items()]
        given = [f"--search.space={task['space']}", *bounds]
    given += ["--out", str(run), "--seed", str(task["seed"])]
    config_file = ["--config", str(path / "config.yaml")]
    return working.run(kind, [*user_code, *config_file, *given], stop, RunFolder(path))


def write_given(path: Path, task: Task, config: RunConfig) -> None:
    """Write ``given.json``: what a job trains, at its budget; a random search chooses it now."""
    subject = path / f"architectures/{task['subject']}.json"
    if task["kind"] == "train" and task["method"] == "random_search" and not subject.exists():
        best = best_trial([read_json(result_file(path, name)) for name in task["needs"]])
        write_atomically(subject, subject.with_name(f"{best['subject']}.json").read_bytes())
    config = replace(config, budget=Budget(**task["bounds"]))
    fitted = fit_to_budget(load_chain(subject), config, exact_measures())
    write_atomically(path / "jobs" / task["name"] / "given.json", fitted.to_json().encode())


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The trial of least error; of equal ones that of least loss; a diverged one only for want."""
    return min(
        trials, key=lambda trial: ("diverged" in trial, trial["validation_error"], trial["loss"])
    )


def _found(path: Path, run: Path, task: Task) -> dict[str, Any]:
    """What a job has found; a search puts its chain among the other architectures."""
    if task["kind"] == "rank":
        return read_json(run / "ranking.json")
    if task["kind"] == "search":
        chain = load_chain(run / "chain.json")
        subject = path / f"architectures/{task['subject']}.json"
        write_atomically(subject, chain_to_json(chain).encode())
        last = chain[-1]
        whole = Architecture.complete(last.skeleton, last.operations, last.num_levels)
        return {
            "live_connections": last.num_live,
            "supernet_connections": whole.num_live,
            "structure_share": round(blocks_macs(last) / blocks_macs(whole), 4),
            "supernet_macs": architecture_cost(whole).macs,
        }
    metrics = read_json(run / "metrics.json")
    found = {name: metrics[name] for name in MEASURED if name in metrics}
    if task["kind"] == "trial":  # what its run took for the test images were training images
        found["validation_error"] = found.pop("test_error")
        found["loss"] = found.pop("test_loss")
    return found


def _load(config: RunConfig, study: Path) -> ImageData:
    """Load the images of a study; refused if they are not those that it was begun with."""
    data = load_data(config.data, config.seed)
    RunFolder(study).require_images(data.split)
    return data


def hold_out(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Put training images in the place of the test images, which are not seen then."""
    train, held = data.train.split(fraction, seed)
    return replace(data, train=train, test=held)


def run_trial(config: RunConfig, task: Task, folder: Path, stop: Callable[[], bool]) -> None:
    """Train a candidate briefly and measure it on training images that were set aside.

    One whose training diverges has an error of 100 % and no loss.
    """
    run = RunFolder(folder)
    if run.metrics:
        return
    data = _load(config, folder.parents[1])  # by the study's seed: the same for all candidates
    train = replace(config.train, epochs=task["epochs"])
    config = replace(config, seed=task["seed"], train=train)
    architecture = Architecture.load(folder / "given.json")
    with Reporter() as reporter:
        job = Job(config, run, reporter, stop, measurements=1, images=data)
        job.data = hold_out(data, task["held_out"], derive_seed(0, "trial", task["split"]))
        job.check(("train",), architecture)
        try:
            job.train(architecture)
        except DivergedError:  # a bad candidate, not a failed job
            run.write_metrics({"test_error": 100.0, "test_loss": None, "diverged": True})


def run_ranking(config: RunConfig, task: Task, folder: Path) -> None:
    """Judge architectures by the pretrained supernet of a search, in ``ranking.json``."""
    config = replace(config, seed=task["seed"], search=replace(config.search, space=task["space"]))
    engine, data = Engine(config.engine), _load(config, folder.parents[1])
    network = pretrained_supernet(config, data, folder.parent / task["search"])
    engine.place(network)
    fraction, split = config.data.factor_split, derive_seed(config.seed, "split")
    images = split_for_search(data.train, fraction, split)[1]
    images = images.sample(task["images"], derive_seed(config.seed, "ranking"))
    errors, seen = {}, 0
    for name in task["subjects"]:
        architecture = Architecture.load(folder.parents[1] / f"architectures/{name}.json")
        errors[name], seen = supernet_error(network, architecture, images, data, engine)
    found = {"errors": errors, "images": seen, "split": bool(fraction)}
    write_atomically(folder / "ranking.json", to_json(found))


def pretrained_supernet(config: RunConfig, data: ImageData, run: Path) -> Network:
    """Load the supernet as step 1 left it in a run folder: complete, all factors 1."""
    state = CheckpointFolder(run / "checkpoints" / "pretrain").load_last()
    if state is None:
        raise RunError(f"{run} has no checkpoint of the pretrained supernet: search it again")
    space = config.space(data)
    network = Network(space.complete(), scaled=True)
    network.load_state_dict(state["state"]["network"])
    return network


@torch.no_grad()
def supernet_error(
    network: Network, architecture: Architecture, images: ImageSet, data: ImageData, engine: Engine
) -> tuple[float, int]:
    """Measure an architecture with a supernet's weights, its other factors set to 0.

    BN takes the statistics of each batch, of which only whole ones are measured: the running ones
    are those of the complete supernet. In the share space the first block stands for all. Returns
    the error in percent and the number of images.
    """
    assert network.scaling is not None
    for vector in network.scaling.parameters():
        vector.fill_(1.0)
    flags = [*(cell.live for cell in architecture.cells), *architecture.reductions]
    mask_factors([*network.scaling.blocks, *network.scaling.reductions], flags)
    batches = Batches(
        images, data, batch_size=min(BATCH, len(images)), augmentation=None, shuffle=True,
        drop_last=True, seed=0, device=engine.device,
    )  # fmt: skip
    network.train()
    wrong, seen = torch.zeros((), device=engine.device), 0
    for pixels, labels in batches.epoch(0):
        with engine.autocast():
            wrong += (network(pixels).argmax(1) != labels).sum()
        seen += len(labels)
    return round(100 * wrong.item() / seen, 4), seen
