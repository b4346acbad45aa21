"""Checkpoints that survive a crash: written atomically, verified when read, the last two kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

VERSION = 1
MAGIC = b"dsonas-checkpoint\n"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")
_DIGEST_SIZE = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that says why."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class CheckpointFolder:
    """The numbered checkpoints of a run.

    A file is a magic line, the SHA-256 of the rest, and a ``torch.save`` archive of tensors and
    plain values, read with ``weights_only`` so that no code in it can run.

    Args:
        folder: where they lie; made when the first is written.

    Example:
        >>> checkpoints = CheckpointFolder(getfixture("tmp_path"))
        >>> checkpoints.save({"epoch": 3})
        >>> checkpoints.load_last()
        {'epoch': 3}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, state: dict[str, Any]) -> None:
        """Write the next checkpoint and delete all but the last two."""
        buffer = io.BytesIO()
        torch.save({"version": VERSION, "state": state}, buffer)
        body = buffer.getvalue()
        number = max((number for number, _ in self._files()), default=0) + 1
        path = self.folder / f"checkpoint-{number:08d}.pt"
        write_atomically(path, MAGIC + hashlib.sha256(body).digest() + body)
        for _, old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)

    def load_last(self) -> dict[str, Any] | None:
        """The state of the newest usable checkpoint; None if there is none at all.

        Raises:
            CheckpointError: if there are checkpoints and none of them can be used.
        """
        problem = None
        for _, path in reversed(self._files()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s; trying the one before", error)
                problem = error
        if problem is not None:
            raise CheckpointError(f"no usable checkpoint in {self.folder}: last problem: {problem}")
        return None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        CheckpointError: if it is damaged, holds code, or is of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    head, body = content[: len(MAGIC)], content[len(MAGIC) + _DIGEST_SIZE :]
    if head != MAGIC:
        raise CheckpointError(f"checkpoint {path} is not a dsonas checkpoint")
    if hashlib.sha256(body).digest() != content[len(MAGIC) : len(MAGIC) + _DIGEST_SIZE]:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    try:
        value = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file makes the reader fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"checkpoint {path} is refused: {reason}") from None
    if not isinstance(value, dict) or value.get("version") != VERSION or "state" not in value:
        raise CheckpointError(f"checkpoint {path} is of another version than {VERSION}")
    return value["state"]
