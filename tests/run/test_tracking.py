"""Trackers get the log, the settings, the result and the files, and never harm a run."""

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from dsonas.graph.spaces import cifar_space
from dsonas.run import tracking
from dsonas.run.run_config import TRACKERS, LogConfig, RunConfig
from dsonas.run.runs import RunFolder
from dsonas.run.tracking import TOOLS, MLflow, Tracking, require_trackers
from dsonas.train.loop import Row

pytestmark = pytest.mark.slow

ROWS: list[Row] = [
    {"stage": "pretrain", "epoch": 1, "loss": 2.0, "error": 90.0},
    {"stage": "search", "epoch": 1, "loss": 1.5, "error": 70.0, "macs": 1000},
    {"stage": "train", "epoch": 1, "loss": 0.5, "error": 10.0, "lr": 0.1},
]
LOSSES = {"pretrain/loss": (1, 2.0), "search/loss": (2, 1.5), "train/loss": (3, 0.5)}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder as it is at the end of a run, except for its log."""
    folder = RunFolder(tmp_path / "run")
    folder.write("config.yaml", "seed: 0\n")
    folder.write("architecture.json", cifar_space(channels=4).complete().to_json())
    folder.write_metrics({"test_error": 2.5, "macs": 900, "seed": 0, "device": "cpu"})
    return folder


def tracked(folder: RunFolder, *names: str) -> Tracking:
    return Tracking(RunConfig(log=LogConfig(trackers=names)), folder)


def interrupted_and_resumed(folder: RunFolder, name: str) -> str:
    """Track two rows, end, then go on; returns the id of the run."""
    first = tracked(folder, name)
    first.write(ROWS[:2])
    first.close(finished=False)
    folder.last_checkpoint = {"rows": ROWS[:2]}
    identity = json.loads((folder.path / "trackers.json").read_text())[name]["id"]
    with tracked(folder, name) as second:
        second.write(ROWS)
        assert second.names == [name]
    after = json.loads((folder.path / "trackers.json").read_text())
    assert (after[name]["id"], after[name]["rows"]) == (identity, 3)
    return identity


def events(folder: RunFolder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder.path / "tensorboard")).Reload()


def test_tensorboard_reads_back_what_was_tracked(folder):
    interrupted_and_resumed(folder, "tensorboard")
    found = events(folder)
    for tag, (step, value) in LOSSES.items():
        assert [(e.step, e.value) for e in found.Scalars(tag)] == [(step, value)]
    assert found.Scalars("final/test_error")[-1].value == 2.5
    assert "final/seed" not in found.Tags()["scalars"]
    texts = {tag: str(found.Tensors(tag)[-1].tensor_proto) for tag in found.Tags()["tensors"]}
    assert "train.lr: 0.1" in texts["settings/text_summary"]


def test_rows_that_a_run_repeats_replace_the_old_ones(folder):
    with tracked(folder, "tensorboard") as first:
        first.write(ROWS)
    again = [ROWS[0], {**ROWS[1], "loss": 9.0}]  # the search diverged and was repeated
    folder.last_checkpoint = {"rows": ROWS[:1]}
    with tracked(folder, "tensorboard") as second:
        second.write(again)
    found = events(folder)
    assert [e.value for e in found.Scalars("pretrain/loss")] == [2.0]
    assert [(e.step, e.value) for e in found.Scalars("search/loss")] == [(2, 9.0)]
    assert found.Scalars("train/loss") == []


def records(path: Path) -> Iterator:
    """The records of a wandb file: blocks of 32 KiB that hold pieces with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place < len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def written(files: list[Path]) -> list:
    """The records of wandb files, once its own process has written the end of each."""
    for _ in range(60):
        found = [list(records(file)) for file in files]
        if all(any(r.WhichOneof("record_type") == "exit" for r in each) for each in found):
            break
        time.sleep(0.5)
    return [record for each in found for record in each]


def key(item) -> str:
    return item.key or "/".join(item.nested_key)


