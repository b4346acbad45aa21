"""The examples and the page about them run as they stand."""

import ast
import importlib.util
import io
import json
import re
import sys
import tarfile
from itertools import product
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

import dsonas
from dsonas.commands.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str):
    """An example as a module, imported once, since it may register operations."""
    key = f"examples_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


def code_lines(text: str) -> int:
    """Lines that are neither blank, comments nor docstrings."""
    lines = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_text:
            lines.add(node.lineno)
            if not hasattr(node, "body"):
                lines.update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_own_model(capsys):
    load("own_model").main(epochs=1)
    out = capsys.readouterr().out
    accuracy = {
        name: float(re.search(rf"^{name} .*accuracy ([\d.]+)%", out, re.MULTILINE)[1])
        for name in ("dense", "pressed", "pruned", "trained on")
    }
    assert accuracy["pressed"] == accuracy["pruned"]
    assert accuracy["trained on"] > 50
    assert float(re.search(r"largest difference of an output: (\S+)", out)[1]) < 1e-4
    assert len(re.findall(r"<-", out)) == 12


def test_compress(capsys):
    pytest.importorskip("torch_pruning")
    load("compress")
    found = re.findall(r"([\d,]+) multiply-adds, accuracy ([\d.]+)%", capsys.readouterr().out)
    (dense, before), (left, after) = ((int(n.replace(",", "")), float(a)) for n, a in found)
    assert 0.9 * dense < 4 * left <= dense
    assert after > 80
    assert before > 80
    assert len((EXAMPLES / "compress.py").read_text().splitlines()) <= 40


def test_own_operation(capsys):
    load("own_operation").main()
    out = capsys.readouterr().out
    assert re.search(r"kept [1-6] of 6 operations", out)
    assert 0 < int(re.search(r"([\d,]+) parameters", out)[1].replace(",", "")) <= 5000


def test_own_macro(capsys):
    example = load("own_macro")
    example.main(epochs=2)
    out = capsys.readouterr().out
    assert re.search(r"of 42 connections", out)
    assert re.search(r"parameters, test accuracy [\d.]+%", out)
    text = (EXAMPLES / "own_macro.py").read_text()
    macro = text[text.index("class Conv1d") : text.index("def recordings")]
    assert code_lines(macro) < 40


def test_own_macro_has_the_outputs_of_the_plain_path():
    example = load("own_macro")
    torch.manual_seed(0)
    graph = example.dsonas.BlockGraph.complete(("conv1d_3", "max_pool1d_3"), 2)
    network = example.SignalNetwork(graph, channels=4, search=True)
    signals = torch.randn(3, 6, 40)
    fused = network(signals)
    for block in network.blocks:
        block.path = "plain"
    torch.testing.assert_close(fused, network(signals), rtol=1e-4, atol=1e-5)


