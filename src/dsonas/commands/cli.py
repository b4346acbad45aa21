"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from dsonas.run import StopSignal, recipe_names
from dsonas.train import current_world, require_single

COMMANDS = {  # where the function stands that does it, and what it does
    "check": ("image_folders", "what a folder of images holds, and which settings suit it"),
    "run": ("working", "search, fit to the budget, train and measure: the whole job"),
    "search": ("working", "steps 1 and 2: pretrain the supernet and search it"),
    "train": ("working", "step 3: train an architecture file"),
    "compress": ("working", "bring a trained model of your own to a budget, and train it on"),
    "evaluate": ("finished", "measure a finished run on its test images"),
    "predict": ("finished", "classify image files with a finished run"),
    "report": ("report.page", "one HTML file to look at: network, curves, errors, cost; or several "
               "runs"),
    "export": ("exporting.running", "write ONNX, torch.export and plain Python files of a finished "
               "run"),
    "compare": ("compare_command", "searched against random and hand-made networks, at equal cost"),
    "plan": ("forecast", "steps, work, memory and time of a run before it starts"),
    "latency": ("latency_command", "a table of this device's latencies, for a search on another "
                "machine"),
    "shards": ("image_folders", "write an image folder as webdataset shards, to be streamed"),
}  # fmt: skip
USAGE = """\
usage: dsonas COMMAND [OPTIONS]

Find a compact network for your own images in one training run.

{commands}

`dsonas COMMAND --help` tells its options. Start with:

  dsonas run --config digits                                       (a minute)
  dsonas run --data.name folder:my_images --budget.macs 2M         (your own)

{recipes}
Exit codes: 0 done, 2 bad input, 130 interrupted, 143 terminated
"""
TOGETHER = ("run", "search", "train")  # several processes can do
_OUT_OF_MEMORY = re.compile("memory|Storage size")  # as torch puts it
_DEAD_WORKER = "DataLoader worker"  # likewise, at any moment: a signal tells it
EXIT_DONE, EXIT_BAD_INPUT, EXIT_BROKEN_PIPE = 0, 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and options; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 nobody reads the output, 2 bad input, 130 interrupted, 143
        terminated.

    Example:
        >>> main(["--version"])
        dsonas 0.1.0
        0
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a name that a terminal lacks ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _answer(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # what reads our output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _answer(arguments: list[str]) -> int:
    """Do what is asked for: say something about the program, or run a command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        known = "Recipes for --config: " + ", ".join(recipe_names())
        recipes = textwrap.fill(known, 88, subsequent_indent="  ", break_on_hyphens=False)
        commands = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
        print(USAGE.format(commands=commands, recipes=recipes), end="")
        return EXIT_DONE
    if arguments[0] == "--version":
        from dsonas import __version__

        print(f"dsonas {__version__}")
        return EXIT_DONE
    if arguments[0] == "bench":
        return _complain("bench has left the package: python benchmarks/step.py of the repository")
    if arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _complain(f"command must be one of {known}, got {arguments[0]!r}: dsonas --help")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged tags, which change no pixel
    warnings.filterwarnings("ignore", "This DataLoader will create")  # as data.workers says
    with StopSignal() as stop:
        return _guarded(arguments[0], arguments[1:], stop)


def _guarded(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Turn whatever ends a command into one line and an exit code."""
    try:
        world = current_world()
        if command not in TOGETHER:
            require_single(f"dsonas {command}", world)
        if not world.is_first:  # which says what all find; damaged images are found by some
            logging.getLogger("dsonas").setLevel(logging.ERROR)
            logging.getLogger("dsonas.data.images").setLevel(logging.WARNING)
        module = import_module(f"dsonas.commands.{COMMANDS[command][0]}")  # takes seconds
        return getattr(module, command)(command, arguments, stop)
    except SystemExit as end:  # --help and --print_config
        return int(end.code or 0)
    except KeyboardInterrupt:
        goes_on = "at once; the same command goes on from the last checkpoint, if there is one"
        hint = f" {goes_on}" if command in (*TOGETHER, "compress") else ""
        print(f"dsonas: interrupted{hint}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}")
    except ValueError as error:
        return _complain(str(error))
    except (RuntimeError, MemoryError) as error:
        if (message := _shortage(error)) is None:
            raise
        return _complain(message)


def _shortage(error: RuntimeError | MemoryError) -> str | None:
    """What the machine lacks, memory or a process that has died; None if it is a fault of ours."""
    reason = " ".join(str(error).split())[:150]
    if _DEAD_WORKER in reason:
        return (
            f"a process that reads images has died ({reason}): lower data.workers, or free memory, "
            "for a system without any kills processes; the same command goes on from the last "
            "checkpoint"
        )
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(reason):
        remedy = "lower the batch_size, network.channels or data.image_size"
        return f"out of memory: {remedy} ({reason})"
    return None


def _complain(message: str) -> int:
    print(f"dsonas: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT
