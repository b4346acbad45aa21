"""What a run leaves behind: the files, their agreement, and that one seed fixes them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder

pytestmark = pytest.mark.slow


def read_metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def same_result(one: Path, other: Path) -> bool:
    """Whether two runs have the same architecture file and, bit by bit, the same weights."""
    if (one / "architecture.json").read_bytes() != (other / "architecture.json").read_bytes():
        return False
    first, second = (load_file(run / "network.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


def test_the_files_of_the_contract_are_there(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml", "log.csv", "checkpoints",
        "architecture.json", "network.safetensors", "metrics.json",
    }  # fmt: skip
    assert not [path for path in finished.rglob("*") if path.name.endswith(".tmp")]


def count_connections(file: Path) -> int:
    """Those that a search can remove: level 1 always reads the input of its block."""
    value = json.loads(file.read_text())
    count = sum(map(len, value["reductions"]))
    for block in value["blocks"]:
        deeper = [
            sources
            for node, sources in block["operations"].items()
            if int(node) > len(value["operations"])
        ]
        count += sum(map(len, [*deeper, block["output"]]))
    return count


def test_metrics_agree_with_the_network(finished):
    metrics = read_metrics(finished)
    architecture = Architecture.load(finished / "architecture.json")
    cost = architecture_cost(architecture)
    network, *_ = RunFolder(finished).load_network()
    assert metrics["macs"] == cost.macs
    assert metrics["params"] == cost.params == sum(p.numel() for p in network.parameters())
    assert metrics["live_connections"] == count_connections(finished / "architecture.json")
    assert metrics["live_connections"] < metrics["supernet_connections"]
    assert 0 <= metrics["test_error"] <= 100
    assert metrics["seed"] == 0
    assert metrics["skipped_images"] == 0
    assert metrics["search_seconds"] > 0 < metrics["train_seconds"]
    assert {"dsonas", "torch", "torchvision", "python"} <= metrics["versions"].keys()


def test_the_config_is_complete(finished):
    values = yaml.safe_load((finished / "config.yaml").read_text())
    wanted = RunConfig().groups()
    assert {k: set(v) if isinstance(v, dict) else v for k, v in values.items()} == {
        k: set(v) if isinstance(v, dict) else v for k, v in wanted.items()
    }


def test_the_log_has_a_line_for_every_epoch(finished):
    with open(finished / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stages = [(row["stage"], row["epoch"]) for row in rows]
    assert stages == [
        ("pretrain", "1"), ("search", "1"), ("search", "2"), ("train", "1"), ("train", "2"),
    ]  # fmt: skip
    assert all(float(row["loss"]) > 0 for row in rows)
    assert float(rows[-1]["test_error"]) == pytest.approx(read_metrics(finished)["test_error"])


def test_a_finished_run_says_so_and_changes_nothing(dsonas, tiny, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    ended = dsonas("run", *tiny, "--out", finished, "--engine.device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    assert f"the run in {finished} is finished" in ended.out
    assert f"test error {read_metrics(finished)['test_error']:.2f} %" in ended.out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_one_seed_fixes_everything(dsonas, tiny, finished, tmp_path):
    assert dsonas("run", *tiny, "--out", tmp_path / "same").code == 0
    assert dsonas("run", *tiny, "--seed", 1, "--out", tmp_path / "other").code == 0
    assert same_result(tmp_path / "same", finished)
    assert not same_result(tmp_path / "other", finished)


def test_the_stored_config_repeats_the_run(dsonas, finished, tmp_path):
    config = ["--config", finished / "config.yaml"]
    assert dsonas("run", *config, "--out", tmp_path / "again").code == 0
    assert same_result(tmp_path / "again", finished)


def test_a_run_of_an_earlier_dsonas_can_be_used_but_not_resumed(dsonas, tiny, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    data, search = settings["data"], settings["search"]
    data |= {"lambda_fraction": data.pop("factor_split"), "path": None, "memory_limit": 2**31}
    data |= {"crop_padding": None, "crop_area": None, "jitter": 0.0}
    del data["augment"]
    search |= {"structure": search.pop("keep_cost"), "connections": search.pop("keep_connections")}
    search |= {"reached_at": search.pop("hold_from"), "rank": "loss", "thrift": 1.0, "clip": 2.0}
    settings["train"] |= {"lr_min": 0.0, "evaluate_every": 5, "clip": None}
    settings["engine"] |= {"timeout_seconds": 600.0, "latency_batch": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    measured = [dsonas("evaluate", "--run", folder).out for folder in (run, finished)]
    assert measured[0] == measured[1] != ""
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    assert dsonas("predict", "--run", run, image).code == 0
    assert dsonas("report", run, "--out", tmp_path / "report.html").code == 0
    assert dsonas("export", run, "--format", "pt2").code == 0
    ended = dsonas("run", *tiny, "--out", run)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "a run of an earlier dsonas" in ended.err
    assert "search.keep_cost now" in ended.err or "data.factor_split now" in ended.err


def test_search_then_train_equals_run(dsonas, tiny, finished, tmp_path):
    """In two folders, in one folder, and the search again says that it is finished."""
    search, train = tmp_path / "search", tmp_path / "train"
    assert dsonas("search", *tiny, "--out", search).code == 0
    again = dsonas("search", *tiny, "--out", search)
    assert (again.code, "is finished" in again.out) == (0, True)
    for out in (train, search):
        file = ["--architecture", search / "architecture.json"]
        assert dsonas("train", *tiny, *file, "--out", out).code == 0
        assert same_result(out, finished)
        assert dsonas("evaluate", "--run", out).code == 0
    metrics = read_metrics(train)
    assert metrics["supernet_connections"] == read_metrics(finished)["supernet_connections"]


def test_training_another_architecture_in_a_run_is_refused(dsonas, tiny, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.json").unlink()
    value = json.loads((finished / "architecture.json").read_text())
    value["skeleton"]["channels"] = [2, 4]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(value))
    ended = dsonas("train", *tiny, "--architecture", other, "--out", run)
    assert (ended.code, "holds a run" in ended.err) == (2, True)


def test_a_run_is_not_mistaken_for_a_training(dsonas, tiny, finished, tmp_path):
    file = ["--architecture", finished / "architecture.json"]
    assert dsonas("train", *tiny, *file, "--out", tmp_path / "run").code == 0
    ended = dsonas("run", *tiny, "--out", tmp_path / "run")
    assert (ended.code, "architecture was" in ended.err) == (2, True)


@pytest.mark.parametrize("space", ["share", "full"])
def test_the_budget_is_met(dsonas, tiny, tmp_path, space):
    limits = ["--budget.macs", "12k", "--budget.params", 900, "--search.space", space]
    assert dsonas("run", *tiny, *limits, "--out", tmp_path / "run").code == 0
    metrics = read_metrics(tmp_path / "run")
    assert metrics["macs"] <= 12000
    assert metrics["params"] <= 900


def test_evaluate_reproduces_the_test_error(dsonas, finished):
    metrics = read_metrics(finished)
    ended = dsonas("evaluate", "--run", finished)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"test error {metrics['test_error']} %")
    assert f"test loss {metrics['test_loss']}  balanced accuracy " in ended.out
    measured = json.loads(dsonas("evaluate", "--run", finished, "--json").out)
    assert measured.pop("images") == 50
    assert {"test_error", "test_loss", "balanced_accuracy"} <= measured.keys()
    assert measured == {name: metrics[name] for name in measured}


def test_evaluate_can_look_elsewhere(dsonas, finished):
    ended = dsonas("evaluate", "--run", finished, "--engine.device", "nonsense")
    assert (ended.code, "engine.device" in ended.err) == (2, True)
    ended = dsonas("evaluate", "--run", finished, "--data.max_test_images", 20, "--json")
    assert json.loads(ended.out)["test_error"] % 5 == 0


def test_piped_output_is_plain(start, tiny, tmp_path):
    process = start("run", *tiny, "--out", tmp_path / "run")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.isprintable() or set(c for c in out if not c.isprintable()) == {"\n"}
    assert max(map(len, out.splitlines())) < 200
    for line in ("1 pretrain", "2 search", "3 train", "level 1", "test error"):
        assert line in out


def test_an_architecture_beyond_the_budget_is_not_trained(dsonas, tiny, finished, tmp_path):
    macs = read_metrics(finished)["macs"]
    command = ["train", *tiny, "--out", tmp_path / "run", "--architecture"]
    given = [*command, finished / "architecture.json", "--budget.macs"]
    ended = dsonas(*given, macs - 1)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"budget.macs must be at least {macs}, what " in ended.err
    assert "give the chain.json beside it" in ended.err
    assert not (tmp_path / "run").exists()
    ended = dsonas(*command, finished)
    assert (ended.code, "is a folder: give an architecture.json" in ended.err) == (2, True)
    assert dsonas(*given, macs).code == 0


def test_an_interrupted_training_resumes_to_the_same_result(
    dsonas, tiny, finished, tmp_path, monkeypatch
):
    from dsonas.run.interrupts import StopSignal

    run, calls = tmp_path / "run", iter(range(1000))
    command = ["train", *tiny, "--architecture", finished / "architecture.json", "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda self: next(calls) == 15)
        assert dsonas(*command).code == 130
    other = json.loads((finished / "architecture.json").read_text())
    other["skeleton"]["channels"] = [2, 4]
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused = dsonas("train", *tiny, "--architecture", tmp_path / "other.json", "--out", run)
    assert (refused.code, "holds a run" in refused.err) == (2, True)
    assert dsonas(*command).code == 0
    assert same_result(run, finished)


def test_a_training_that_ends_early_resumes_to_the_same_result(
    dsonas, tiny, finished, tmp_path, monkeypatch
):
    """Interrupted before, at and after its best epoch, more than once."""
    from dsonas.run.interrupts import StopSignal

    options = ["--data.val", 0.3, "--train.patience", 2, "--train.epochs", 30, "--train.lr", 0.3,
               "--engine.checkpoint_seconds", 0]  # fmt: skip
    command = ["train", *tiny, "--architecture", finished / "architecture.json", *options]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert dsonas(*command, "--out", whole).code == 0
    best, epochs = (
        read_metrics(whole)["best_epoch"],
        len((whole / "log.csv").read_text().split()) - 1,
    )
    assert epochs == best + 2 < 30
    codes, steps = [], 8 * epochs // 5  # of 8 batches an epoch
    for _ in range(4):
        calls = iter(range(10**6))
        with monkeypatch.context() as patch:
            patch.setattr(StopSignal, "__call__", lambda self, n=steps, c=calls: next(c) == n - 1)
            codes.append(dsonas(*command, "--out", run).code)
    codes.append(dsonas(*command, "--out", run).code)
    assert codes == [130, 130, 130, 130, 0]
    assert same_result(run, whole)
    assert read_metrics(run)["best_epoch"] == best
    rows = [(row[:-1]) for row in csv.reader((run / "log.csv").open())]
    assert rows == [(row[:-1]) for row in csv.reader((whole / "log.csv").open())]


def test_a_search_that_begins_again_forgets_an_older_result(dsonas, tiny, tmp_path, monkeypatch):
    from dsonas.run.interrupts import StopSignal

    run, calls = tmp_path / "run", iter(range(1000))
    assert dsonas("search", *tiny, "--out", run).code == 0
    shutil.rmtree(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda self: next(calls) == 9)
        assert dsonas("search", *tiny, "--out", run).code == 130
    ended = dsonas("search", *tiny, "--out", run)
    assert "resuming search" in ended.out
