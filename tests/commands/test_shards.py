"""``dsonas shards``, and runs on what it wrote."""

import json
import os
import shutil
import signal

import pytest
from torch.utils.data import get_worker_info

from dsonas.data import batches

pytestmark = pytest.mark.slow

SMALL = [
    "--data.image_size", "8", "--network.levels", "1", "--network.channels", "4",
    "--network.blocks", "[1]", "--pretrain.epochs", "1", "--search.epochs", "1",
    "--train.epochs", "2", "--pretrain.batch_size", "8", "--search.batch_size", "8",
    "--train.batch_size", "8", "--engine.threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(digit_folder):
    """Sixteen of each digit for training, four for the test."""
    root = digit_folder("L")
    for file in list(root.rglob("*.png")):
        part = root / ("val" if int(file.stem) % 5 == 4 else "train") / file.parent.name
        part.mkdir(parents=True, exist_ok=True)
        file.rename(part / file.name)
    for folder in root.glob("digit*"):
        folder.rmdir()
    return root


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    """Shards that the command wrote; not to be changed."""
    from dsonas.commands.cli import main

    out = tmp_path_factory.mktemp("shards") / "digits"
    assert main(["shards", str(images), str(out), "--images_per_shard", "5"]) == 0
    return out


def test_what_is_written_is_said(dsonas, images, tmp_path):
    ended = dsonas("shards", images, tmp_path / "out", "--workers", 2, "--size", 8)
    assert (ended.code, ended.err) == (0, "")
    first, second, last = ended.out.splitlines()
    assert first.startswith("val    12 images in 12 shards")
    assert second.startswith("train  48 images in 16 shards")
    assert last == f"use them by --data.name shards:{tmp_path}/out"


def test_what_is_not_written_is_said(dsonas, images, tmp_path, caplog):
    root = shutil.copytree(images, tmp_path / "images")
    shutil.copytree(root / "val", root / "test")
    for file in (root / "test").rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"other")
    (root / "train" / "digit0" / "00.png").rename(root / "train" / "digit0" / "no ending")
    ended = dsonas("shards", root, root / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "must be outside of the image folder" in ended.err
    assert not (root / "out").exists()
    ended = dsonas("shards", root, tmp_path / "out")
    assert ended.code == 0
    assert "val/ unused" in caplog.text
    run = dsonas("run", "--data.name", f"shards:{tmp_path}/out", *SMALL, "--out", tmp_path / "run")
    assert "48 training and 12 test images" in run.out
    assert "skipped" not in caplog.text


def test_a_whole_run_and_what_follows(dsonas, images, shards, tmp_path):
    run = tmp_path / "run"
    ended = dsonas("run", "--data.name", f"shards:{shards}", *SMALL, "--out", run)
    assert ended.code == 0, ended.err
    assert "48 training and 12 test images, 8x8x1, 3 classes" in ended.out
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["test_error"] <= 100
    assert (run / "report.html").is_file()
    measured = dsonas("evaluate", "--run", run, "--json")
    assert json.loads(measured.out)["test_error"] == metrics["test_error"]
    predicted = dsonas("predict", "--run", run, images)
    assert len(predicted.out.splitlines()) == 60
    assert {line.split("\t")[1] for line in predicted.out.splitlines()} <= {
        "digit0", "digit1", "digit2",
    }  # fmt: skip


def test_shards_that_were_written_anew_are_said(dsonas, images, shards, tmp_path, caplog):
    place, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, place)
    assert dsonas("run", "--data.name", f"shards:{place}", *SMALL, "--out", run).code == 0
    commands = [["evaluate", "--run", run], ["export", run, "--format", "python"]]
    moved = place.rename(tmp_path / "moved")
    elsewhere = dsonas(*commands[0], "--data.name", f"shards:{moved}")
    assert elsewhere.code == 0
    shutil.copytree(moved, place)
    for command in commands:
        assert dsonas(*command).code == 0
    assert "shards" not in caplog.text
    root = shutil.copytree(images, tmp_path / "images")
    shutil.copy(root / "train" / "digit0" / "00.png", root / "val" / "digit0" / "more.png")
    shutil.rmtree(place)
    assert dsonas("shards", root, place).code == 0
    for command in commands:
        caplog.clear()
        assert dsonas(*command).code == 0
        assert f"{place} holds other shards than those of the run: which of its" in caplog.text


def test_workers_change_no_result(dsonas, shards, tmp_path):
    results = []
    for workers in (0, 2):
        run = tmp_path / f"run{workers}"
        options = ["--data.workers", workers, "--seed", 3]
        ended = dsonas("run", "--data.name", f"shards:{shards}", *SMALL, *options, "--out", run)
        assert ended.code == 0, ended.err
        results.append((run / "network.safetensors").read_bytes())
    assert results[0] == results[1]


def assert_one_line(ended, text):
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith("dsonas: error: ")
    assert text in ended.err


def test_a_dead_worker_ends_a_run_in_one_line(dsonas, shards, tmp_path, monkeypatch):
    read = batches._Parts.__iter__

    def killed(parts):
        for number, item in enumerate(read(parts)):
            if number and get_worker_info().id:
                os.kill(os.getpid(), signal.SIGKILL)  # as a system does that is out of memory
            yield item

    monkeypatch.setattr(batches._Parts, "__iter__", killed)
    options = [*SMALL, "--data.workers", 2, "--out", tmp_path / "run"]
    ended = dsonas("run", "--data.name", f"shards:{shards}", *options)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "a process that reads images has died" in ended.err
    assert "lower data.workers" in ended.err
    monkeypatch.undo()
    assert dsonas("run", "--data.name", f"shards:{shards}", *options).code == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--images_per_shard", "0"], "images_per_shard must be a whole number > 0, got '0'"),
        (["--size", "x"], "size must be a whole number"),
        (["--size", "3"], "size must be a whole number >= 4 or null, got '3'"),
        (["--workers", "0"], "workers must be a whole number > 0, got '0'"),
        (["--sizes", "8"], "did you mean --size"),
    ],
)
def test_wrong_options(dsonas, images, tmp_path, options, text):
    assert_one_line(dsonas("shards", images, tmp_path / "out", *options), text)


def test_what_is_missing_is_named(dsonas, images):
    assert_one_line(dsonas("shards"), "folder is required: give it")
    assert_one_line(dsonas("shards", images), "out is required: give it")


def test_wrong_places(dsonas, images, shards, tmp_path):
    assert_one_line(dsonas("shards", tmp_path / "nowhere", tmp_path / "out"), "not found")
    assert_one_line(dsonas("shards", images, shards), "is not empty")
    place = f"shards:{tmp_path}"
    assert_one_line(dsonas("run", "--data.name", place), "no index of shards")


def test_a_truncated_shard_ends_a_run_in_one_line(dsonas, shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "copy")
    shard = copy / "train" / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    ended = dsonas("run", "--data.name", f"shards:{copy}", *SMALL, "--out", tmp_path / "run")
    assert_one_line(ended, "copy it again")
