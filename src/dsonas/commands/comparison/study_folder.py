"""A study on disk: configuration, architectures, and a folder with a result for each job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsonas._utils import write_atomically
from dsonas.commands.comparison.study import Study
from dsonas.commands.comparison.units import RANKING_IMAGES, Unit, known_subjects, random_subjects
from dsonas.cost import Budget, architecture_cost, chain_to_json
from dsonas.graph import Architecture
from dsonas.run import RunError, load_chain
from dsonas.search import blocks_macs

MEASURED = (
    "test_error", "test_loss", "macs", "params", "channels", "live_connections", "train_seconds",
    "device", "threads", "versions", "diverged",
)  # fmt: skip


class StudyFolder:
    """The files of a study; all are written atomically.

    Args:
        path: the folder.
        study: what is compared.
        program: how this program is started, such as ``("python", "-m", "dsonas")``.
        options: for every job, such as files of own operations to import.
    """

    def __init__(
        self, path: str | Path, study: Study, program: Sequence[str], options: Sequence[str] = ()
    ) -> None:
        self.path, self.study = Path(path).absolute(), study
        self.program, self.options = list(program), list(options)

    def begin(self, config_text: str) -> None:
        """Write configuration and known architectures.

        Raises:
            RunError: if an architecture is not the one that the folder's study began with.
        """
        known = {subject.name: subject.architecture for subject in known_subjects(self.study)}
        texts = {name: net.to_json() for name, net in known.items() if net is not None}
        for name, text in texts.items():
            path = self._subject_file(name)
            if path.exists() and path.read_text() != text:
                raise RunError(
                    f"{path} is not what this study would draw: was another budget added that "
                    "some architectures cannot meet? Choose another --out"
                )
        write_atomically(self.path / "config.yaml", config_text.encode())
        for name, text in texts.items():
            if not self._subject_file(name).exists():
                write_atomically(self._subject_file(name), text.encode())

    def folder(self, unit: Unit) -> Path:
        """The folder of a job."""
        return self.path / "jobs" / unit.name

    def is_done(self, unit: Unit) -> bool:
        """Whether its result is there."""
        return (self.folder(unit) / "result.json").exists()

    def result(self, unit: Unit) -> dict[str, Any] | None:
        """Its result; None if it is not done."""
        return read_json(self.folder(unit) / "result.json") if self.is_done(unit) else None

    def command(self, unit: Unit) -> list[str]:
        """The command that does a job, or goes on with it.

        Raises:
            InfeasibleBudgetError: if the architecture cannot meet the budget at any width.
        """
        run, config = self.folder(unit), str(self.path / "config.yaml")
        options = [*self.options, "--config", config, "--out", str(run), "--seed", str(unit.seed)]
        if unit.kind == "search":
            bounds = self.study.config.budgets[0].bounds  # which measures, not how much of them
            given = [f"--budget.{name}={bound}" for name, bound in bounds.items()]
            return [*self.program, "search", *options, f"--search.space={unit.space}", *given]
        if unit.budget is not None:
            fitted = self.study.fit(self._chain(unit), self._bounds(unit))
            write_atomically(run / "given.json", fitted.to_json().encode())
        if unit.kind == "train":
            given = ["--architecture", str(run / "given.json")]
            return [*self.program, "train", *options, *given]
        task = {**asdict(unit), **self._task(unit)}
        write_atomically(run / "task.json", to_json(task))
        task_options = ["--out", str(self.path), "--job", unit.name]
        return [*self.program, "compare", *self.options, *task_options]

    def _task(self, unit: Unit) -> dict[str, Any]:
        """What a trial or a ranking has to know besides the configuration."""
        config = self.study.config
        if unit.kind == "trial":
            candidates_of = unit.subject.rpartition("-")[0]  # all of them see the same images
            return {
                "epochs": config.trial_epochs,
                "held_out": config.held_out,
                "split": f"{config.run.seed} {candidates_of}",
            }
        names = [subject.name for subject in random_subjects(self.study, unit.space)]
        return {"subjects": names, "search": unit.needs[0], "images": RANKING_IMAGES}

    def _bounds(self, unit: Unit) -> Budget:
        assert unit.budget is not None
        return self.study.config.budgets[unit.budget]

    def _subject_file(self, name: str) -> Path:
        return self.path / "architectures" / f"{name}.json"

    def _chain(self, unit: Unit) -> list[Architecture]:
        """What a job trains, to be fitted to its budget; a random search chooses it now."""
        path = self._subject_file(unit.subject)
        if unit.kind == "train" and unit.method == "random_search" and not path.exists():
            trials = [read_json(self.path / "jobs" / name / "result.json") for name in unit.needs]
            best = best_trial(trials)
            write_atomically(path, self._subject_file(best["subject"]).read_bytes())
        return load_chain(path)

    def record(self, unit: Unit, exit_code: int, seconds: float) -> None:
        """Note an attempt and its processor time."""
        path = self.folder(unit) / "attempts.json"
        attempts = self.attempts(unit)
        attempts.append({"exit_code": exit_code, "core_seconds": round(seconds, 3)})
        write_atomically(path, to_json(attempts))

    def attempts(self, unit: Unit) -> list[dict[str, Any]]:
        """The attempts at a job so far, those that were interrupted included."""
        path = self.folder(unit) / "attempts.json"
        return read_json(path) if path.exists() else []

    def finish(self, unit: Unit) -> None:
        """Write the result of a job from what its process left.

        Raises:
            OSError: if it left nothing.
        """
        run = self.folder(unit)
        if unit.kind == "search":
            found = self._keep_found(unit, load_chain(run / "chain.json"))
        elif unit.kind == "rank":
            found = read_json(run / "ranking.json")
        else:
            metrics = read_json(run / "metrics.json")
            found = {name: metrics[name] for name in MEASURED if name in metrics}
            if unit.kind == "trial":  # what its run took for the test images were training images
                found["validation_error"] = found.pop("test_error")
                found["loss"] = found.pop("test_loss")
        about = {key: value for key, value in asdict(unit).items() if key != "needs"}
        seconds = round(sum(attempt["core_seconds"] for attempt in self.attempts(unit)), 3)
        result = {**about, "work": unit.work, "core_seconds": seconds, **found}
        write_atomically(run / "result.json", to_json(result))

    def _keep_found(self, unit: Unit, chain: list[Architecture]) -> dict[str, Any]:
        """Put what a search found among the other architectures; what to say of it."""
        write_atomically(self._subject_file(unit.subject), chain_to_json(chain).encode())
        structure, whole = chain[-1], self.study.spaces[unit.space].complete()
        return {
            "live_connections": structure.num_live,
            "supernet_connections": whole.num_live,
            "structure_share": round(blocks_macs(structure) / blocks_macs(whole), 4),
            "supernet_macs": architecture_cost(whole).macs,
        }


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The trial of least error; of equal ones that of least loss; a diverged one only for want."""
    return min(
        trials, key=lambda trial: ("diverged" in trial, trial["validation_error"], trial["loss"])
    )


def to_json(value: Any) -> bytes:
    """JSON text of a value, as all files of a study hold it."""
    return (json.dumps(value, indent=1) + "\n").encode()


def read_json(path: Path) -> Any:
    """What a file of a study holds.

    Raises:
        RunError: if it is damaged.
        OSError: if it is missing.
    """
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise RunError(f"{path} is damaged: delete it and repeat the command") from None


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a study that means something else by the same job.

    Raises:
        RunError: naming the first difference.
    """
    for key, value in given.items():
        if stored.get(key) != value:
            raise RunError(
                f"{path} holds a study with other settings ({key} was {stored.get(key)!r} and is "
                f"{value!r}): choose another --out, or delete that folder"
            )