def test_wandb_keeps_one_offline_run(folder, caplog):
    identity = interrupted_and_resumed(folder, "wandb")
    assert not caplog.messages, "a tracker that fails is left out with a warning"
    files = sorted(folder.path.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    found = written(files)
    history = [r.history for r in found if r.WhichOneof("record_type") == "history"]
    values = {
        key(item): (one.step.num, json.loads(item.value_json))
        for one in history
        for item in one.item
    }
    assert {tag: values[tag] for tag in LOSSES} == LOSSES
    runs = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {identity}
    settings = {key(item): json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["train.lr"] == 0.1
    summary = {
        key(item): json.loads(item.value_json)
        for r in found
        if r.WhichOneof("record_type") == "summary"
        for item in r.summary.update
    }
    assert summary["final/test_error"] == 2.5
    copies = files[-1].parent / "files" / "dsonas"
    assert (copies / "architecture.json").read_bytes() == (
        folder.path / "architecture.json"
    ).read_bytes()


def test_wandb_obeys_its_environment(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tracked(folder, "wandb") as one:
        one.write(ROWS)
        assert one.names == ["wandb"]
    assert not (folder.path / "wandb").exists()


def test_mlflow_reads_back_what_was_tracked(folder):
    identity = interrupted_and_resumed(folder, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("dsonas")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (identity, "FINISHED")
    for tag, expected in LOSSES.items():
        assert [(m.step, m.value) for m in client.get_metric_history(identity, tag)] == [expected]
    assert run.data.metrics["final/test_error"] == 2.5
    assert run.data.params["train.lr"] == "0.1"
    assert run.data.params["network.blocks"] == "1, 1, 1"
    names = {file.path for file in client.list_artifacts(identity)}
    assert {"architecture.json", "config.yaml", "metrics.json"} <= names
    assert (folder.path / "mlflow" / "artifacts").is_dir()


def test_a_server_of_mlflow_that_is_not_there_is_given_up_soon(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    code = "import sys; from pathlib import Path; from dsonas.run.tracking import MLflow; "
    command = [sys.executable, "-c", code + "MLflow(Path(sys.argv[1]), {}, None, 0)", folder.path]
    plain = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    began = time.monotonic()
    done = subprocess.run(
        command, env={**plain, "MLFLOW_TRACKING_URI": address}, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert time.monotonic() - began < 60
    assert "Retrying" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mlflow.exceptions.MlflowException")


def test_mlflow_tells_nothing_of_its_tables(folder):
    code = "import sys; from pathlib import Path; from dsonas.run.tracking import MLflow; "
    command = [sys.executable, "-c", code + "MLflow(Path(sys.argv[1]), {}, None, 0)", folder.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


def test_mlflow_obeys_its_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    MLflow(folder.path, {}, None, 0)
    assert (tmp_path / "elsewhere.db").exists()
    assert not (folder.path / "mlflow").exists()


class Fake:
    """A tracker in memory, which fails when it is told to."""

    def __init__(self, folder, settings, id, rows, fails: str = "") -> None:
        self.id, self.given, self.fails, self.calls = "fake", (id, rows), fails, []
        self._do("open")

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise OSError(f"no room to {what}")
        self.calls.append(what)

    def log(self, step, values):
        self._do("log")

    def close(self, files, *, finished):
        self._do("close")


@pytest.mark.parametrize("fails", ["open", "log", "close"])
def test_a_tracker_that_fails_is_left_out(folder, monkeypatch, caplog, fails):
    monkeypatch.setitem(TOOLS, "wandb", lambda *given: Fake(*given, fails))
    monkeypatch.setitem(TOOLS, "mlflow", Fake)
    with caplog.at_level(logging.WARNING), tracked(folder, "wandb", "mlflow") as both:
        both.write(ROWS[:1])
        other = both._live["mlflow"]
        both.write(ROWS)
    assert both.names == ["mlflow"]
    assert other.calls == ["open", "log", "log", "log", "log", "close"]
    assert len(caplog.records) == 1
    assert f"no room to {fails}" in caplog.records[0].getMessage()


def test_a_tracker_that_comes_later_gets_every_row(folder, monkeypatch):
    monkeypatch.setitem(TOOLS, "wandb", Fake)
    monkeypatch.setitem(TOOLS, "mlflow", Fake)
    with tracked(folder, "wandb") as first:
        first.write(ROWS[:2])
    second = tracked(folder, "wandb", "mlflow")
    second.write(ROWS)
    old, new = second._live["wandb"], second._live["mlflow"]
    assert (old.given, new.given) == (("fake", 2), (None, 0))
    assert (old.calls.count("log"), new.calls.count("log")) == (1, 3)


def test_a_finished_run_is_given_to_trackers_that_lack_a_part(folder, monkeypatch, caplog):
    made = []

    def make(*given):
        made.append(Fake(*given))
        return made[-1]

    for name in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(TOOLS, name, make)
    folder.last_checkpoint = {"rows": ROWS}
    with tracked(folder, "tensorboard"):
        pass
    stopped = tracked(folder, "wandb")
    stopped.write(ROWS[:2])
    stopped.close(finished=False)
    del made[:]
    for _ in range(2):
        tracked(folder, "tensorboard", "wandb", "mlflow").complete()
    assert [(one.given, one.calls.count("log")) for one in made] == [
        (("fake", 2), 2), ((None, 0), 4),
    ]  # fmt: skip
    folder.write("trackers.json", "{")
    tracked(folder, "wandb").complete()
    assert (len(caplog.records), len(made)) == (1, 2)


def test_damaged_memory_only_ends_the_tracked(folder, monkeypatch, caplog):
    monkeypatch.setitem(TOOLS, "wandb", Fake)
    folder.write("trackers.json", "{")
    with tracked(folder, "wandb") as one:
        one.write(ROWS)
    assert one.names == []
    assert len(caplog.records) == 1


def test_a_process_that_does_not_write_leaves_nothing(folder, monkeypatch):
    monkeypatch.setitem(TOOLS, "wandb", Fake)
    before = sorted(folder.path.iterdir())
    with Tracking(RunConfig(log=LogConfig(trackers="wandb")), folder, writes=False) as silent:
        silent.write(ROWS)
    assert sorted(folder.path.iterdir()) == before


def test_tracking_draws_no_random_numbers(folder):
    before = torch.get_rng_state()
    interrupted_and_resumed(folder, "tensorboard")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("spec", [None, ModuleSpec("a folder", None)])
def test_an_absent_package_is_named_with_its_extra(folder, monkeypatch, name, spec):
    monkeypatch.setattr(tracking, "find_spec", lambda _: spec)
    with pytest.raises(ValueError, match=rf'pip install "dsonas\[{name}\]"'):
        tracked(folder, name)
    require_trackers(LogConfig())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ()),
        ("", ()),
        ("wandb", ("wandb",)),
        ("wandb, mlflow", ("wandb", "mlflow")),
        ("[tensorboard,wandb]", ("tensorboard", "wandb")),
        (["mlflow", "mlflow"], ("mlflow",)),
    ],
)
def test_values_of_log_trackers(given, expected):
    assert LogConfig(trackers=given).trackers == expected


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match=r"log\.trackers must be names out of .*, got 'neptune'"):
        LogConfig(trackers="neptune")
