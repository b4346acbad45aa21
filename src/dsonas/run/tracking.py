"""What a run reports to trackers: its log, settings, result and files."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder
from dsonas.run.tracking_config import require_trackers
from dsonas.run.tracking_tools import TOOLS, TrackedRun, Tracker
from dsonas.train import Row

FILES = (
    "config.yaml",
    "architecture.json",
    "chain.json",
    "log.csv",
    "factors.csv",
    "metrics.json",
    "report.html",
)
MEMORY = "trackers.json"
_SETTINGS = ("seed", "threads")  # in metrics.json, but no result
logger = logging.getLogger(__name__)


class Tracking:
    """The trackers of a run; one that fails is left out, and the run goes on.

    ``RUN/trackers.json`` keeps under which id each knows the run, and which rows of the log it
    has: a resumed run goes on in the same place, and a tracker that is added later gets all.

    Args:
        config: of the run.
        folder: of the run.
        writes: whether this process does; of several that train together only one should.

    Raises:
        ValueError: if the package of a tracker is not installed.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, *, writes: bool = True) -> None:
        require_trackers(config.log)
        self.names = list(config.log.trackers) if writes else []
        self._config, self._folder = config, folder
        self._memory: dict[str, dict[str, Any]] = {}
        self._live: dict[str, Tracker] = {}

    def __enter__(self) -> Tracking:
        """Begin at once, which takes seconds, with what the run goes on from."""
        if self.names:
            self.write((self._folder.last_checkpoint or {}).get("rows", ()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(finished=kind is None)

    def write(self, rows: Sequence[Row]) -> None:
        """Bring every tracker up to date.

        Args:
            rows: the whole log so far.
        """
        for name in tuple(self.names):
            with self._guarded(name):
                signs = [_sign(row) for row in rows]
                tracker = self._tracker(name, signs)
                for step in range(len(self._memory[name]["rows"]) + 1, len(rows) + 1):
                    tracker.log(step, row_values(rows[step - 1]))
                self._remember(name, tracker.id, signs)

    def close(self, *, finished: bool) -> None:
        """End the work of all trackers.

        Args:
            finished: whether the command has come to its end; then results and files follow.
        """
        for name in tuple(self.names):
            with self._guarded(name):
                if finished:
                    tracker = self._tracker(name)
                    self._finish(tracker, len(self._memory[name]["rows"]))
                if name in self._live:
                    self._live.pop(name).close(finished=finished)

    def _finish(self, tracker: Tracker, rows: int) -> None:
        paths = [self._folder.path / name for name in FILES]
        metrics = final_values(self._folder.metrics or {})
        tracker.finish(rows, metrics, [path for path in paths if path.is_file()])

    def _tracker(self, name: str, signs: Sequence[int] | None = None) -> Tracker:
        """A tracker at work; rows that it has got, but are others now, will be replaced."""
        if name not in self._live:
            known = self._recall(name)
            had = known["rows"] if signs is None else _common(known["rows"], signs)
            run = TrackedRun(
                folder=self._folder.path,
                settings=self._config.settings(),
                rows=len(had),
                id=known["id"],
            )
            self._live[name] = TOOLS[name](run)
            self._remember(name, self._live[name].id, had)
        return self._live[name]

    def _recall(self, name: str) -> dict[str, Any]:
        path = self._folder.path / MEMORY
        if not self._memory and path.is_file():
            self._memory = json.loads(path.read_text(encoding="utf-8"))
        return {"id": None, "rows": [], **self._memory.get(name, {})}

    def _remember(self, name: str, identity: str, signs: Sequence[int]) -> None:
        self._memory[name] = {"id": identity, "rows": list(signs)}
        self._folder.write(MEMORY, json.dumps(self._memory) + "\n")

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker does, the run is worth more
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            logger.warning("log.trackers: %s fails and is left out from here: %s", name, reason)
            self.names.remove(name)
            self._live.pop(name, None)


def _sign(row: Row) -> int:
    """A number that tells a row from one of a repetition with other settings."""
    return crc32(json.dumps(row, sort_keys=True).encode())


def _common(known: Sequence[int], signs: Sequence[int]) -> Sequence[int]:
    """The first rows, as far as they are still the same."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(known, signs, strict=False))
    return [sign for sign, _ in same]


def row_values(row: Row) -> dict[str, float]:
    """The numbers of a row of the log, named after its stage.

    Example:
        >>> row_values({"stage": "search", "epoch": 2, "loss": 0.5, "lr": ""})
        {'search/epoch': 2, 'search/loss': 0.5}
    """
    return {
        f"{row['stage']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float)
    }


def final_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``metrics.json`` that are results.

    Example:
        >>> final_values({"test_error": 2.5, "seed": 0, "device": "cpu"})
        {'final/test_error': 2.5}
    """
    return {
        f"final/{name}": value
        for name, value in metrics.items()
        if isinstance(value, int | float) and name not in _SETTINGS
    }
