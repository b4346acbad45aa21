"""The rooms: what stands where, no name twice, and others reached through their faces alone."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dsonas"
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
IN_EVERY_FOLDER = {"__init__.py", "__init__.pyi", "conftest.py"}


def test_the_top_level_holds_rooms_and_little_else():
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert names - ROOMS == {"__init__.py", "__init__.pyi", "__main__.py", "_utils.py", "py.typed"}


def test_no_file_name_twice():
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "examples")]
    names = Counter(path.name for folder in folders for path in folder.rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= IN_EVERY_FOLDER


def test_the_steps_of_a_run_are_named_in_one_file():
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    named = [path.name for path, text in texts.items() if '"pretrain", "search", "train"' in text]
    assert named == ["world.py"]


def past_the_face(room: str, path: Path) -> list[str]:
    """Where a file reaches another room otherwise than by ``from dsonas.OTHER import name``."""
    others = {f"dsonas.{other}" for other in ROOMS - {room}}
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            reached = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            within = [f"dsonas.{alias.name}" for alias in node.names]
            reached = [] if module in others else within if module == "dsonas" else [module]
        else:
            continue
        if any(name.startswith("..") or name_of_room(name) in others for name in reached):
            found.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    return found


def name_of_room(module: str) -> str:
    """The first two parts of a module's name."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_other_rooms_are_reached_through_their_faces(room: str):
    files = (PACKAGE / room).rglob("*.py")
    assert not [line for path in files for line in past_the_face(room, path)]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("from dsonas.nn import Network", True),
        ("from dsonas.cost.budgets import Budget", True),
        ("from .budgets import Budget", True),
        ("from dsonas import __version__", True),
        ("from torch.nn.utils import clip_grad_norm_", True),
        ("from dsonas.nn.network import Network", False),
        ("from dsonas.nn.cpu import layout", False),
        ("from dsonas import nn", False),
        ("import dsonas.nn", False),
        ("from ..nn import Network", False),
    ],
)
def test_what_counts_as_past_the_face(line: str, allowed: bool, tmp_path: Path):
    file = tmp_path / "module.py"
    file.write_text(line)
    assert (not past_the_face("cost", file)) == allowed
