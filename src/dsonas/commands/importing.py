"""Python files of the user's, imported before a command runs: they register own operations."""

from __future__ import annotations

import argparse
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any

OPTION = "--import"


class ImportFile(argparse.Action):
    """Import the file that an option names; nothing is stored."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """Import it."""
        import_file(Path(value))


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
        frames = [
            frame for frame in extract_tb(error.__traceback__) if frame.filename == spec.origin
        ]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        raise ValueError(
            f"{OPTION} {path} fails in line {line}: {type(error).__name__}: {error}"
        ) from error
