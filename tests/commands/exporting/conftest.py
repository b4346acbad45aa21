"""Run folders with random networks, and operations of a user's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from dsonas.commands.exporting import running
from dsonas.graph.architecture import Architecture
from dsonas.nn import operations
from dsonas.nn.network import Network
from dsonas.run.runs import Preprocessing, RunFolder, Shape
from helpers.builders import randomise


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """One thread, and no time spent on precise latencies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(running, "TIMED_SECONDS", 0.001)
    yield
    torch.set_num_threads(threads)


def write_run(
    folder: Path,
    architecture: Architecture,
    names: tuple[str, ...] = (),
    config: str = "",
    crop: float = 1.0,
) -> Path:
    """The folder of a finished run of an architecture."""
    skeleton = architecture.skeleton
    names = names or tuple(f"class {i}" for i in range(skeleton.num_classes))
    statistics = (0.4, 0.3, 0.5)[: skeleton.input_channels]
    run = RunFolder(folder / "run")
    network = randomise(Network(architecture), seed=len(names))
    preprocessing = Preprocessing(names, statistics, statistics, crop)
    run.write_network(network, preprocessing, Shape.of(skeleton))
    run.write_metrics({"test_error": 12.5})
    if config:
        run.write("config.yaml", config)
    return run.path


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write such a folder for one test."""
    return partial(write_run, tmp_path)


@pytest.fixture(scope="session")
def shared_run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write such a folder for several tests."""
    return partial(write_run, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Register an operation for one test."""

    def add(builder: Callable[[int], nn.Module], name: str = "own_operation") -> str:
        monkeypatch.setitem(operations._REGISTRY, name, builder)
        return name

    return add
