"""`dsonas compress`: a trained model to a budget; files, resuming, report, export, refusals."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dsonas as package
from dsonas.run import StopSignal
from dsonas.run.network_files import RunError, Shape
from dsonas.run.user_models import LibraryModel, give_weights, named_model
from helpers.reading_runs import check_readers

pytestmark = pytest.mark.slow

SOURCE = """
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.na, self.nb = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(x + self.nb(self.b(F.relu(self.na(self.a(x))))))


def make_model(num_classes=3, in_channels=1):
    stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    return nn.Sequential(stem, Block(8), nn.Dropout(0.1), Block(8), *head)


def make_four():
    return make_model(4)
"""
OPTIONS = [
    "--data.image_size", 8, "--batch_size", 8, "--epochs", 2, "--budget.macs", "50%",
    "--engine.threads", 1,
]  # fmt: skip
Options = list[object]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my_file.py").write_text(SOURCE)
    torch.manual_seed(0)
    torch.save(made(folder, 3).state_dict(), folder / "weights.pt")
    return folder


def made(folder: Path, num_classes: int) -> torch.nn.Module:
    scope: dict = {"__name__": "mine"}
    exec(compile((folder / "my_file.py").read_text(), "my_file.py", "exec"), scope)
    return scope["make_model"](num_classes)


@pytest.fixture(scope="module")
def options(place: Path, digit_folder) -> Options:
    model = ["--model", place / "my_file.py:make_model", "--weights", place / "weights.pt"]
    return [*model, "--data.name", f"folder:{digit_folder()}", *OPTIONS]


@pytest.fixture(scope="module")
def done(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsonas.commands.cli import main

    folder = tmp_path_factory.mktemp("compressed") / "run"
    assert main(["compress", *map(str, options), "--out", str(folder)]) == 0
    return folder


def test_the_budget_is_held_and_the_files_agree(done: Path, place: Path):
    metrics = json.loads((done / "metrics.json").read_text())
    found = json.loads((done / "compressed.json").read_text())
    with open(done / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["search", "search", "train", "train"]
    assert metrics["macs"] <= 0.5 * metrics["supernet_macs"]
    assert metrics["macs"] == found["macs"] == int(rows[1]["macs"])
    network = package.load_model(done / "model", made(place, 3)).eval()
    assert metrics["params"] == sum(p.numel() for p in network.parameters())
    assert metrics["live_connections"] == sum(kept for kept, _ in found["left"].values())
    assert metrics["supernet_params"] == sum(p.numel() for p in made(place, 3).parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_search_begins_with_the_weights_given(options, dsonas, place, tmp_path):
    """With a learning rate of nothing, the biases of the classifier are those of the file."""
    still = ["--search.lr", 1e-12, "--train.lr", 1e-12]
    assert dsonas("compress", *options, *still, "--out", tmp_path / "run").code == 0
    network = package.load_model(tmp_path / "run" / "model", made(place, 3))
    given = torch.load(place / "weights.pt")["6.bias"]
    torch.testing.assert_close(network.state_dict()["6.bias"], given)
    assert not torch.equal(made(place, 3).state_dict()["6.bias"], given)


@pytest.mark.parametrize("every", [4, 9])
def test_interrupts_change_no_bit(done, options, dsonas, tmp_path, monkeypatch, every: int):
    polls = iter(range(1, 10**6))
    monkeypatch.setattr(StopSignal, "__call__", lambda self: next(polls) % every == 0)
    codes = []
    while not codes or codes[-1]:
        codes.append(dsonas("compress", *options, "--out", tmp_path / "run").code)
        assert len(codes) < 60
    assert len(codes) > 2
    names = ("compressed.json", "network.safetensors", "model/structure.json", "predictions.csv")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


def test_evaluate_predict_export_and_report_read_the_folder(done, dsonas, digit_folder, tmp_path):
    check_readers(done, done, dsonas, digit_folder())
    page = (done / "report.html").read_text()
    for label, (kept, whole) in json.loads((done / "compressed.json").read_text())["left"].items():
        assert f"<tr><th>{label}</th><td><b>{kept}</b> of {whole}</td></tr>" in page
    assert "Live branches and channels" in page
    assert "dsonas compress --config config.yaml --model model.py:make_model" in page


def test_a_folder_alone_runs_no_code(done, dsonas, tmp_path):
    run = tmp_path / "given"
    shutil.copytree(done, run)
    source = run / "model.py"
    source.write_text(source.read_text() + "open(__file__ + '.ran', 'w')\n")
    (run / "evaluation.json").unlink(missing_ok=True)
    for command in (["evaluate", "--run", run], ["export", run], ["predict", "--run", run, "x"]):
        ended = dsonas(*command)
        assert ended.code == 2
        assert f"add --import {source}" in ended.err
    again = dsonas("compress", "--config", run / "config.yaml", "--out", tmp_path / "again")
    assert "runs code" in again.err
    assert not (run / "model.py.ran").exists()
    assert dsonas("evaluate", "--run", run, "--import", source).code == 0


def test_another_run_is_refused_on_the_same_folder(done, options, dsonas, place, tmp_path):
    def refused(command: str, *given: object) -> str:
        ended = dsonas(command, *given, "--out", done)
        assert ended.code == 2
        return ended.err

    assert "budget.macs was '50%' and is '40%'" in refused(
        "compress", *options, "--budget.macs", "40%"
    )
    assert "model was" in refused("run", *options[4:])
    changed = tmp_path / "run"
    shutil.copytree(done, changed)
    (changed / "metrics.json").unlink()
    other = tmp_path / "weights.pt"
    shutil.copy(place / "weights.pt", other)
    ended = dsonas("compress", *options, "--weights", other, "--out", changed)
    assert "weights was" in ended.err
    before = (place / "weights.pt").read_bytes()
    try:
        torch.save(made(place, 3).state_dict(), place / "weights.pt")
        ended = dsonas("compress", *options, "--out", changed)
        assert ended.code == 2
        assert "has changed since" in ended.err
    finally:
        (place / "weights.pt").write_bytes(before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--budget.macs", 10], "budget.macs must be at least"),
        (["--budget.macs", "null"], "needs a budget: give --budget.macs 50%"),
        (["--budget.latency_ms", 1], "budget.latency_ms cannot bound a model of your own"),
        (["--model", "torchvision:resnet81"], "not known to torchvision: did you mean resnet18?"),
        (["--model", "torchvision:resnet18"], "the data have 1: save the"),
        (["--model", "resnet18"], "must be torchvision:NAME, timm:NAME or FILE.py:FUNCTION"),
        (["--model", "{place}/my_file.py:other"], "must name a function of that file"),
        (["--model", "{place}/my_file.py:make_four"], "got (2, 4): its last layer must have"),
        (["--weights", "{place}/none.pt"], "none.pt: No such file"),
        (["--weights", "{place}/my_file.py"], "must hold tensors by name"),
        (["--weights", "{place}/five.safetensors"], "of a classifier of 5 classes, but the data"),
        (["--weights", "{place}/less.pt"], "it lacks 6.bias; it has unknown head.bias"),
        (["--network.supernet", "a.py:b"], "not for dsonas compress"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_before_any_training(
    options, place, dsonas, tmp_path, given, message
):
    save_file(made(place, 5).state_dict(), place / "five.safetensors")
    state = made(place, 3).state_dict()
    state["head.bias"] = state.pop("6.bias")
    torch.save(state, place / "less.pt")
    given = [str(text).format(place=place) for text in given]
    ended = dsonas("compress", *options, *given, "--out", tmp_path / "run")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert message in ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_library_model_needs_weights_and_its_run_no_code(dsonas, digit_folder, tmp_path):
    model = ["--model", "torchvision:resnet18", "--data.name", f"folder:{digit_folder('RGB')}"]
    given = [*model, *OPTIONS, "--epochs", 1]
    ended = dsonas("compress", *given, "--out", tmp_path / "run")
    assert "--weights is required with --model torchvision:resnet18" in ended.err
    weights = tmp_path / "w.safetensors"
    save_file(LibraryModel("torchvision", "resnet18").model(Shape(8, 3, 3)).state_dict(), weights)
    assert dsonas("compress", *given, "--weights", weights, "--out", tmp_path / "run").code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["macs"] <= 0.5 * metrics["supernet_macs"]
    assert not (tmp_path / "run" / "model.py").exists()
    measured = json.loads(dsonas("evaluate", "--run", tmp_path / "run", "--json").out)
    assert measured["test_error"] == metrics["test_error"]


def test_a_model_of_torchvision_takes_its_own_weights(tmp_path: Path):
    named = named_model("torchvision:squeezenet1_1")
    assert named == LibraryModel("torchvision", "squeezenet1_1")
    first, second = (named.model(Shape(64, 3, 5)) for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "w.pt")
    give_weights(second, tmp_path / "w.pt", 5)
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_model_of_timm_without_timm(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(RunError, match="needs timm: python -m pip install timm"):
        named_model("timm:resnet18").model(Shape(64, 3, 5))
