"""A run on disk: what its folder holds, and how a finished network is read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from torch import nn

from dsonas._utils import csv_text, is_imported, read_json, readable_json, write_atomically
from dsonas.cost import chain_from_json, is_chain
from dsonas.data import Split
from dsonas.graph import Architecture, ArchitectureError, BlockGraph
from dsonas.nn import Network
from dsonas.run.network_files import (
    FinishedNetwork,
    Preprocessing,
    RunError,
    Shape,
    read_network,
    write_weights,
)
from dsonas.run.user_models import (
    CHOICES_FILE,
    SOURCE_FILE,
    OwnModel,
    OwnSpace,
    choices_from_json,
    named_model,
)
from dsonas.train import STAGES, Row, StageCheckpoints

STUDY_FILES = ("attempts.json", "given.json", "lock", "output.txt", "task.json")  # of a job
JOBS_FILE = "jobs.json"  # of a study
COLUMNS: tuple[str, ...] = (
    "stage",
    "epoch",
    "loss",
    "error",
    "test_error",
    "test_loss",
    "val_error",
    "val_loss",
    "lr",
    "live_connections",
    "macs",
    "params",
    "mean_factor",
    "penalty_scale",
    "removed_by_penalty",
    "removed_by_budget",
    "seconds",
)

SUMMARY = (  # numbers of metrics.json that describe a finished run
    "test_error",
    "macs",
    "params",
    "live_connections",
    "supernet_connections",
    "search_seconds",
    "train_seconds",
)


LOCK_NAME = ".lock"
CODE_FILE = "user_code.json"
NETWORK_FILE = "network.safetensors"
COMPRESSED_FILE, MODEL_SOURCE = "compressed.json", "model.py"  # of dsonas compress
MODEL_FOLDER = "model"  # of save_model


class FolderInUseError(ValueError):
    """Another process works in the folder; the message is one line that says what to do."""


class RunFolder:
    """The files of a run: all written atomically, so that none is ever half there.

    The folder is made when the first file is written. Of several processes that train together only
    one ``writes``; in the others whatever would write does nothing.
    """

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.checkpoints = StageCheckpoints(self.path / "checkpoints", writes=writes)

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Keep every other process from working in this folder while the context is open.

        The folder is made if need be, and removed at the end if it is still empty. The lock ends
        with the process, however that ends. Where nothing can be written there is none.

        Raises:
            FolderInUseError: if another process works there.
            RunError: if the folder holds files that are not of a run.
            OSError: if the folder cannot be made.

        Example:
            >>> folder = RunFolder(getfixture("tmp_path") / "run")
            >>> with folder.lock():
            ...     [path.name for path in folder.path.iterdir()]
            ['.lock']
            >>> folder.path.exists()
            False
        """
        if not self.writes:
            yield self
            return
        self._require_own()
        absent = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        path, own, holder = self.path / LOCK_NAME, None, "unknown"
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
            own = path.stat()
            with suppress(OSError):  # on a full disk nobody says who holds it
                path.write_text(f"{os.getpid()}\n")
        except Timeout:
            with suppress(OSError):
                holder = path.read_text().strip()
            raise FolderInUseError(
                f"{self.path} is in use by another dsonas, process {holder}: wait for its end, or "
                "choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        try:
            yield self
        finally:
            with suppress(OSError):
                if own is not None and os.path.samestat(path.stat(), own):
                    path.unlink()  # before it ends: nobody loses a lock that is his
            lock.release()
            with suppress(OSError):  # what was written into stays
                for folder in absent:
                    folder.rmdir()

    def require_outside(self, images: Path) -> None:
        """Refuse to lie among the images: a folder of a run is no class, nor what is in it."""
        if self.path.resolve().is_relative_to(images.resolve()):
            raise RunError(
                f"--out must be outside of the image folder {images}, got {self.path}: choose "
                "another"
            )

    def require_images(self, now: Split | None) -> None:
        """Refuse other files of images than those that this folder's ``split.csv`` tells of."""
        before = self.split
        if before and now and (what := before.changes(now)):
            raise RunError(
                f"{self.path} was begun with other images ({what}): put them back as they were, or "
                "choose another --out"
            )

    def _require_own(self) -> None:
        """Refuse a folder of somebody else's files: its config.yaml, say, would be overwritten."""
        if not self.path.is_dir():
            return
        names = sorted(file.name for file in self.path.iterdir() if file.name[0] != ".")
        names = [name for name in names if name not in STUDY_FILES]
        try:
            stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            stored = None
        is_run = isinstance(stored, dict) and {"seed", "data", "network", "train"} <= stored.keys()
        if names and not is_run:
            raise RunError(
                f"--out must be a new folder or that of a run, got {self.path}, which holds other "
                f"files ({', '.join(names[:3])}): choose another"
            )

    def require_kind(self, kind: str) -> None:
        """Refuse the folder of a study (``dsonas compare``) for a run, or that of a run for one."""
        held = "study" if (self.path / JOBS_FILE).exists() else "run" if self.begun else kind
        if held != kind:
            raise RunError(f"{self.path} is the folder of a {held}: a {kind} needs another --out")

    @cached_property
    def last_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint that a run started now goes on from; None to begin from scratch."""
        return self.checkpoints.load_last()

    @property
    def begun(self) -> str | None:
        """The last stage that has something to go on from; None if there is nothing."""
        if self.metrics:
            return STAGES[-1]
        return self.last_checkpoint["stage"] if self.last_checkpoint else None

    @property
    def found(self) -> Architecture | None:
        """What a finished search has found; None if the run has not come so far."""
        path = self.path / "architecture.json"
        finished = self.begun in STAGES[1:] and path.exists()
        return Architecture.load(path) if finished else None

    def refuse(self, differences: Iterable[str]) -> None:
        """Refuse to go on with another run than the folder's, given differences in a few words."""
        first, chain = list(islice(differences, 3)), self.path / "chain.json"
        remedy = "choose another --out, or delete that folder"
        if chain.exists() and all(text.startswith("budget.") for text in first):
            config = self.path / "config.yaml"
            remedy = f"train from its search: dsonas train --config {config} --architecture {chain}"
        if first:
            told = f"{self.path} holds a run with other settings ({'; '.join(first)}): {remedy}"
            raise RunError(told)

    def require_code(self, code: Mapping[str, str]) -> None:
        """Refuse to go on with other Python files of the user's, given as SHA-256 by name."""
        path = self.path / CODE_FILE
        before = read_json(path) if path.exists() else {}
        names = dict.fromkeys((*before, *code))
        changed = [name for name in names if before.get(name) != code.get(name)]
        self.refuse(
            f"{name} {'has changed since' if name in code else 'is missing: --import it'}"
            if name in before
            else f"{name} was not imported when it was begun"
            for name in changed
        )

    def write_code(self, code: Mapping[str, str]) -> None:
        """Note the Python files of the user's that a run or study is begun with."""
        if code:
            self.write(CODE_FILE, readable_json(code, 1) + "\n")
        elif self.writes:
            (self.path / CODE_FILE).unlink(missing_ok=True)

    @property
    def held(self) -> Architecture | None:
        """The architecture that the folder's training is about; None before there is one."""
        text = (self.last_checkpoint or {}).get("extras", {}).get("architecture")
        return Architecture.from_json(text) if text else self.found

    def require_architecture(self, architecture: Architecture) -> None:
        """Refuse to train another architecture than the one that the folder's run is about."""
        if self.begun is not None and self.held != architecture:
            raise RunError(
                f"{self.path} holds a run that is not about this architecture: "
                "choose another --out, or delete that folder"
            )

    def begin(self, config_text: str, *, searches: bool, refits: bool = False) -> None:
        """Write the configuration; what is to be found anew is removed first.

        A run that searches begins from scratch if the folder holds no run yet; ``refits`` says that
        a finished search is to meet another budget.
        """
        if not self.writes:
            return
        if searches and self.begun is None:
            for name in ("chain.json", CHOICES_FILE, SOURCE_FILE, COMPRESSED_FILE, MODEL_SOURCE):
                (self.path / name).unlink(missing_ok=True)
        if refits or (searches and self.begun is None):
            (self.path / "architecture.json").unlink(missing_ok=True)
        self.write("config.yaml", config_text)

    @property
    def split(self) -> Split | None:
        """Which files of its image folder the run uses for what; None if it has no such folder."""
        path = self.path / "split.csv"
        return Split.from_csv(path.read_bytes().decode(errors="replace")) if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        if self.writes:
            write_atomically(self.path / name, text.encode())

    def write_log(self, rows: Sequence[Row]) -> None:
        """Write ``log.csv``: one line per epoch of every stage."""
        lines = [[row.get(name, "") for name in COLUMNS] for row in rows]
        self.write("log.csv", csv_text([COLUMNS, *lines]))

    def write_factors(self, graph: BlockGraph, history: Sequence[Sequence[list[float]]]) -> None:
        """Write ``factors.csv``: the scaling factors that are not 0 after each search epoch.

        A history holds for each epoch the packed factors of each block, or one list for all.
        """
        rows = [
            (epoch, "all" if len(blocks) == 1 else block, *connection, factor)
            for epoch, blocks in enumerate(history, 1)
            for block, factors in enumerate(blocks, 1)
            for connection, factor in zip(graph.connections, factors, strict=True)
        ]
        self._write_factors(("epoch", "block", "source", "target", "factor"), rows)

    def write_choice_factors(
        self, names: Mapping[str, Sequence[str]], history: Sequence[Sequence[list[float]]]
    ) -> None:
        """Write ``factors.csv`` of a model with choices, by label and candidate.

        Epoch 0, where all factors are 1, is added.
        """
        start = [[1.0] * len(candidates) for candidates in names.values()]
        rows = [
            (epoch, label, candidate, factor)
            for epoch, vectors in enumerate([start, *history])
            for (label, candidates), factors in zip(names.items(), vectors, strict=True)
            for candidate, factor in zip(candidates, factors, strict=True)
        ]
        self._write_factors(("epoch", "choice", "candidate", "factor"), rows)

    def _write_factors(self, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        live = [(*place, f"{factor:.6g}") for *place, factor in rows if factor]
        self.write("factors.csv", csv_text([columns, *live]))

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What ``metrics.json`` holds; None if the run is not finished; refused if damaged."""
        return self._metrics_with("test_error")

    def _metrics_with(self, *names: str) -> dict[str, Any] | None:
        path = self.path / "metrics.json"
        if not path.exists():
            return None
        found = read_json(path)
        numbers = found if isinstance(found, dict) else {}
        if not all(isinstance(numbers.get(name), int | float) for name in names):
            raise RunError(f"{path} is damaged: delete it and repeat the command")
        return found

    @property
    def summary(self) -> dict[str, Any] | None:
        """The metrics, with every number of ``SUMMARY``; None if the run is not finished."""
        return self._metrics_with(*SUMMARY)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``: the last file of a run, so its presence means finished."""
        self.write("metrics.json", readable_json(metrics, 2) + "\n")

    def write_network(
        self, network: nn.Module, preprocessing: Preprocessing, shape: Shape, **notes: str
    ) -> None:
        """Write ``network.safetensors`` (no auxiliary head), and the architecture of one of ours.

        ``supernet`` among the notes is the function of ``supernet.py`` that makes its supernet.
        """
        if isinstance(network, Network):
            self.write("architecture.json", network.architecture.to_json())
        if self.writes:
            write_weights(self.path / NETWORK_FILE, network, preprocessing, shape, **notes)

    def load_network(self) -> FinishedNetwork:
        """The trained network, in evaluation mode, and what it expects.

        That of a model of the user's is made by the copy of their file in the folder, once that
        has been imported: a folder alone never runs code.

        Raises:
            RunError: if the folder holds no finished network, a damaged one, or one whose source
                has not been imported.
        """
        path = self.path / NETWORK_FILE
        if not path.exists():
            raise RunError(
                f"{self.path} holds no finished network (network.safetensors): "
                "finish it with the command that began it, or with dsonas train"
            )
        if (self.path / CHOICES_FILE).exists():
            choices = choices_from_json(self.path / CHOICES_FILE)
            source = self._require_imported(SOURCE_FILE)

            def final(shape: Shape, notes: Mapping[str, Any]) -> nn.Module:
                return OwnSpace(source, str(notes.get("supernet"))).final(shape, choices)

            return read_network(path, final)
        if (self.path / COMPRESSED_FILE).exists():
            from dsonas.sparse import load_model  # a second, for this only

            model = named_model(compressed_from_json(self.path / COMPRESSED_FILE)["model"])
            if isinstance(model, OwnModel):
                model = OwnModel(self._require_imported(MODEL_SOURCE), model.function)
            folder = self.path / MODEL_FOLDER
            return read_network(path, lambda shape, _: load_model(folder, model.model(shape)))
        architecture = load_architecture(self.path / "architecture.json")
        shape = Shape.of(architecture.skeleton)
        return read_network(path, lambda *_: Network(architecture), shape)

    def _require_imported(self, name: str) -> Path:
        """The copy of the user's file, which has been imported."""
        source = self.path / name
        if not source.is_file() or not is_imported(source):
            raise RunError(
                f"{self.path} holds a network of an own model, whose source is run only if "
                f"it is named: add --import {source}"
            )
        return source


def compressed_from_json(path: Path) -> dict[str, Any]:
    """Read ``compressed.json``: the model, its costs, what is left of each part; or a RunError."""
    value = read_json(path)
    left = value.get("left") if isinstance(value, dict) else None
    rows = left.values() if isinstance(left, dict) else [None]
    counted = all(isinstance(row, list) and list(map(type, row)) == [int, int] for row in rows)
    if not counted or not isinstance(value.get("model"), str):
        raise RunError(f"{path} must hold a model and what is left of it: repeat the command")
    return value


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture file; see ``load_chain``."""
    return load_chain(path)[-1]


def load_chain(path: str | Path) -> list[Architecture]:
    """Read the ``chain.json`` of a search, largest first; an architecture file is a chain of one.

    Raises:
        RunError: if there is none.
        ArchitectureError: if it is malformed.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise RunError(f"architecture file {path} {what}: give an architecture.json or chain.json")
    try:
        text = Path(path).read_text(encoding="utf-8")
        return chain_from_json(text) if is_chain(text) else [Architecture.from_json(text)]
    except (ArchitectureError, UnicodeDecodeError) as error:
        raise ArchitectureError(f"{path}: {error}") from None


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import platform

    import torchvision

    import dsonas

    return {
        "dsonas": dsonas.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
