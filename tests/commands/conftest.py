"""Tiny runs, in this process where its behaviour does not matter, and folders of digits."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dsonas.commands.cli import main

TINY = shlex.split("""
--data.max_train_images 200 --data.max_test_images 50
--network.levels 2 --network.channels 4 --network.blocks [1,1]
--pretrain.epochs 1 --search.epochs 2 --train.epochs 2
--pretrain.batch_size 16 --search.batch_size 16 --train.batch_size 16 --engine.threads 1
""")
LONGER = shlex.split("""
--data.max_train_images 200 --data.max_test_images 50
--network.levels 2 --network.channels 4 --network.blocks [1,1]
--pretrain.epochs 4 --search.epochs 4 --train.epochs 4 --train.dropout 0.2
--pretrain.batch_size 8 --search.batch_size 8 --train.batch_size 16 --engine.threads 1
""")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture(scope="session")
def longer() -> list[str]:
    return list(LONGER)


@pytest.fixture
def dsonas(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ended:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a command as a process of its own, its output piped."""

    def popen(*arguments: object, program: tuple[str, ...] = ("-m", "dsonas")) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return popen


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["run", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished longer run; not to be changed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(["run", *LONGER, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write digits as PNG files in class folders, in a colour mode."""
    flat, labels = load_digits(return_X_y=True)

    def write(mode: str = "L", classes: int = 3, each: int = 20) -> Path:
        root = tmp_path_factory.mktemp("images")
        for label in range(classes):
            folder = root / f"digit{label}"
            folder.mkdir()
            for i, pixels in enumerate(np.asarray(flat)[labels == label][:each]):
                image = Image.fromarray(np.uint8(pixels.reshape(8, 8) * 15.9)).convert(mode)
                image.save(folder / f"{i:02}.png")
        return root

    return write
