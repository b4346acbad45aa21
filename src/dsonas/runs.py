"""A run on disk: what its folder holds, and how a finished network is read back."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from dsonas.architecture import Architecture, ArchitectureError, BlockGraph
from dsonas.chains import chain_from_json, is_chain
from dsonas.checkpoints import CheckpointFolder, write_atomically
from dsonas.data import ImageData
from dsonas.loop import STAGES, Row
from dsonas.network import Network

COLUMNS: tuple[str, ...] = (
    "stage",
    "epoch",
    "loss",
    "error",
    "test_error",
    "test_loss",
    "lr",
    "live_connections",
    "macs",
    "params",
    "mean_factor",
    "pressure",
    "seconds",
)


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image, and what its outputs mean.

    Args:
        class_names: names of the classes, in the order of the outputs.
        mean: per channel, in units of 0..1.
        std: per channel, in units of 0..1.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: ImageData) -> Preprocessing:
        """That of a data set."""
        return cls(data.class_names, data.mean, data.std)


class StageCheckpoints:
    """The checkpoints of a run, those of each stage in a folder of its own.

    So the end of every finished stage stays, and a stage that failed can be done again from
    there.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> None:
        """Write the next checkpoint of ``state["stage"]``."""
        CheckpointFolder(self.folder / state["stage"]).save(state)

    def load_last(self) -> dict[str, Any] | None:
        """The newest usable checkpoint of the last stage that has any; None without any."""
        for stage in reversed(STAGES):
            state = CheckpointFolder(self.folder / stage).load_last()
            if state is not None:
                return state
        return None

    def forget(self, stage: str) -> None:
        """Delete the checkpoints of a stage."""
        shutil.rmtree(self.folder / stage, ignore_errors=True)


class RunFolder:
    """The files of a run: all written atomically, so that none is ever half there.

    Args:
        path: the folder; it is made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = StageCheckpoints(self.path / "checkpoints")

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
        """Refuse to go on with another run than the folder's.

        Args:
            differences: what is not the same, a short description each.

        Raises:
            RunError: if there is a difference.
        """
        first = list(islice(differences, 3))
        if first:
            raise RunError(
                f"{self.path} holds a run with other settings ({'; '.join(first)}): "
                f"{self._remedy(first)}"
            )

    def _remedy(self, differences: Sequence[str]) -> str:
        chain = self.path / "chain.json"
        if chain.exists() and all(text.startswith("budget.") for text in differences):
            config = self.path / "config.yaml"
            return f"train from its search: dsonas train --config {config} --architecture {chain}"
        return "choose another --out, or delete that folder"

    @property
    def held(self) -> Architecture | None:
        """The architecture that the folder's training is about; None before there is one."""
        text = (self.last_checkpoint or {}).get("extras", {}).get("architecture")
        return Architecture.from_json(text) if text else self.found

    def require_architecture(self, architecture: Architecture) -> None:
        """Refuse to train another architecture than the one that the folder's run is about.

        Raises:
            RunError: if its search is not finished, or has found another one.
        """
        if self.begun is not None and self.held != architecture:
            raise RunError(
                f"{self.path} holds a run that is not about this architecture: "
                "choose another --out, or delete that folder"
            )

    def begin(self, config_text: str, *, searches: bool, refits: bool = False) -> None:
        """Write the configuration; what is to be found anew is removed first.

        Args:
            config_text: YAML.
            searches: whether this run searches; from scratch if the folder holds no run yet.
            refits: whether a finished search is to meet another budget.
        """
        if searches and self.begun is None:
            (self.path / "chain.json").unlink(missing_ok=True)
        if refits or (searches and self.begun is None):
            (self.path / "architecture.json").unlink(missing_ok=True)
        self.write("config.yaml", config_text)

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        write_atomically(self.path / name, text.encode())

    def write_log(self, rows: Sequence[Row]) -> None:
        """Write ``log.csv``: one line per epoch of every stage."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("log.csv", buffer.getvalue())

    def write_factors(self, graph: BlockGraph, history: Sequence[Sequence[list[float]]]) -> None:
        """Write ``factors.csv``: the scaling factors that are not 0 after each search epoch.

        Args:
            graph: a block of the supernet.
            history: for each epoch the packed factors of each block, or one list for all blocks.
        """
        lines = ["epoch,block,source,target,factor"]
        for epoch, blocks in enumerate(history, 1):
            for place, factors in enumerate(blocks, 1):
                block = "all" if len(blocks) == 1 else place
                lines += [
                    f"{epoch},{block},{source},{target},{factor:.6g}"
                    for (source, target), factor in zip(graph.connections, factors, strict=True)
                    if factor
                ]
        self.write("factors.csv", "\n".join(lines) + "\n")

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What ``metrics.json`` holds; None if the run is not finished."""
        path = self.path / "metrics.json"
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError:
            raise RunError(f"{path} is damaged: delete it and repeat the command") from None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``: the last file of a run, so its presence means finished."""
        self.write("metrics.json", json.dumps(metrics, indent=2) + "\n")

    def write_network(self, network: Network, preprocessing: Preprocessing) -> None:
        """Write ``architecture.json`` and ``network.safetensors`` (no auxiliary head)."""
        weights = {
            name: value.detach().cpu().contiguous()
            for name, value in network.state_dict().items()
            if not name.startswith("auxiliary.")
        }
        metadata = {
            "class_names": json.dumps(preprocessing.class_names),
            "mean": json.dumps(preprocessing.mean),
            "std": json.dumps(preprocessing.std),
        }
        self.write("architecture.json", network.architecture.to_json())
        write_atomically(self.path / "network.safetensors", to_safetensors(weights, metadata))

    def load_network(self) -> tuple[Network, Preprocessing]:
        """The trained network, in evaluation mode, and what it expects.

        Raises:
            RunError: if the folder holds no finished network, or a damaged one.
        """
        path = self.path / "network.safetensors"
        if not path.exists():
            raise RunError(
                f"{self.path} holds no finished network (network.safetensors): "
                "finish it with the command that began it, or with dsonas train"
            )
        network = Network(load_architecture(self.path / "architecture.json"))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network.load_state_dict(weights)
            fields = [tuple(json.loads(metadata[k])) for k in ("class_names", "mean", "std")]
        except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{path} is damaged or not of this architecture: {reason}") from None
        return network.eval().requires_grad_(False), Preprocessing(*fields)


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture file.

    Raises:
        RunError: if there is none.
        ArchitectureError: if it is malformed.
    """
    return load_chain(path)[-1]


def load_chain(path: str | Path) -> list[Architecture]:
    """Read the ``chain.json`` of a search, largest first; an architecture file is a chain of one.

    Raises:
        RunError: if there is none.
        ArchitectureError: if it is malformed.
    """
    if not Path(path).is_file():
        raise RunError(
            f"architecture file {path} does not exist: give an architecture.json or chain.json"
        )
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
