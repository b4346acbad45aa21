"""Python files of the user's, imported before a command runs: they register own operations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb

OPTION = "--import"


def import_files(arguments: Sequence[str]) -> list[str]:
    """Import every FILE that ``--import FILE`` names, in order.

    Args:
        arguments: of a command.

    Returns:
        The other arguments.

    Raises:
        ValueError: if a file is missing, or fails; naming the line.

    Example:
        >>> import_files(["--seed", "1"])
        ['--seed', '1']
    """
    others: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if option != OPTION:
            others.append(argument)
            continue
        path = value if equals else next(waiting, "")
        if not path or path.startswith("--"):
            raise ValueError(f"{OPTION} must be followed by a Python file, got {path!r}")
        import_file(Path(path))
    return others


def import_file(path: Path) -> None:
    """Import a Python file, once in a process.

    Raises:
        ValueError: if it is missing, or fails; naming the line.
    """
    name = f"dsonas_import:{path.resolve()}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{OPTION} must name a Python file (NAME.py) that exists, got {path}")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        del sys.modules[name]
        line = getattr(error, "lineno", None)
        frames = [
            frame for frame in extract_tb(error.__traceback__) if frame.filename == spec.origin
        ]
        line = frames[-1].lineno if frames else line
        raise ValueError(
            f"{OPTION} {path} fails in line {line}: {type(error).__name__}: {error}"
        ) from error
