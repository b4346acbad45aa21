"""What a run shows on the terminal: a progress bar, and lines that also make sense in a file."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dsonas.train import Row, Stage

LINES_PER_STAGE = 10
_TITLES = {"pretrain": "1 pretrain", "search": "2 search", "train": "3 train"}


class Reporter:
    """Progress of a run; the bar shows only on a terminal.

    Args:
        console: where to print.
        silent: print nothing; for all but one of the processes of a run.
    """

    unit = "connections"  # what scaling factors belong to

    def __init__(self, console: Console | None = None, *, silent: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=silent)
        self._progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def step(self, stage: Stage, epoch: int, batch: int, row: Row | None) -> None:
        """The hook of ``Journal.report``."""
        title = _TITLES.get(stage.name, stage.name)
        if stage.name not in self._tasks:
            total = stage.num_epochs * stage.num_batches
            self._tasks[stage.name] = self._progress.add_task(title, total=total, note="")
        task = self._tasks[stage.name]
        self._progress.update(task, completed=epoch * stage.num_batches + batch)
        if row is None:
            return
        left = f", {row['live_connections']} {self.unit}" if "live_connections" in row else ""
        self._progress.update(task, note=f"error {row['error']:.2f} %{left}")  # in 80 columns
        every = math.ceil(stage.num_epochs / LINES_PER_STAGE)
        if (epoch + 1) % every == 0 or epoch + 1 == stage.num_epochs:
            self.say(f"{title:<11} {epoch + 1:>4}/{stage.num_epochs}  {_note(row, self.unit)}")


def _note(row: Row, unit: str) -> str:
    parts = [f"loss {row['loss']:.3f}", f"train error {row['error']:5.2f} %"]
    if "test_error" in row:
        parts.append(f"test error {row['test_error']:.2f} %")
    if "val_error" in row:
        parts.append(f"validation error {row['val_error']:.2f} %")
    if "live_connections" in row:
        parts.append(f"{row['live_connections']} {unit}")
    if "macs" in row:
        parts.append(f"{readable_count(row['macs'])} multiply-adds")
    return "  ".join(parts)


def readable_count(value: float | int | str) -> str:
    """A count in three digits.

    Example:
        >>> readable_count(1_484_539_776), readable_count(900), readable_count(999_999_999)
        ('1.48 G', '900', '1 G')
    """
    number = float(value)
    for size, suffix in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if float(f"{number / size:.3g}") >= 1:  # 999.9 k is 1 M
            return f"{number / size:.3g}{suffix}"
    return f"{number:.0f}"