def test_the_notebook_runs_from_top_to_bottom(capsys):
    notebook = json.loads((EXAMPLES / "own_loop.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec(compile(cell, "own_loop.ipynb", "exec"), names)
    out = capsys.readouterr().out
    live = [int(found) for found in re.findall(r"(\d+) connections", out)]
    assert live[-1] < live[0]
    assert live == sorted(live, reverse=True)
    assert float(re.search(r"test accuracy ([\d.]+)%", out)[1]) > 60
    assert code_lines(cells[1]) < 30


def test_the_notebook_is_one():
    notebook = json.loads((EXAMPLES / "own_loop.ipynb").read_text(encoding="utf-8"))
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert all(isinstance(line, str) for line in cell["source"])
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown")


def test_the_code_of_the_page_runs(capsys):
    blocks = PYTHON_BLOCK.findall((ROOT / "docs" / "own-model.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 5
    names: dict = {"__name__": "own_model_page"}
    for block in blocks:
        exec(compile(block, "docs/own-model.md", "exec"), names)
    out = capsys.readouterr().out
    assert "outputs differ by at most" in out
    assert re.search(r"\d of 10 connections", out)


RUN = """
run --import FILE --out OUT --data.name digits --data.max_train_images 100
--data.max_test_images 20 --network.levels 2 --network.channels 4 --network.blocks [1,1]
--network.operations [separable_conv3x3,OPERATION] --pretrain.epochs 1 --search.epochs 1
--train.epochs 1 --pretrain.batch_size 16 --search.batch_size 16 --train.batch_size 16
--engine.threads 1
"""
FILE = """
import torch
import dsonas

dsonas.register_operation("OPERATION", lambda channels: torch.nn.Conv2d(channels, channels, 1))
"""


def test_import_brings_operations_to_the_command_line(tmp_path, capsys):
    path, name = tmp_path / "mine.py", "imported_conv1x1"
    path.write_text(FILE.replace("OPERATION", name))
    words = RUN.replace("OPERATION", name).replace("OUT", str(tmp_path / "run"))
    arguments = words.replace("FILE", str(path)).split()
    assert main(["run", *arguments[3:]]) == 2
    assert "--import FILE.py adds operations of your own" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main(["evaluate", "--run", str(tmp_path / "run"), f"--import={path}"]) == 0
    assert "test error" in capsys.readouterr().out
    assert "mine.py" not in (tmp_path / "run" / "config.yaml").read_text()

    more = tmp_path / "more.py"
    more.write_text("")
    assert main([*arguments, "--import", str(more)]) == 2
    assert "more.py was not imported when it was begun" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--import must name a Python file \(NAME\.py\) that exists, got .*mine\.py"),
        ("x = 1\nraise OSError('gone')\n", r"mine\.py fails in line 2: OSError: gone"),
        ("def\n", r"mine\.py fails in line 1: SyntaxError"),
        (
            "import dsonas\ndsonas.register_operation('max_pool3x3', None)\n",
            r"mine\.py fails in line 2: ValueError: operation 'max_pool3x3' is registered already",
        ),
    ],
)
def test_files_that_cannot_be_imported(text, message, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    for _ in range(2):  # a file that failed is tried again
        assert main(["run", "--import", str(path)]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("\n") == 1


def test_configuration_files_do_not_run_code(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("import: [mine.py]\n")
    assert main(["run", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "unknown option import" in capsys.readouterr().err
    assert main(["run", "--import"]) == 2
    assert "argument --import: expected one argument" in capsys.readouterr().err


def test_tables_are_searched(capsys):
    load("tabular_or_sequence").main(epochs=12)
    assert "test error" in capsys.readouterr().out


@pytest.mark.slow
def test_lightning_calls_the_searcher(capsys):
    pytest.importorskip("lightning")
    result = load("lightning_search").main(epochs=3)
    assert all(len(names) == 1 for names in result.choices.values())


def test_the_space_of_nas_bench_201():
    page = load("nas_bench_201_space")
    model = page.nas_bench_201(c=4, cells=1)
    example, budget = torch.zeros(1, 3, 32, 32), dsonas.Budget(macs="40%")
    searcher = dsonas.Searcher(model, example, budget=budget, steps=1)
    whole = searcher.cost()
    model(torch.rand(4, 3, 32, 32)).square().mean().backward()
    searcher.step()
    result = searcher.finish()
    assert result.cost <= 0.4 * whole
    nodes = page.cell_string(result.choices).split("+")
    assert [node.count("~") for node in nodes] == [1, 2, 3]
    assert len(Path(page.__file__).read_text().splitlines()) <= 100


def camvid_like(folder: Path) -> None:
    """An archive as that of CamVid: a road below a sky, void in a corner."""
    generator = torch.Generator().manual_seed(0)
    with tarfile.open(folder / "camvid-180x240.tar.xz", "w:xz", preset=0) as archive:
        for part, kind, i in product(("train", "val", "test"), ("images", "masks"), range(6)):
            mask = torch.full((1, 180, 240), 3, dtype=torch.uint8)
            mask[:, : 40 + 20 * i] = 0
            mask[:, :10, :10] = 11
            noise = torch.randint(0, 40, (3, 180, 240), generator=generator, dtype=torch.uint8)
            pixels, content = mask if kind == "masks" else mask * 40 + noise, io.BytesIO()
            to_pil_image(pixels).save(content, "PNG")
            entry = tarfile.TarInfo(f"camvid-180x240/{part}/{kind}/{i}.png")
            entry.size = content.tell()
            content.seek(0)
            archive.addfile(entry, content)


def test_segmentation(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    camvid_like(tmp_path)
    example = load("segmentation")
    monkeypatch.setattr(example, "ARCHIVE", tmp_path / "camvid-180x240.tar.xz")
    monkeypatch.setattr(example, "BATCH", 2)
    example.main(seeds=(0, 1), epochs=1, out=tmp_path / "out.json")
    value = json.loads((tmp_path / "out.json").read_text())
    whole = dsonas.Searcher(example.EncoderDecoder(), torch.zeros(1, 3, 180, 240), steps=1).cost()
    for row in value["seeds"]:
        assert row["macs"] <= 0.3 * whole
        assert len(row["random"]) == 3
    assert 0 < value["found"]["mean"] < 100
    assert value["part"] == "test"
    assert len(Path(example.__file__).read_text().splitlines()) <= 150


def test_no_file_of_the_package_mentions_segmentation():
    files = (ROOT / "src").rglob("*.py*")
    assert not [path for path in files if b"segmentation" in path.read_bytes().lower()]


def test_own_supernet_on_the_command_line(tmp_path, capsys):
    """As its first lines say."""
    text = ast.get_docstring(ast.parse((EXAMPLES / "own_supernet.py").read_text()))
    arguments = text.rpartition("dsonas ")[2].split()
    arguments[2] = f"{ROOT}/{arguments[2]}"
    arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
    small = ["--epochs", "3", "--engine.threads", "1"]
    assert main([*arguments, *small]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    choices = json.loads((tmp_path / "run" / "choices.json").read_text())
    assert list(choices) == ["first", "second", "third", "fourth"]
    assert metrics["macs"] <= 0.6 * metrics["supernet_macs"]
    assert metrics["test_error"] < 50
