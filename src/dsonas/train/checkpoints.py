"""Checkpoints that survive a crash: written atomically, verified when read, the last two kept."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsonas._utils import write_atomically
from dsonas.train.world import STAGES

logger = logging.getLogger(__name__)

VERSION = 1
MAGIC = b"dsonas-checkpoint\n"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that says why."""


class CheckpointFolder:
    """The numbered checkpoints of a run.

    A file is a magic line, the SHA-256 of the rest, and a ``torch.save`` archive of tensors and
    plain values, read with ``weights_only`` so that no code in it can run. The folder is made when
    the first is written. ``check`` is called with the state of a checkpoint that was read, and
    raises ``CheckpointError`` if that cannot be used.
    """

    def __init__(
        self, folder: str | Path, check: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> None:
        self.folder = Path(folder)
        self._check = check
        self._unusable: set[Path] = set()

    def save(self, state: dict[str, Any]) -> None:
        """Write the next checkpoint and delete all but the last two usable ones."""
        buffer = io.BytesIO()
        torch.save({"version": VERSION, "state": state}, buffer)
        body = buffer.getvalue()
        number = max((number for number, _ in self._files()), default=0) + 1
        path = self.folder / f"checkpoint-{number:08d}.pt"
        write_atomically(path, MAGIC + hashlib.sha256(body).digest() + body)
        usable = [file for _, file in self._files() if file not in self._unusable]
        for old in {*usable[:-KEPT], *self._unusable}:
            old.unlink(missing_ok=True)
        self._unusable.clear()

    def load_last(self) -> dict[str, Any] | None:
        """The state of the newest usable checkpoint; None if there are none at all.

        One that cannot be used is named in the log, and the one before is tried; if all are so, a
        CheckpointError.
        """
        problem = None
        for _, path in reversed(self._files()):
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                problem = str(error)
            else:
                try:
                    self._check(state)
                    return state
                except CheckpointError as error:
                    problem = f"checkpoint {path} cannot be used: {error}"
            logger.warning("%s; trying the one before", problem)
            self._unusable.add(path)
        if problem is not None:
            raise CheckpointError(f"no usable checkpoint in {self.folder}: last problem: {problem}")
        return None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one; a CheckpointError if it is damaged, holds code, or is of another version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    end = len(MAGIC) + hashlib.sha256().digest_size
    head, digest, body = content[: len(MAGIC)], content[len(MAGIC) : end], content[end:]
    if head != MAGIC:
        raise CheckpointError(f"checkpoint {path} is not a dsonas checkpoint")
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    try:
        value = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file makes the reader fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"checkpoint {path} is refused: {reason}") from None
    if not isinstance(value, dict) or "version" not in value:
        raise CheckpointError(f"checkpoint {path} is of no version: it is not one of a run")
    if type(value["version"]) is not int or value["version"] != VERSION:
        raise CheckpointError(
            f"checkpoint {path} is of version {str(value['version'])[:20]!r}, this dsonas reads "
            f"version {VERSION}: go on with the dsonas that wrote it, or choose another --out"
        )
    if not isinstance(value.get("state"), dict):
        raise CheckpointError(f"checkpoint {path} of version {VERSION} holds no state")
    return value["state"]


class StageCheckpoints:
    """The checkpoints of a run, those of each stage in a folder of its own.

    So the end of every finished stage stays, and a stage that failed can be done again from there.
    Of several processes that train together only one ``writes``.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._stages = {
            stage: CheckpointFolder(folder / stage, lambda state, name=stage: _check(state, name))
            for stage in STAGES
        }

    def save(self, state: dict[str, Any]) -> None:
        """Write the next checkpoint of ``state["stage"]``."""
        if self.writes:
            self._stages[state["stage"]].save(state)

    def load_last(self) -> dict[str, Any] | None:
        """The newest usable checkpoint, of the last stage that has one; None without any.

        Raises:
            CheckpointError: if there are checkpoints and none of them can be used.
        """
        problem = None
        for stage in reversed(STAGES):
            try:
                state = self._stages[stage].load_last()
            except CheckpointError as error:
                logger.warning("no checkpoint of %s can be used; trying the step before", stage)
                problem = problem or error
            else:
                if state is not None:
                    return state
        if problem is not None:
            raise CheckpointError(f"{problem}: delete {self.folder} to begin the run again")
        return None

    def forget(self, stage: str) -> None:
        """Delete the checkpoints of a stage."""
        if self.writes:
            shutil.rmtree(self.folder / stage, ignore_errors=True)


_KINDS = {
    **dict.fromkeys(("epoch", "batch", "images"), int), "loss": Tensor, "errors": Tensor,
    "rows": list, **dict.fromkeys(("seconds", "state", "extras"), dict),
}  # fmt: skip


def _check(state: dict[str, Any], stage: str) -> None:
    """Refuse a state that no stage has saved, whatever its checksum says."""
    if state.get("stage") != stage:
        raise CheckpointError(f"it is of the step {str(state.get('stage'))[:20]!r}, not of {stage}")
    for name, kind in _KINDS.items():
        value = state.get(name)
        if not isinstance(value, kind) or (isinstance(value, int) and value < 0):
            raise CheckpointError(f"its {name!r} is not what a run saves")
    plain = all(map(_is_row, state["rows"]))
    plain = plain and isinstance(state["extras"].get("architecture", ""), str)
    timed = all(isinstance(seconds, int | float) for seconds in state["seconds"].values())
    if not (plain and timed and state["loss"].numel() == state["errors"].numel() == 1):
        raise CheckpointError("it does not hold what a run saves")


def _is_row(row: Any) -> bool:
    """Whether a value is a line of the log."""
    known = isinstance(row, dict) and row.get("stage") in STAGES
    known = known and isinstance(row.get("epoch"), int)
    return known and all(isinstance(value, int | float | str) for value in row.values())
