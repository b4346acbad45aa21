"""What the terminal shows: with and without a progress bar, and the drawing."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph
from dsonas.graph.drawing import draw_architecture, draw_block
from dsonas.run.console import Reporter, readable_count

STAGE: Any = SimpleNamespace(name="search", num_epochs=40, num_batches=2)
ROW = {"loss": 1.5, "error": 12.5, "live_connections": 7, "macs": 2e6}


def report(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, soft_wrap=True, highlight=False)
    with Reporter(console) as reporter:
        for epoch in range(40):
            reporter.step(STAGE, epoch, 1, None)
            reporter.step(STAGE, epoch, 2, ROW)
    return text.getvalue()


def test_ten_plain_lines_where_there_is_no_terminal():
    lines = report(terminal=False).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("2 search       4/40  loss 1.500  train error 12.50 %")
    assert lines[-1].endswith("7 connections  2 M multiply-adds")


def test_a_bar_on_a_terminal():
    text = report(terminal=True)
    assert "\x1b[" in text
    assert "error 12.50 %, 7 connections" in text
    assert "..." not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (19_700, "19.7 k"),
        (1.5e6, "1.5 M"),
        (2e9, "2 G"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (999_999_999, "1 G"),
    ],
)
def test_counts_are_readable(value, text):
    assert readable_count(value) == text


def test_equal_blocks_are_drawn_once():
    architecture = Architecture.complete(Skeleton(blocks=(2, 1), channels=(4, 8)), ("a3x3",), 2)
    text = draw_architecture(architecture)
    assert text.startswith("every block: 2 of 2 operations")
    assert text.count("level 1") == 1


def test_long_names_keep_the_columns():
    lines = draw_block(BlockGraph.complete(("max_pool3x3", "my_very_long_operation7x7"), 2))
    assert len({line.index("<-") for line in lines.splitlines()}) == 1


def test_an_empty_block_is_its_shortcut():
    graph = BlockGraph.complete(("max_pool3x3",), 2)
    assert draw_block(graph.prune([False] * len(graph.live)).clean()) == "(the shortcut alone)"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "command", ["--help", "--version", "compare --help", "run --help", "run --print_config"]
)
def test_a_reader_that_has_ended_is_no_fault(command: str):
    """As with ``| head``: no traceback, exit code 1; 0 where argparse has printed its help."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "dsonas", *command.split()],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert ended.stderr == ""
    assert ended.returncode in ((0, 1) if command.endswith(" --help") else (1,))
