"""The Python code of the pages runs, and their commands are such as the programs take.

A block behind ``<!-- not run: why -->`` is left out. All blocks of a page run in order, with the
same names, in an empty folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dsonas
from dsonas.commands import cli, configuring
from dsonas.nn import operations
from helpers.pages import BLOCK, PAGES, ROOT, Block, arguments, blocks, commands
from helpers.run_folders import make_folder

pytestmark = pytest.mark.slow

ELSEWHERE = {  # pages whose code other tests run
    "deploy.md": "tests/commands/test_export.py",
    "own-model.md": "tests/examples/test_examples.py",
}
TRAINING_PAGES = [page for page in PAGES if page.name not in ELSEWHERE]
WITH_CODE = [page for page in TRAINING_PAGES if blocks(page, "python", "py")]
SYNOPSIS = re.compile(r"\bCOMMAND\b|\[OPTIONS\]|<[a-z_]+>|\.\.\.|--config NAME\b")


class Parsed(BaseException):
    """Raised where a command has understood its options, instead of the work that it would do."""


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """One thread, and what a page registers is forgotten."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(operations, "_REGISTRY", dict(operations._REGISTRY))
    yield
    torch.set_num_threads(threads)


def a_search() -> dict[str, Any]:
    """What the pages call ``result`` and ``architecture``."""
    data = dsonas.load_data(dsonas.DataConfig(name="digits", max_train_images=64))
    skeleton = dsonas.Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(8, 16))
    result = dsonas.search(
        dsonas.SearchSpace(skeleton=skeleton, num_levels=2),
        data,
        pretrain=dsonas.PretrainConfig(epochs=0),
        config=dsonas.SearchConfig(epochs=2, batch_size=16),
    )
    return {"result": result, "architecture": result.architecture, "data": data}


def two_runs() -> dict[str, Any]:
    """The run folders ``runs/a`` and ``runs/b``."""
    for name in "ab":
        make_folder(Path("runs"), name)
    return {}


PREPARED: dict[str, Callable[[], dict[str, Any]]] = {"budgets.md": a_search, "report.md": two_runs}


def test_the_loop_of_the_readme_is_short():
    (loop,) = (b for b in blocks(ROOT / "README.md", "python", "py") if "searcher.step()" in b.code)
    lines = [line for line in loop.code.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert sum("dsonas" in line for line in lines) <= 5


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_python_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    names |= PREPARED.get(page.name, dict)()
    for block in blocks(page, "python", "py"):
        if block.reason is None:
            exec(_compiled(block, page), names)


def _compiled(block: Block, page: Path) -> Any:
    """With the line numbers of the page, for the traceback."""
    return compile("\n" * (block.line - 1) + block.code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(configuring, "import_file", lambda *_: None)  # files of the reader
    real_read = configuring.read_settings
    monkeypatch.setattr(
        configuring,
        "read_settings",
        lambda name: {} if str(name).endswith(".yaml") else real_read(name),
    )
    real_parse = configuring.OptionParser.parse_args

    def parse_only(parser: Any, *given: Any, **settings: Any) -> None:
        real_parse(parser, *given, **settings)
        raise Parsed

    monkeypatch.setattr(configuring.OptionParser, "parse_args", parse_only)
    for line in commands(page):
        words = arguments(line, "dsonas")
        if words and not SYNOPSIS.search(line):
            assert _is_understood(words), line


def _is_understood(words: list[str]) -> bool:
    """Whether the options of a command line exist and have values of the right kind."""
    try:
        return cli.main(words) == 0  # --help, --version, --print_config
    except Parsed:
        return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_other_commands_name_is_there(page: Path):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line in commands(page):
        made = arguments(line, "make")
        assert not made or {word for word in made if word.islower()} <= set(targets), line
        for script in re.findall(r"(?:examples|benchmarks|docs|tests)/[\w./-]+\.(?:py|sh)", line):
            assert (ROOT / script).is_file(), line


def test_the_commands_are_found():
    found = [line for page in PAGES for line in commands(page) if arguments(line, "dsonas")]
    assert len(found) > 30


def test_a_wrong_command_is_noticed():
    assert not _is_understood(["run", "--budget.mac", "2M"])
    assert arguments(".venv/bin/dsonas run --seed 1 > log.txt", "dsonas") == ["run", "--seed", "1"]
    assert arguments("torchrun --nproc_per_node 2 -m dsonas run", "dsonas") == ["run"]
    assert arguments("see the dsonas command", "dsonas") is None


def test_pages_run_elsewhere_are_named_there():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(encoding="utf-8")


def test_few_blocks_are_not_run():
    found = [block for page in PAGES for block in blocks(page, "python", "py", "bash", "sh")]
    skipped = [block for block in found if block.reason is not None]
    marks = sum(page.read_text(encoding="utf-8").count("<!-- not run:") for page in PAGES)
    print(f"{len(skipped)} of {len(found)} blocks are not run")
    assert len(skipped) == marks  # each mark stands before a block
    assert len(skipped) <= len(found) / 4


def test_every_fence_is_understood():
    for page in PAGES:
        fences = re.findall(r"^[ ]*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(list(BLOCK.finditer(page.read_text(encoding="utf-8")))), page
