"""``--log.trackers``: whole runs, resumed ones, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from dsonas.run import tracking
from dsonas.run.tracking import TOOLS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_tracked_run_is_the_same_run(dsonas, tiny, finished, tmp_path: Path):
    """First the search with one tracker, then the rest with all: as if it were one command."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert dsonas("search", *tiny, "--out", out, "--log.trackers", "tensorboard").code == 0
    ended = dsonas("run", *tiny, "--out", out, "--log.trackers", "[tensorboard,wandb,mlflow]")
    assert ended.code == 0
    weights = [run / "network.safetensors" for run in (out, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    with open(out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = EventAccumulator(str(out / "tensorboard")).Reload()
    for step, row in enumerate(rows, 1):
        (event,) = [e for e in found.Scalars(f"{row['stage']}/loss") if e.step == step]
        assert event.value == pytest.approx(float(row["loss"]))
    metrics = json.loads((out / "metrics.json").read_text())
    assert found.Scalars("final/macs")[-1].value == metrics["macs"]

    known = json.loads((out / "trackers.json").read_text())
    counts = {name: one["rows"] for name, one in known.items()}
    assert counts == dict.fromkeys(TOOLS, len(rows))
    (written,) = out.glob(f"wandb/offline-run-*/run-{known['wandb']['id']}.wandb")
    assert b"train/loss" in written.read_bytes()
    copies = sorted(path.name for path in (written.parent / "files" / "dsonas").iterdir())
    assert {"architecture.json", "report.html", "metrics.json"} <= {*copies}
    assert (out / "mlflow" / "mlflow.db").stat().st_size > 0


def test_a_finished_run_is_given_to_a_tracker_that_comes_later(dsonas, tiny, finished, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for _ in range(2):
        ended = dsonas("run", *tiny, "--out", out, "--log.trackers", "tensorboard")
        assert (ended.code, "is finished" in ended.out) == (0, True)
    found = EventAccumulator(str(out / "tensorboard")).Reload()
    assert len(found.Scalars("final/macs")) == 1
    assert found.Scalars("train/loss")


def test_an_absent_package_is_refused_before_anything(dsonas, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    out = tmp_path / "run"
    ended = dsonas("run", *tiny, "--out", out, "--log.trackers", "mlflow")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert 'pip install "dsonas[mlflow]"' in ended.err
    assert not out.exists()


def test_a_broken_tracker_does_not_end_a_run(dsonas, tiny, tmp_path, monkeypatch, caplog):
    def broken(*given):
        raise RuntimeError("the server is on fire")

    monkeypatch.setitem(TOOLS, "wandb", broken)
    out = tmp_path / "run"
    assert dsonas("search", *tiny, "--out", out, "--log.trackers", "wandb").code == 0
    assert (out / "architecture.json").exists()
    said = [r.getMessage() for r in caplog.records if "on fire" in r.getMessage()]
    assert len(said) == 1


def test_an_unknown_tracker_is_refused(dsonas):
    ended = dsonas("run", "--log.trackers", "neptune")
    assert ended.code == 2
    assert "log.trackers must be names out of tensorboard, wandb, mlflow" in ended.err
