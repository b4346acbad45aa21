"""Configurations that come with the package, one YAML file each."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The recipes that ``--config`` knows by name."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe."""
    return _FOLDER / f"{name}.yaml"
