"""Configurations that come with the package, one YAML file each, and what a ``base`` means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dsonas.train import STAGES

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """List the recipes that ``--config`` knows by name."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Give the file of a recipe."""
    return _FOLDER / f"{name}.yaml"


class _Loader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML takes: a key twice, of which the last would hold."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), dict[str, int]()
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ValueError(f"{name} stands in lines {lines[name]} and {line}: give it once")
            lines[name] = line
        return node


def read_settings(name: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the settings of a recipe or YAML file; those of its ``base`` come first.

    A ``base`` is sought from the file that names it; the files ``above`` lead here by theirs. A
    ValueError if there is no such file, it is not one of settings, or its bases lead back to it.

    Example:
        >>> read_settings("cifar100-full")["data"]
        {'name': 'cifar100', 'factor_split': 0.5, 'cutout': 16}
    """
    asked = f"base of {above[-1]}" if above else "--config"
    path = recipe_path(str(name)) if str(name) in recipe_names() else Path(str(name))
    if above and not path.is_absolute():
        path = above[-1].parent / path
    path = path.absolute()
    if not path.is_file():
        known = ", ".join(recipe_names())
        raise ValueError(f"{asked} must be a file or one of {known}, got {str(name)!r}")
    if path in above:
        chain = " -> ".join(one.name for one in (*above, path))
        raise ValueError(f"{asked} must not lead back to itself, got {chain}: take one out")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{path} must hold options such as data: {{name: digits}}, got {value!r}")
    settings = dict(value)
    for name in settings.keys() & {"epochs", "batch_size"}:  # of all steps at once
        every = settings.pop(name)
        for step in STAGES:
            own = settings.get(step, {})
            settings[step] = {name: every, **own} if isinstance(own, Mapping) else own
    base = settings.pop("base", None)
    return settings if base is None else _over(read_settings(base, (*above, path)), settings)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings in one; what both have is that of the second."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _over(below[key], above[key])
    return merged
