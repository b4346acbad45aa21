"""A job of a study: trials see no test image, rankings are of the pretrained supernet, locks."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dsonas.commands.comparison.jobs import result_file
from dsonas.commands.comparison.single_job import (
    begin,
    best_trial,
    do_job,
    hold_out,
    pretrained_supernet,
    read_task,
    run_ranking,
    run_trial,
    supernet_error,
)
from dsonas.data import load_data
from dsonas.nn.network import Network
from dsonas.run.interrupts import StopSignal
from dsonas.run.runs import RunError
from dsonas.search.baselines import random_architecture
from dsonas.search.shrinking import shrink
from dsonas.train.checkpoints import CheckpointFolder
from dsonas.train.engine import Engine

pytestmark = pytest.mark.slow


def pixels(images) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images.gather(torch.arange(len(images))))


def test_what_is_held_out_are_training_images(digits):
    parts = hold_out(digits, 0.25, seed=3)
    assert sorted(pixels(parts.train) + pixels(parts.test)) == pixels(digits.train)
    assert len(parts.test) == 50
    assert torch.bincount(parts.test.labels).min() >= 4  # stratified
    assert pixels(hold_out(digits, 0.25, seed=3).test) == pixels(parts.test)
    assert pixels(hold_out(digits, 0.25, seed=4).test) != pixels(parts.test)


def test_a_trial_is_short_resumable_and_measures_held_out_images(run_config, study, tmp_path):
    made = study()
    fitted = made.fit(made.random("share")[0], made.config.budgets[0])
    (tmp_path / "given.json").write_text(fitted.to_json())
    task = {"seed": 5, "epochs": 1, "held_out": 0.2, "split": "0 candidate-share-0-30k"}
    long = replace(run_config, train=replace(run_config.train, epochs=50))
    run_trial(long, task, tmp_path, lambda: False)
    metrics = (tmp_path / "metrics.json").read_bytes()
    error = json.loads(metrics)["test_error"]
    assert error * 40 / 100 == pytest.approx(round(error * 40 / 100))  # of 40, not of 50 images
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    run_trial(long, task, tmp_path, lambda: True)  # finished, so there is nothing to interrupt
    assert (tmp_path / "metrics.json").read_bytes() == metrics


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_the_supernet_judges_an_architecture_as_if_it_were_cut_out(
    sharing, run_config, digits, study
):
    """Masked factors and physical removal agree: in training mode the outputs are equal."""
    space = study().spaces[sharing]
    torch.manual_seed(0)
    network = Network(space.complete(), scaled=True)
    cut = Network(space.complete(), scaled=True)
    cut.load_state_dict(network.state_dict())
    architecture = random_architecture(space, torch.Generator().manual_seed(2))
    engine = Engine(run_config.engine)
    masked, seen = supernet_error(network, architecture, digits.train, digits, engine)
    assert seen == len(digits.train)
    shrink(cut, architecture)
    assert supernet_error(cut, architecture, digits.train, digits, engine) == (masked, seen)
    again, _ = supernet_error(network, space.complete(), digits.train, digits, engine)
    assert again != masked  # the mask of before is gone


def test_a_judgement_counts_only_the_images_it_saw(run_config, digits, study, monkeypatch):
    monkeypatch.setattr("dsonas.commands.comparison.single_job.BATCH", 60)  # of 200 images
    space = study().spaces["share"]
    network = Network(space.complete(), scaled=True)
    engine = Engine(run_config.engine)
    assert supernet_error(network, space.complete(), digits.train, digits, engine)[1] == 180


def test_a_ranking_reads_the_supernet_of_the_search(run_config, digits, study, tmp_path):
    made = study()
    torch.manual_seed(1)
    network = Network(made.spaces["full"].complete(), scaled=True)
    folder = tmp_path / "jobs" / "rank-full-3"
    search = tmp_path / "jobs" / "search-full-0"
    state = {"stage": "pretrain", "state": {"network": network.state_dict()}}
    CheckpointFolder(search / "checkpoints" / "pretrain").save(state)
    (tmp_path / "architectures").mkdir()
    names = [f"random-full-{i:03}" for i in range(3)]
    for name, architecture in zip(names, made.random("full"), strict=True):
        (tmp_path / "architectures" / f"{name}.json").write_text(architecture.to_json())
    task = {"seed": 0, "space": "full", "search": "search-full-0", "subjects": names, "images": 60}
    folder.mkdir()
    run_ranking(run_config, task, folder)
    first = json.loads((folder / "ranking.json").read_text())
    assert list(first["errors"]) == names
    assert (first["images"], first["split"]) == (60, True)
    run_ranking(run_config, task, folder)
    assert json.loads((folder / "ranking.json").read_text()) == first


def test_a_search_without_its_supernet_is_refused(run_config, digits, tmp_path):
    with pytest.raises(RunError, match="no checkpoint of the pretrained supernet"):
        pretrained_supernet(run_config, digits, tmp_path)


def test_a_candidate_that_diverges_is_the_worst_and_no_failure(run_config, study, tmp_path):
    made = study()
    fitted = made.fit(made.random("share")[0], made.config.budgets[0])
    (tmp_path / "given.json").write_text(fitted.to_json())
    task = {"seed": 5, "epochs": 1, "held_out": 0.2, "split": "x"}
    wild = replace(run_config, train=replace(run_config.train, lr=1e30))
    run_trial(wild, task, tmp_path, lambda: False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["test_error"], metrics["diverged"]) == (100.0, True)
    assert metrics["test_loss"] is None


def test_a_diverged_candidate_is_kept_only_for_want_of_another():
    diverged = {"subject": "a", "validation_error": 100.0, "loss": None, "diverged": True}
    hopeless = {"subject": "b", "validation_error": 100.0, "loss": 2.4}
    better = {"subject": "c", "validation_error": 100.0, "loss": 2.3}
    assert best_trial([diverged, hopeless, better]) is better
    assert best_trial([diverged, {**diverged, "subject": "d"}]) is diverged


def test_a_trial_loads_its_images_once(run_config, study, tmp_path, monkeypatch):
    fitted = (made := study()).fit(made.random("share")[0], made.config.budgets[0])
    (tmp_path / "given.json").write_text(fitted.to_json())
    seeds = []

    def noted(config, seed):
        seeds.append(seed)
        return load_data(config, seed)

    for module in ("dsonas.commands.comparison.single_job", "dsonas.run.pipeline"):
        monkeypatch.setattr(f"{module}.load_data", noted)
    task = {"seed": 5, "epochs": 1, "held_out": 0.2, "split": "x"}
    run_trial(run_config, task, tmp_path, lambda: False)
    assert seeds == [run_config.seed]


@pytest.fixture
def begun(study, tmp_path):
    """The folder of a study, and the name of a job that needs nothing."""
    begin(tmp_path, study(), "seed: 0\n")
    return tmp_path, "train-random-share-000-at-30k-0"


def commanded(monkeypatch, work) -> list[list[str]]:
    """Let jobs call this rather than a command; the arguments of every call."""
    calls: list[list[str]] = []

    def command(name, arguments, stop, study):
        calls.append([name, *arguments])
        return work()

    monkeypatch.setattr("dsonas.commands.working.run", command)
    return calls


def test_a_job_imports_own_operations_and_writes_its_result(begun, run_config, monkeypatch):
    path, name = begun
    result = result_file(path, name)

    def work() -> int:
        (result.parent / "metrics.json").write_text('{"test_error": 3.0, "macs": 7}')
        return 0

    calls = commanded(monkeypatch, work)
    imports = ["--import=mine.py"]
    assert do_job(path, read_task(path, name), run_config, imports, StopSignal()) == 0
    assert calls[0][:2] == ["train", "--import=mine.py"]
    found = json.loads(result.read_text())
    assert (found["name"], found["test_error"], found["kind"]) == (name, 3.0, "train")
    assert found["core_seconds"] > 0
    assert do_job(path, read_task(path, name), run_config, imports, StopSignal()) == 0
    assert len(calls) == 1  # what is done is not done again


@pytest.mark.parametrize("ends", [130, ValueError("bad")])
def test_the_time_of_an_attempt_that_fails_counts(begun, run_config, monkeypatch, ends):
    path, name = begun

    def work() -> int:
        if isinstance(ends, ValueError):
            raise ends
        return ends

    commanded(monkeypatch, work)
    for _ in range(2):
        try:
            assert do_job(path, read_task(path, name), run_config, [], StopSignal()) == 130
        except ValueError as error:
            assert error is ends  # noqa: PT017
    attempts = json.loads(result_file(path, name).with_name("attempts.json").read_text())
    assert [attempt["exit_code"] for attempt in attempts] == [130 if ends == 130 else 1] * 2
    assert all(attempt["core_seconds"] > 0 for attempt in attempts)
    assert not result_file(path, name).exists()


HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1] + "/lock"):
    print("held", flush=True)
    time.sleep(1)
    open(sys.argv[1] + "/result.json", "w").write("{}")
"""


def test_a_job_that_another_process_does_is_waited_for(begun, run_config, monkeypatch):
    """As after the end of a study by SIGKILL, which leaves its jobs running."""
    path, name = begun
    folder = result_file(path, name).parent
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    calls = commanded(monkeypatch, lambda: 1)
    assert do_job(path, read_task(path, name), run_config, [], StopSignal()) == 0
    assert calls == []
    assert (folder / "result.json").exists()
    assert holder.wait() == 0
