"""What the files of a large folder told when they were read: the next start recalls it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsonas._utils import read_json, write_atomically

logger = logging.getLogger(__name__)

FOLDER = "~/.cache/dsonas/files"
MANY = 10_000  # files from which on what they told is kept; fewer are read in a moment
AT_ONCE = 20  # files of a task of a thread: few, so that threads end together
RULES = 1  # changes with what is read of a file, and so with what was kept before
FRESH = 2.0  # seconds; a file that has just changed may change again by the same tick of its clock

_Told = dict[str, tuple[list[int], Any]]  # by path the stamp of a file, and what it told


def told_by_files(
    kind: str, paths: Sequence[str], read: Callable[[str], Any], num_threads: int | None = None
) -> dict[str, Any]:
    """Read files, or recall what they told before if they have not changed since.

    ``kind`` says what is read, and by which rules; ``read`` is called by ``num_threads`` (None: as
    suits the machine), returns what JSON can hold, or None, which is left out and asked for again.
    """
    place = _place(kind, paths) if len(paths) >= MANY else None
    before = _load(place) if place else {}
    now: _Told = {}
    begin = time.time()

    def recall(some: Sequence[str]) -> None:
        for path in some:
            stamp = _stamp(path) if place else []
            known = before.get(path)
            value = known[1] if known and known[0] == stamp else read(path)
            if value is not None:
                now[path] = stamp, value

    pool = ThreadPoolExecutor(num_threads)
    try:
        groups = [paths[at : at + AT_ONCE] for at in range(0, len(paths), AT_ONCE)]
        list(pool.map(recall, groups))
    finally:  # after Ctrl-C too
        pool.shutdown(cancel_futures=True)
        if place:
            _save(place, before, now, begin)
    return {path: now[path][1] for path in paths if path in now}


def _place(kind: str, paths: Sequence[str]) -> Path:
    """The file that keeps what the files of a folder told."""
    ends = os.path.abspath(min(paths)), os.path.abspath(max(paths))
    where = os.path.dirname(os.path.commonprefix(ends))  # noqa: RUF071  of drives too
    name = f"{RULES} {kind} {where}".encode(errors="surrogateescape")
    folder = Path(os.path.expanduser(FOLDER))
    return folder / f"{hashlib.sha256(name).hexdigest()[:32]}.json"


def _stamp(path: str) -> list[int]:
    """What changes with the content of a file, even where its time is set back."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _load(place: Path) -> _Told:
    try:
        return {path: (stamp, value) for path, (stamp, value) in read_json(place).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # damaged or none
        return {}


def _save(place: Path, before: _Told, now: _Told, begin: float) -> None:
    """Keep what was read from files that had not just been changed, and what others still tell."""
    kept = {
        path: told for path, told in now.items()
        if told[0] and max(told[0][2:]) / 1e9 < begin - FRESH
    }  # fmt: skip
    kept |= {p: told for p, told in before.items() if p not in now and told[0] == _stamp(p)}
    if kept == before or not place.is_absolute():  # nobody has a home in some containers
        return
    try:
        write_atomically(place, json.dumps(kept).encode())
    except OSError as error:
        logger.info("what %d files told is not kept: %s", len(kept), error)
