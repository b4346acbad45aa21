"""The checkpoints of a whole run: those of each stage in a folder of its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from dsonas._utils import STAGES
from dsonas.train import CheckpointError, CheckpointFolder

logger = logging.getLogger(__name__)


class StageCheckpoints:
    """The checkpoints of a run, those of each stage in a folder of its own.

    So the end of every finished stage stays, and a stage that failed can be done again from there.
    Of several processes that train together only one should write.
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


_KINDS: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "batch": int,
    "images": int,
    "loss": Tensor,
    "errors": Tensor,
    "rows": list,
    "seconds": dict,
    "state": dict,
    "extras": dict,
}


def _check(state: dict[str, Any], stage: str) -> None:
    """Refuse a state that no stage has saved, whatever its checksum says."""
    if state.get("stage") != stage:
        raise CheckpointError(f"it is of the step {str(state.get('stage'))[:20]!r}, not of {stage}")
    for name, kind in _KINDS.items():
        value = state.get(name)
        if not isinstance(value, kind) or (isinstance(value, int) and value < 0):
            raise CheckpointError(f"its {name!r} is not what a run saves")
    text = state["extras"].get("architecture", "")
    plain = all(map(_is_row, state["rows"])) and isinstance(text, str)
    timed = all(isinstance(seconds, int | float) for seconds in state["seconds"].values())
    if not (plain and timed and state["loss"].numel() == state["errors"].numel() == 1):
        raise CheckpointError("it does not hold what a run saves")


def _is_row(row: Any) -> bool:
    """Whether a value is a line of the log."""
    return (
        isinstance(row, dict)
        and row.get("stage") in STAGES
        and isinstance(row.get("epoch"), int)
        and all(isinstance(value, int | float | str) for value in row.values())
    )
