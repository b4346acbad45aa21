"""A run on disk: what its folder holds, and how a finished network is read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from dsonas.architecture import Architecture
from dsonas.checkpoints import CheckpointFolder, write_atomically
from dsonas.data import ImageData
from dsonas.loop import Row
from dsonas.network import Network

COLUMNS = (
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


class RunFolder:
    """The files of a run: all written atomically, so that none is ever half there.

    Args:
        path: the folder; it is made if needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints")

    def claim(self, config_text: str, differences: Sequence[str]) -> None:
        """Write the configuration, or check that the folder's run has the same.

        Args:
            config_text: the resolved configuration as YAML.
            differences: how it differs from the one that the folder holds, if it holds one.

        Raises:
            RunError: if the folder belongs to another run.
        """
        if differences:
            raise RunError(
                f"{self.path} holds a run with other settings ({'; '.join(differences[:3])}): "
                "choose another --out, or delete that folder"
            )
        if not (self.path / "config.yaml").exists():
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

    @property
    def metrics(self) -> dict[str, Any] | None:
        """What ``metrics.json`` holds; None if the run is not finished."""
        path = self.path / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else None

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
            raise RunError(f"{self.path} holds no network.safetensors: is the run finished?")
        network = Network(Architecture.load(self.path / "architecture.json"))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            network.load_state_dict(weights)
            fields = [tuple(json.loads(metadata[k])) for k in ("class_names", "mean", "std")]
        except (SafetensorError, RuntimeError, KeyError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{path} is damaged or not of this architecture: {reason}") from None
        return network.eval().requires_grad_(False), Preprocessing(*fields)


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
