"""TensorBoard, Weights & Biases and MLflow show a run: its log, settings, result and files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from dsonas.run.run_config import LogConfig, RunConfig
from dsonas.run.runs import RunFolder
from dsonas.train import Row

FILES = ("config.yaml", "architecture.json", "choices.json", "compressed.json", "chain.json",
         "log.csv", "factors.csv", "metrics.json", "report.html")  # fmt: skip
MEMORY = "trackers.json"
PROJECT = "dsonas"
_MLFLOW = {  # nothing is sent of its use; a server that does not answer is given up in a minute
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_SETTINGS = ("seed", "threads")  # in metrics.json, but no result
logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A place that shows runs.

    It is made of the folder of a run, its settings by dotted name, the ``id`` by which it knows the
    run (None: it does not yet), and the number of rows of the log that it has.
    """

    id: str

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], id: str | None, rows: int
    ) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a row of the log, whose number is ``step``, from 1."""
        ...

    def close(self, files: Sequence[Path], *, finished: bool) -> None:
        """Take the files, and let everything reach its place; the run may be resumed later."""
        ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``; rows that a resumed run repeats replace the old ones."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], id: str | None, rows: int):
        from torch.utils.tensorboard.writer import SummaryWriter

        self.id = "tensorboard"
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=rows + 1)
        lines = "".join(f"    {name}: {value}\n" for name, value in settings.items())
        self._writer.add_text("settings", lines, 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, files: Sequence[Path], *, finished: bool) -> None:
        """Write what is buffered; files are beside it anyway."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb: offline in ``RUN/wandb`` unless its environment variables say otherwise."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], id: str | None, rows: int):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        name = folder.resolve().name
        defaults = {"mode": "offline", "dir": str(folder), "project": PROJECT, "name": name}
        # wandb itself reads the environment only once in a process
        place: dict[str, Any] = {
            k: os.environ.get(f"WANDB_{k.upper()}", v) for k, v in defaults.items()
        }
        self.id = id or os.environ.get("WANDB_RUN_ID") or uuid4().hex[:8]
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self._run = wandb.init(id=self.id, resume="allow", config=dict(settings),
                               allow_val_change=True, settings=quiet, **place)  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step of the history."""
        self._run.log(dict(values), step=step, commit=True)

    def close(self, files: Sequence[Path], *, finished: bool) -> None:
        """Attach files and end the process that writes."""
        for file in files:
            copy = Path(self._run.dir, PROJECT, file.name)  # apart from its own config.yaml
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
            self._run.save(str(copy), base_path=self._run.dir, policy="now")
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow: in ``RUN/mlflow/mlflow.db`` unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], id: str | None, rows: int):
        for name, value in _MLFLOW.items():
            os.environ.setdefault(name, value)
        place = (folder / "mlflow").resolve()
        local = "MLFLOW_TRACKING_URI" not in os.environ
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow

            for name in ("mlflow", "alembic", "urllib3"):  # they tell of every table and attempt
                logging.getLogger(name).setLevel(logging.ERROR)
            if local:
                place.mkdir(parents=True, exist_ok=True)
            self._client = mlflow.MlflowClient(
                f"sqlite:///{place / 'mlflow.db'}" if local else None
            )
        if id is None:
            artifacts = (place / "artifacts").as_uri() if local else None
            run = self._client.create_run(
                self._experiment(artifacts), run_name=folder.resolve().name
            )
            self.id = run.info.run_id
        else:
            self.id = id
            self._client.update_run(id, status="RUNNING")
        known = self._client.get_run(self.id).data.params  # MLflow never lets one change
        for name in settings.keys() - known.keys():
            self._client.log_param(self.id, name, settings[name])

    def _experiment(self, artifacts: str | None) -> str:
        """The id of the experiment; other processes may make it at the same time."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        found = self._client.get_experiment_by_name(name)  # a server that is not there fails here
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=artifacts)
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, files: Sequence[Path], *, finished: bool) -> None:
        """Add files as artifacts and set the status."""
        for file in files:
            self._client.log_artifact(self.id, str(file))
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


TOOLS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}  # each name is also that of a package and of an extra


def require_trackers(config: LogConfig) -> None:
    """Refuse a tracker whose package is not installed, by a ValueError that names the extra."""
    for name in config.trackers:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is not the package
            raise ValueError(
                f"log.trackers {name} needs a package that is not installed: "
                f'pip install "dsonas[{name}]", or leave it out'
            )


class Tracking:
    """The trackers of a run; one that fails is left out, and the run goes on.

    ``RUN/trackers.json`` keeps under which id each knows the run, how many rows of the log it has,
    and whether all: a resumed run goes on in the same place, and one that is added later gets all.
    Of several processes that train together only one ``writes``. A ValueError if the package of a
    tracker is not installed.
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
        """Bring every tracker up to date with the whole log so far."""
        for name in tuple(self.names):
            with self._guarded(name):
                tracker, known = self._tracker(name, len(rows))
                for step in range(known["rows"] + 1, len(rows) + 1):
                    row = rows[step - 1]
                    tracker.log(step, numbers_of(str(row["stage"]), row))
                self._remember(name, tracker.id, len(rows))

    def complete(self) -> None:
        """Give a run that is finished to those trackers that do not have the whole."""
        for name in tuple(self.names):
            with self._guarded(name):
                if self._known(name)["whole"]:
                    self.names.remove(name)
        with self:
            pass

    def close(self, *, finished: bool) -> None:
        """End the work of all trackers; if the command has ``finished``, with results and files."""
        files = [path for name in FILES if (path := self._folder.path / name).is_file()]
        for name in tuple(self.names):
            with self._guarded(name):
                if finished and (values := numbers_of("final", self._folder.metrics or {})):
                    tracker, known = self._tracker(name)
                    tracker.log(known["rows"] + 1, values)
                if name in self._live:
                    tracker = self._live.pop(name)
                    tracker.close(files if finished else (), finished=finished)
                    self._remember(name, tracker.id, self._known(name)["rows"], whole=finished)

    def _tracker(self, name: str, rows: int | None = None) -> tuple[Tracker, dict[str, Any]]:
        """A tracker at work, and what it has; rows from there on will be replaced."""
        known = self._known(name)
        if name not in self._live:
            had = known["rows"] if rows is None else min(known["rows"], rows)
            settings = {key: _plain(value) for key, value in self._config.settings().items()}
            self._live[name] = TOOLS[name](self._folder.path, settings, known["id"], had)
            self._remember(name, self._live[name].id, had)
        return self._live[name], self._memory[name]

    def _known(self, name: str) -> dict[str, Any]:
        """What a tracker has of the run."""
        path = self._folder.path / MEMORY
        if not self._memory and path.is_file():
            self._memory = json.loads(path.read_text(encoding="utf-8"))
        return {"id": None, "rows": 0, "whole": False, **self._memory.get(name, {})}

    def _remember(self, name: str, identity: str, rows: int, whole: bool = False) -> None:
        self._memory[name] = {"id": identity, "rows": rows, "whole": whole}
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


def numbers_of(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of a row of the log, or of ``metrics.json``; settings are no results.

    Example:
        >>> numbers_of("search", {"stage": "search", "epoch": 2, "lr": "", "seed": 0})
        {'search/epoch': 2}
    """
    return {
        f"{group}/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _SETTINGS
    }


def _plain(value: Any) -> bool | int | float | str:
    """A setting as trackers take it."""
    if isinstance(value, bool | int | float | str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "null"
