"""The walk-through: its page and its script say the same, and what they say works (smaller)."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dsonas.commands.cli import main
from helpers.browser import Browser, chromium
from helpers.pages import ROOT, arguments, blocks, shell_lines

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "walkthrough.md"
SCRIPT = ROOT / "examples" / "walkthrough.sh"
CLASSIFY = ROOT / "examples" / "walkthrough_classify.py"
IMAGES = [f"my_images/{name}/000.png" for name in ("zero", "one", "two")]
SMALLER = (
    "--data.max_train_images 60 --data.max_test_images 30 --network.levels 2 --network.channels 4 "
    "--pretrain.epochs 1 --search.epochs 1 --train.epochs 2 --pretrain.batch_size 16 "
    "--search.batch_size 16 --train.batch_size 16 --engine.threads 1"
)


def said() -> list[str]:
    """The commands of the page."""
    return [line for block in blocks(PAGE, "bash") for line in shell_lines(block.code)]


def test_the_script_does_what_the_page_says():
    preamble, *done = shell_lines(SCRIPT.read_text(encoding="utf-8"))[1:]
    assert preamble == 'cd "$(dirname "$0")/.."'
    assert done == said()


def test_the_page_shows_the_program_that_classifies():
    (shown,) = (block.code for block in blocks(PAGE, "python"))
    assert shown == CLASSIFY.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the commands were run, but for the set-up, and what they printed."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "examples").symlink_to(ROOT / "examples")
    lines = [line for line in said() if not line.startswith(("make ", "source "))]
    assert len(said()) - len(lines) == 2
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        for line in lines:
            _run(line)
    return folder, printed.getvalue()


def _run(line: str) -> None:
    """A command of the page; those of dsonas in this process, which saves a start of torch each."""
    program, *words = shlex.split(line)
    if program == "dsonas":
        assert main([*words, *SMALLER.split()] if words[0] == "run" else words) == 0
    else:
        assert program == "python"
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        print(done.stdout, end="")


def test_there_are_three_classes_of_images(walked: tuple[Path, str]):
    folder, out = walked
    assert {path.name for path in (folder / "my_images").iterdir()} == {"zero", "one", "two"}
    assert len(list((folder / "my_images").rglob("*.png"))) == 537
    assert re.search(r"images, 16x16x1, 3 classes", out)


def test_the_exported_file_alone_says_what_the_run_says(
    walked: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, out = walked
    program = (
        "import runpy, sys; sys.modules |= {'torch': None, 'torchvision': None, 'dsonas': None}; "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    model = "runs/mine/export/network.onnx"
    alone = subprocess.run(
        [sys.executable, "-c", program, str(CLASSIFY), model, *IMAGES],
        cwd=folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert alone in out
    monkeypatch.chdir(folder)
    assert main(["predict", "--run", "runs/mine", *IMAGES]) == 0
    expected = capsys.readouterr().out.splitlines()
    assert len(expected) == 3
    for line, other in zip(alone.splitlines(), expected, strict=True):
        (*same, probability), (*name, value) = line.split("\t"), other.split("\t")
        assert same == name
        assert float(probability) == pytest.approx(float(value), abs=2e-4)


def test_the_budget_is_met(walked: tuple[Path, str]):
    macs = int(re.search(r'"macs": (\d+)', (walked[0] / "runs/mine/metrics.json").read_text())[1])
    (run,) = (line for line in said() if line.startswith("dsonas run "))
    words = arguments(run, "dsonas") or []
    bound = words[words.index("--budget.macs") + 1]
    assert 0 < macs <= int(bound.replace("k", "000"))


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_the_report_opens(walked: tuple[Path, str], tmp_path: Path):
    with Browser(tmp_path / "profile") as page:
        page.resize(1280, 900)
        page.open(walked[0] / "runs" / "mine" / "report.html")
        assert page.problems == []
        assert "test error" in page.run("document.querySelector('h1').textContent")
        assert page.run("document.querySelectorAll('svg.block').length") > 0
