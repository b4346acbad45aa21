"""``dsonas export``: what it prints, what it refuses, and that the page about it is right."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from dsonas.commands.exporting import formats

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def test_a_line_for_every_file(dsonas, run: Path):
    ended = dsonas("export", run, "--format", "pt2", "--format", "python,pt2")
    assert (ended.code, ended.err) == (0, "")
    head, eager, *files, last = ended.out.splitlines()
    assert head.split() == ["file", "size", "max", "difference", "same", "class", "latency"]
    assert eager.startswith("PyTorch, eager")
    assert [line.split()[0] for line in files] == [
        str(run / "export" / "network.pt2"), f"{run / 'export' / 'network.py'},",
    ]  # fmt: skip
    assert all(" 50/50 " in line and line.endswith(" ms") for line in files)
    assert last == "compared on 50 test images of digits; latency: one image, 1 thread, median"
    names = {path.name for path in (run / "export").iterdir()}
    assert names == {"network.pt2", "network.py", "network.json", "network.pt", "pixels.py"}


def test_json_is_one_object(dsonas, run: Path):
    ended = dsonas("export", run, "--format=python", "--fold", "--json", "--threads", "1")
    value = json.loads(ended.out)
    assert (value["folded"], value["num_images"], value["threads"]) == (True, 50, 1)
    (file,) = value["exports"]
    assert file["format"] == "python"
    names = ("network.py", "network.json", "network.pt")
    assert file["paths"] == [str(run / "export" / name) for name in names]
    assert file["same_predictions"] == 50
    assert file["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no finished network"),
        ([], "DIR is required"),
        (["RUN", "--format", "tflite"], "--format must be one of onnx, pt2, python, got 'tflite'"),
        (["RUN", "--format", ""], "--format must not be empty"),
        (["RUN", "--threads", "0"], "threads must be at least 1, got 0"),
        (["RUN", "--threads", "many"], "threads must be"),
        (["RUN", "--formats", "onnx"], "unknown option --formats: did you mean --format?"),
        (["RUN", "--dir", "RUN"], "unknown option --dir: --help lists all options"),
        (["RUN", "--folded"], "unknown option --folded: did you mean --fold?"),
    ],
)
def test_bad_input_is_one_line(dsonas, run: Path, arguments, message):
    ended = dsonas("export", *(str(run) if a == "RUN" else a for a in arguments))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"dsonas: error: {message}")
    assert ended.err.count("\n") == 1


def test_a_missing_package_is_one_line(dsonas, run: Path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    ended = dsonas("export", run)
    assert ended.code == 2
    assert 'pip install "dsonas[export]"' in ended.err
    assert ended.err.count("\n") == 1


def test_the_commands_and_programs_of_the_page_work(dsonas, run: Path, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])
    monkeypatch.setattr(sys, "path", [*sys.path])
    commands = re.findall(r"^    dsonas (export .*)$", PAGE, re.MULTILINE)
    assert commands
    assert all(dsonas(*command.split()).code == 0 for command in commands)
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = []
    for program in programs:
        exec(compile(program, "deploy.md", "exec"), {})
        printed.append(capsys.readouterr().out)
    for name in ("network", "pixels"):
        sys.modules.pop(name, None)
    assert len(printed) == 4
    label = printed[2].strip()  # of the same white image, once, five times and once
    assert printed[0] == f"['{label}']\n"
    assert printed[1] == f"{[label] * 5}\n"
    assert printed[3].startswith("runs/demo/export/network.py ")
