"""TensorBoard, Weights & Biases and MLflow, each behind the same few calls."""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from dsonas.graph import Architecture, draw_architecture

PROJECT = "dsonas"
_PARAMS_AT_ONCE = 100  # what MLflow takes in one call


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told when it begins, or goes on with, a run.

    Args:
        folder: of the run.
        settings: its whole configuration, by dotted name.
        rows: how many rows it has been given before.
        id: by which it knows the run; None if it does not know it yet.
    """

    folder: Path
    settings: Mapping[str, Any]
    rows: int = 0
    id: str | None = None

    @property
    def name(self) -> str:
        """What people see."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """A place that shows runs.

    Attributes:
        id: by which it knows the run, to be given again when the run is resumed.
    """

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a row of the log, whose number is ``step``, from 1."""
        ...

    def finish(self, step: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Add what a finished run has reached."""
        ...

    def close(self, *, finished: bool) -> None:
        """Let everything reach its place; the run may be resumed later."""
        ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``; rows that a resumed run repeats replace the old ones."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.id = "tensorboard"
        self._settings = {name: _plain(value) for name, value in run.settings.items()}
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.rows + 1)
        lines = "\n".join(f"    {name}: {value}" for name, value in self._settings.items())
        self._writer.add_text("settings", lines, 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, step: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Add the final scalars, the line of the table of settings, and the drawn network."""
        from torch.utils.tensorboard.summary import hparams

        self.log(step, metrics)
        if metrics:
            for summary in hparams(self._settings, dict(metrics)):
                self._writer._get_file_writer().add_summary(summary)
        for file in files:
            if file.name == "architecture.json":
                drawing = draw_architecture(Architecture.load(file))
                text = "".join(f"    {line}\n" for line in drawing.splitlines())
                self._writer.add_text("architecture", text, step)

    def close(self, *, finished: bool) -> None:
        """Write what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb: offline in ``RUN/wandb`` unless its environment variables say otherwise."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.id = run.id or os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]
        self._run = wandb.init(
            id=self.id,
            resume="allow",
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            **_wandb_place(run),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step of the history."""
        self._run.log(dict(values), step=step)

    def finish(self, step: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Set the summary and attach files."""
        self._run.summary.update(dict(metrics))
        for file in files:
            copy = Path(self._run.dir, PROJECT, file.name)  # apart from its own config.yaml
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
            self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def close(self, *, finished: bool) -> None:
        """End the process that writes."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow: in ``RUN/mlflow/mlflow.db`` unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # they tell of every table they make
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = MlflowClient(*_mlflow_store(run.folder))
        if run.id is None:
            experiment = _mlflow_experiment(self._client, run.folder)
            self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        self._log_params(run.settings)

    def _log_params(self, settings: Mapping[str, Any]) -> None:
        """Those that are new: MLflow never lets one change."""
        from mlflow.entities import Param

        known = self._client.get_run(self.id).data.params
        params = [Param(k, str(_plain(v))) for k, v in settings.items() if k not in known]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self.id, params=params[start : start + _PARAMS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def finish(self, step: int, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Add the final metrics, and files as artifacts."""
        self.log(step, metrics)
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def close(self, *, finished: bool) -> None:
        """Set the status."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


def _mlflow_store(folder: Path) -> list[str]:
    """The arguments of a client: none where the environment says which store."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return []
    (folder / "mlflow").mkdir(parents=True, exist_ok=True)
    return [f"sqlite:///{(folder / 'mlflow' / 'mlflow.db').resolve()}"]


def _mlflow_experiment(client: Any, folder: Path) -> str:
    """The id of the experiment; other processes may make it at the same time."""
    from mlflow.exceptions import MlflowException

    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    local = "MLFLOW_TRACKING_URI" not in os.environ
    artifacts = (folder / "mlflow" / "artifacts").resolve().as_uri() if local else None
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _wandb_place(run: TrackedRun) -> dict[str, Any]:
    """Where and how wandb writes; wandb itself reads the environment only once in a process."""
    defaults = {"mode": "offline", "dir": str(run.folder), "project": PROJECT, "name": run.name}
    return {key: os.environ.get(f"WANDB_{key.upper()}", value) for key, value in defaults.items()}


def _plain(value: Any) -> bool | int | float | str:
    """A setting as trackers take it."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "null" if value is None else str(value)


TOOLS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
