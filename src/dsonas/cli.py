"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsonas.interrupts import StopSignal

if TYPE_CHECKING:
    from dsonas.config import RunConfig
    from dsonas.configuring import OptionParser
    from dsonas.pipeline import Job
    from dsonas.runs import RunFolder

USAGE = """\
usage: dsonas COMMAND [OPTIONS]

Find a compact network for your own images in one training run.

  run        search, fit to the budget, train and measure: the whole job
  search     steps 1 and 2: pretrain the supernet and search it
  train      step 3: train an architecture file
  evaluate   measure a finished run on its test images
  predict    classify image files with a finished run

`dsonas COMMAND --help` lists its options. Start with:

  dsonas run --config digits                                       (a minute)
  dsonas run --data.name folder:my_images --budget.macs 2M         (your own)

Recipes for --config: {recipes}
Exit codes: 0 done, 2 bad input, 130 interrupted (143 by SIGTERM)
"""

EXIT_DONE, EXIT_BAD_INPUT = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and options; None takes those of the process.

    Returns:
        The exit code: 0 done, 2 bad input, 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())), end="")
        return EXIT_DONE
    if arguments[0] == "--version":
        from dsonas import __version__

        print(f"dsonas {__version__}")
        return EXIT_DONE
    if arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _complain(f"command must be one of {known}, got {arguments[0]!r}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with StopSignal() as stop:
        return _guard(COMMANDS[arguments[0]], arguments[1:], stop)


def recipe_names() -> list[str]:
    """The recipes that ``--config`` knows by name."""
    entries = files("dsonas").joinpath("recipes").iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".yaml"))
