"""Two processes started by torchrun: the same as one, one folder, and no hang when one dies."""

import csv
import json
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, strategies as st

from dsonas.commands.cli import main
from dsonas.data import images
from dsonas.run import fitting_batch

pytestmark = pytest.mark.slow

pytest.importorskip("lightning_fabric", reason="needs the extra distributed")
HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
RUN = shlex.split("""
run --config digits --data.max_train_images 200 --data.max_test_images 50
--network.levels 2 --network.channels 4 --network.blocks [1,1]
--pretrain.epochs 1 --search.epochs 2 --train.epochs 2
--pretrain.batch_size 16 --search.batch_size 16 --train.batch_size 16 --engine.threads 1
""")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True, scope="module")
def threads_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def second_process(monkeypatch):
    """Be the second of two, and speak again afterwards."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    yield
    for name in ("dsonas", "dsonas.data.images"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def launched(*arguments, **options) -> subprocess.CompletedProcess:
    command = [str(argument) for argument in arguments]
    return subprocess.run(
        command, env=ONE_THREAD, capture_output=True, text=True, timeout=300, check=False, **options
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What one process and what two have done."""
    folder = tmp_path_factory.mktemp("steps")
    runpy.run_path(str(HERE / "process_steps.py"))["main"](folder / "one.json")
    together = launched(*TORCHRUN, HERE / "process_steps.py", folder / "two.json")
    assert together.returncode == 0, together.stderr
    return [json.loads((folder / name).read_text()) for name in ("one.json", "two.json")]


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-4), ("float64", 1e-12)])
def test_a_search_has_the_same_losses_and_architecture(steps, dtype, atol):
    one, two = (found[dtype] for found in steps)
    assert len(one["losses"]) == 20
    assert max(one["losses"]) - min(one["losses"]) > 100 * atol
    assert two["losses"] == pytest.approx(one["losses"], abs=atol, rel=0)
    assert two["architecture"] == one["architecture"]
    live = [row["live_connections"] for row in one["rows"]]
    assert live[-1] < 58, "something has been removed"
    assert [row["live_connections"] for row in two["rows"]] == live


def test_training_and_evaluation_are_the_same(steps):
    one, two = (found["train"] for found in steps)
    assert len(one["losses"]) == 10
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-12, rel=0)
    assert two["rows"][-1] == pytest.approx(one["rows"][-1], rel=1e-5)


def test_batch_normalisation_is_that_of_the_whole_batch(steps):
    for found in steps[1]["batchnorm"]:
        assert max(found.values()) < 2e-4, found
    assert max(steps[1]["batchnorm"][2].values()) < 2e-6  # without an offset that eats digits


def test_one_works_before_the_other(steps):
    one, two = (found["work"] for found in steps)
    assert len(one) == 1
    assert two[1][0] >= two[0][1]


def workers_of(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_killed_process_ends_the_run_and_another_start_finishes_it(tmp_path):
    command = [*TORCHRUN, "-m", "dsonas", *RUN, "--engine.checkpoint_seconds", "0", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ONE_THREAD, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as launcher:  # fmt: skip
        while not list(tmp_path.glob("run/checkpoints/search/*")):
            assert launcher.poll() is None, launcher.stderr and launcher.stderr.read()
            time.sleep(0.05)
        os.kill(workers_of(launcher.pid)[-1], signal.SIGKILL)
        began = time.monotonic()
        _, said = launcher.communicate(timeout=90)
    assert launcher.returncode != 0
    assert time.monotonic() - began < 60
    assert "dsonas: error: another process of this run has ended" in said
    done = launched(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming search") == 1
    assert main([*RUN, "--out", str(tmp_path / "alone")]) == 0
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {path.name for path in (tmp_path / "alone").iterdir()}
    together, expected = rows_of(tmp_path / "run"), rows_of(tmp_path / "alone")
    assert [row["stage"] for row in together] == [row["stage"] for row in expected]
    for row, other in zip(together[:3], expected[:3], strict=True):  # before rounding has grown
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), abs=1e-4)
        assert row["live_connections"] == other["live_connections"]
    found, wanted = (tmp_path / name / "architecture.json" for name in ("run", "alone"))
    assert found.read_text() == wanted.read_text()


def test_what_one_process_does_is_refused_to_several(second_process, tmp_path, capsys):
    assert main([*RUN, "--pareto", "3", "--out", str(tmp_path / "run")]) == 2
    assert (
        "--pareto works in one process, got 2: start it without torchrun" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_what_all_find_is_said_by_the_first_alone(second_process, caplog):
    main([*RUN, "--pareto", "3"])
    logging.getLogger("dsonas.run.fitting").warning("the budget is not used up")
    images.say_once("this image is damaged", "of this test")
    assert [record.getMessage() for record in caplog.records] == ["this image is damaged"]


@given(size=st.integers(2, 300), num_images=st.integers(2, 3000), processes=st.integers(1, 9))
def test_a_batch_that_is_lowered_can_be_shared(size, num_images, processes):
    assume(num_images >= processes)
    found = fitting_batch(size, num_images, processes)
    if num_images >= 2 * size:
        assert found == size
    else:
        assert 2 <= found <= num_images
        assert found % processes == 0
        assert found <= max(2, processes, num_images // 4)
