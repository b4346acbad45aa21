"""`dsonas run` on a supernet of the user's own: files, resuming, report, export, refusals."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dsonas as package
from dsonas.run import RunFolder, StopSignal
from dsonas.search import Searcher
from helpers.reading_runs import check_readers

pytestmark = pytest.mark.slow

SPACE = """
import torch
from torch import nn

import dsonas


def conv(c):
    return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())


class Net(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        c, shared = 6, conv(6)
        inner = dsonas.LayerChoice((conv(c), nn.AvgPool2d(3, 1, 1)), label="inner")
        deep = {"deep": nn.Sequential(conv(c), inner), "skip": nn.Identity(), "none": dsonas.Zero()}
        self.stem = nn.LazyConv2d(c, 3, padding=1)
        self.layers = nn.ModuleList([dsonas.LayerChoice(deep, label="outer")])
        self.tied = nn.ModuleList([shared, shared])
        self.drop_path = nn.Dropout(0.2)  # a name that our own network has, too
        self.join = dsonas.InputChoice(3, keep=2)
        self.head = nn.Linear(c * (image_size // 2) ** 2, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = x + self.layers[0](x)
        z = self.tied[1](self.tied[0](y))
        x = nn.functional.max_pool2d(self.drop_path(self.join([x, y, z])), 2)
        return self.head(x.view(len(x), -1))
"""
OPTIONS = [
    "--data.max_train_images", 200, "--data.max_test_images", 60, "--batch_size", 16, "--epochs", 2,
    "--budget.params", "80%", "--engine.threads", 1,
]  # fmt: skip


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("space") / "my_space.py"
    file.write_text(SPACE)
    return file


def own(space: Path) -> list[object]:
    return ["--network.supernet", f"{space}:Net", *OPTIONS]


@pytest.fixture(scope="module")
def done(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dsonas.commands.cli import main

    folder = tmp_path_factory.mktemp("own") / "run"
    assert main(["run", *map(str, own(space)), "--out", str(folder)]) == 0
    return folder


def rows(folder: Path, stage: str) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["stage"] == stage]


def test_what_the_files_say_agrees(done: Path):
    metrics = json.loads((done / "metrics.json").read_text())
    choices = json.loads((done / "choices.json").read_text())
    last = rows(done, "search")[-1]
    weights = load_file(done / "network.safetensors")
    network, *_ = RunFolder(done).load_network()
    assert metrics["params"] == sum(p.numel() for p in network.parameters())
    assert metrics["params"] <= 0.8 * metrics["supernet_params"]
    assert metrics["live_connections"] == sum(map(len, choices.values()))
    assert int(last["live_connections"]) == metrics["live_connections"]
    assert int(last["macs"]) == metrics["macs"]
    assert metrics["supernet_connections"] == 8
    assert int(last["removed_by_penalty"]) + int(last["removed_by_budget"]) > 0
    assert weights.keys() == network.state_dict().keys()
    assert len(choices["join"]) <= 2
    assert not any(type(module).__module__.startswith("dsonas.") for module in network.modules())


def test_the_files_make_the_network_again_in_a_script(done: Path, space: Path):
    """As the page on own spaces says."""
    scope: dict = {"__name__": "space"}
    exec(compile(space.read_text(), space, "exec"), scope)
    model = scope["Net"](10, 1, 8)
    model(torch.zeros(2, 1, 8, 8))  # it has lazy modules
    found = package.apply_choices(model, json.loads((done / "choices.json").read_text()))
    found.load_state_dict(load_file(done / "network.safetensors"))
    network, *_ = RunFolder(done).load_network()
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(found.eval()(images), network(images))


def test_evaluate_predict_and_export_know_the_network(done, dsonas, digit_folder, tmp_path):
    run = tmp_path / "moved"  # the user's file is out of reach there
    shutil.copytree(done, run)
    pixels, logits = check_readers(run, done, dsonas, digit_folder())
    program = torch.export.load(run / "export" / "network.pt2").module()
    torch.testing.assert_close(program(pixels), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("every", [7, 23])
def test_interrupts_change_no_bit(done, space, dsonas, tmp_path, monkeypatch, every: int):
    """Whatever the user's model draws, such as dropout, follows from the number of the step."""
    polls = iter(range(1, 10**6))
    monkeypatch.setattr(StopSignal, "__call__", lambda self: next(polls) % every == 0)
    codes = []
    while not codes or codes[-1]:
        codes.append(dsonas("run", *own(space), "--out", tmp_path / "run").code)
        assert len(codes) < 60
    assert len(codes) > 2
    names = ("choices.json", "factors.csv", "network.safetensors", "predictions.csv")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


def test_a_search_is_trained_by_run(space, dsonas, done, tmp_path):
    ended = dsonas("search", *own(space), "--out", tmp_path / "run")
    assert ended.code == 0
    assert "join" in ended.out
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert dsonas("run", *own(space), "--out", tmp_path / "run").code == 0
    weights = [(run / "network.safetensors").read_bytes() for run in (tmp_path / "run", done)]
    assert weights[0] == weights[1]


def test_the_report_shows_choices_factors_cost_and_removals(done: Path):
    page = (done / "report.html").read_text()
    choices = json.loads((done / "choices.json").read_text())
    for label, names in choices.items():
        row = re.search(rf"<tr><th>{label}</th><td>(.*?)</td></tr>", page)
        assert re.findall("<b>(.*?)</b>", row[1]) == names
    assert "of the budget" in page
    for title in (
        "Live candidates",
        "Removed",
        "Parameters",
        "Scaling factors",
        "Confusion matrix",
    ):
        assert f"<h3>{title}</h3>" in page
    assert "--network.supernet supernet.py:Net" in page


def test_other_settings_are_refused_on_the_same_folder(done, space, dsonas, tmp_path):
    def refused(*changes: object) -> str:
        ended = dsonas("run", *own(space), *changes, "--out", done)
        assert ended.code == 2
        return ended.err

    assert "budget.params was '80%' and is 500" in refused("--budget.params", 500)
    assert "search.lr" in refused("--search.lr", 0.3)
    other = tmp_path / "my_space.py"
    other.write_text(SPACE)
    assert "network.supernet" in refused("--network.supernet", f"{other}:Net")
    changed = tmp_path / "run"
    shutil.copytree(done, changed)
    (changed / "supernet.py").write_text(SPACE + "# another\n")
    (changed / "metrics.json").unlink()
    ended = dsonas("run", *own(space), "--out", changed)
    assert ended.code == 2
    assert "has changed since" in ended.err


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("run", ["--budget.params", 5], "budget.params must be at least"),
        ("run", ["--budget.latency_ms", 1], "budget.latency_ms cannot bound a supernet of your"),
        ("run", ["--budget.memory_bytes", "1M"], "budget.memory_bytes cannot bound"),
        ("run", ["--train.auxiliary", 0.4], "train.auxiliary 0.4 is a part of our own network"),
        ("run", ["--train.drop_path", 0.1], "train.drop_path 0.1"),
        ("run", ["--pareto", 3], "without --pareto"),
        ("run", ["--network.transfer", "true"], "goes neither with"),
        ("train", ["--architecture", "x.json"], "goes neither with"),
        ("plan", [], "has no blocks of ours"),
        ("latency", [], "has no blocks of ours"),
        ("compare", [], "has no blocks of ours"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_before_any_training(
    space, dsonas, tmp_path, command, options, message
):
    where = ["--out", tmp_path / "run"] if command != "latency" else ["--out", tmp_path / "t.json"]
    ended = dsonas(command, *own(space), *options, *where)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert message in ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_alone_runs_no_code(done, dsonas, tmp_path):
    run = tmp_path / "given"
    shutil.copytree(done, run)
    source = run / "supernet.py"
    source.write_text(source.read_text() + "open(__file__ + '.ran', 'w')\n")
    (run / "evaluation.json").unlink()
    for command in (["evaluate", "--run", run], ["export", run], ["predict", "--run", run, "x"]):
        ended = dsonas(*command)
        assert ended.code == 2
        assert f"add --import {source}" in ended.err
    assert dsonas("report", run, "--out", tmp_path / "page.html").code == 0
    assert "--import" in (tmp_path / "page.html").read_text()
    assert not (run / "supernet.py.ran").exists()
    assert dsonas("evaluate", "--run", run, "--import", source).code == 0


def test_export_tells_what_it_cannot_write(done, dsonas):
    assert "holds our own blocks alone" in dsonas("export", done, "--format", "python").err
    assert "--fold knows our own blocks alone" in dsonas("export", done, "--fold").err


def test_code_is_named_on_the_command_line_alone(done, dsonas, tmp_path):
    config = yaml.safe_load((done / "config.yaml").read_text())
    assert config["network"]["supernet"].endswith("my_space.py:Net")
    ended = dsonas("run", "--config", done / "config.yaml", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "network.supernet" in ended.err
    assert "runs code" in ended.err


def test_the_search_is_that_of_the_searcher(done, monkeypatch, space, dsonas, tmp_path):
    """One search for all: every proximal step of the command is one of ``Searcher.step``."""
    count = []
    step = Searcher.step
    monkeypatch.setattr(Searcher, "step", lambda self, **k: (count.append(1), step(self, **k))[1])
    assert dsonas("search", *own(space), "--out", tmp_path / "run").code == 0
    assert len(count) == 2 * (100 // 16)
