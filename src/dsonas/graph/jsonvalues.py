"""Values read from an architecture file, each checked with an error that names its key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ArchitectureError(ValueError):
    """A malformed architecture; the message names the key, the rule and the value received."""


def read_mapping(value: Any, key: str, keys: Sequence[str] | None) -> dict[str, Any]:
    """An object with exactly these keys (None: any)."""
    if not isinstance(value, dict):
        raise ArchitectureError(f"{key} must be an object, got {shorten(value)}")
    for name in keys or ():
        if name not in value:
            raise ArchitectureError(f"{key}: key {name!r} is missing")
    unknown = [name for name in value if keys is not None and name not in keys]
    if unknown:
        raise ArchitectureError(f"{key}: unknown key {unknown[0]!r}; known are {list(keys or ())}")
    return value


def read_list(value: Any, key: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ArchitectureError(f"{key} must be a list, got {shorten(value)}")
    return value


def read_integer(value: Any, key: str, least: int) -> int:
    """A whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArchitectureError(f"{key} must be a whole number >= {least}, got {shorten(value)}")
    return value


def read_integers(value: Any, key: str, least: int) -> tuple[int, ...]:
    """Whole numbers >= ``least``, none twice."""
    found = read_numbers(value, key, least)
    if len(set(found)) != len(found):
        raise ArchitectureError(f"{key} must not name a node twice, got {shorten(value)}")
    return found


def read_names(value: Any, key: str) -> list[str]:
    """A list of texts."""
    for i, item in enumerate(read_list(value, key)):
        if not isinstance(item, str):
            raise ArchitectureError(f"{key}[{i}] must be a name, got {shorten(item)}")
    return value


def read_numbers(value: Any, key: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers >= ``least``."""
    items = enumerate(read_list(value, key))
    return tuple(read_integer(item, f"{key}[{i}]", least) for i, item in items)


def shorten(value: Any) -> str:
    """The value as text, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
