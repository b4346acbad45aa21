"""Python files of the user's, imported before a command runs: they register own operations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsonas._utils import import_file

OPTION = "--import"


class ImportFile(argparse.Action):
    """Import the file that an option names; nothing is stored."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """Import it."""
        import_file(Path(value), OPTION)
