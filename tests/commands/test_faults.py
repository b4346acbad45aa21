"""Faults under a run: full disk, read-only folder, damaged and forged checkpoints, a second run.

Each ends in one line and exit code 2, or in a warning and the right result; never in a traceback,
a half-written file, or code that runs.
"""

import hashlib
import io
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dsonas.commands.cli import main
from dsonas.run.interrupts import StopSignal
from dsonas.run.runs import LOCK_NAME
from dsonas.train.checkpoints import MAGIC, read_checkpoint

pytestmark = pytest.mark.slow

STEPS_BEFORE_STOP = 6 + 2 * 12 + 15  # pretraining, search, and into the second epoch of training
EVERY_STEP = ["--engine.checkpoint_seconds", "0"]


@pytest.fixture(scope="module")
def halted(tmp_path_factory, tiny) -> Path:
    """A run stopped in step 3, with two checkpoints of every step; not to be changed."""
    run = tmp_path_factory.mktemp("halted") / "run"
    left = [STEPS_BEFORE_STOP]

    def stop(_: StopSignal) -> bool:
        left[0] -= 1
        return left[0] == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "__call__", stop)
        assert main(["run", *tiny, *EVERY_STEP, "--out", str(run)]) == 130
    for step in ("pretrain", "search", "train"):
        assert len(list((run / "checkpoints" / step).iterdir())) == 2
    return run


@pytest.fixture
def run(halted, tmp_path) -> Path:
    """A copy of the stopped run, to be damaged."""
    return Path(shutil.copytree(halted, tmp_path / "run"))


def checkpoints(run: Path, step: str = "train") -> list[Path]:
    return sorted((run / "checkpoints" / step).iterdir())


def check_refused(ended, *fragments: str) -> None:
    assert ended.code == 2, ended
    *before, last = ended.err.splitlines()
    assert last.startswith("dsonas: error: ")
    assert "Traceback" not in ended.err
    assert len(before) <= 6  # at most a warning for each checkpoint
    for fragment in fragments:
        assert fragment in last


def check_same(run: Path, other: Path) -> None:
    for name in ("architecture.json", "network.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    assert [path for path in run.rglob(".*") if path.is_file()] == []


def sealed(value: object) -> bytes:
    """A value as the content of a checkpoint with a right checksum."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return MAGIC + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Damaged checkpoints: the one before is used, the user is told, the result is the same.


def cut(content: bytes, tenth: int) -> bytes:
    return content[: len(content) * tenth // 10]


def flip(content: bytes, seed: int) -> bytes:
    changed, rng = bytearray(content), random.Random(seed)
    for _ in range(3):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{f"cut at {i}0 %": lambda content, i=i: cut(content, i) for i in range(10)},
    **{f"flipped, seed {i}": lambda content, i=i: flip(content, i) for i in range(5)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    dsonas, tiny, finished, run, caplog, damage
):
    before, last = checkpoints(run)
    epochs = read_checkpoint(before)["epoch"]
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    ended = dsonas("run", *tiny, "--out", run)
    assert ended.code == 0
    assert f"{last} is" in caplog.text
    assert "trying the one before" in caplog.text
    assert f"resuming train after {epochs} epochs" in ended.out
    check_same(run, finished)


def test_without_a_usable_checkpoint_of_a_step_the_step_before_is_used(
    dsonas, tiny, finished, run, caplog
):
    for path in [*checkpoints(run), checkpoints(run, "search")[-1]]:
        path.write_bytes(path.read_bytes()[:-1])
    ended = dsonas("run", *tiny, "--out", run)
    assert ended.code == 0
    assert "no checkpoint of train can be used; trying the step before" in caplog.text
    assert "resuming search after 1 epochs" in ended.out
    check_same(run, finished)


def test_without_any_usable_checkpoint_the_remedy_is_named(dsonas, tiny, run):
    for step in ("pretrain", "search", "train"):
        for path in checkpoints(run, step):
            path.write_bytes(b"")
    ended = dsonas("run", *tiny, "--out", run)
    check_refused(ended, "no usable checkpoint", f"delete {run / 'checkpoints'} to begin")


# Forged checkpoints, with a right checksum.


class Payload:
    """Makes a file when it is unpickled without restriction."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_malicious_pickle_is_refused_and_never_run(
    dsonas, tiny, finished, run, tmp_path, caplog, everywhere
):
    trace = tmp_path / "trace"
    content = sealed({"version": 1, "state": Payload(trace)})
    torch.load(io.BytesIO(content[len(MAGIC) + 32 :]), weights_only=False)
    assert trace.exists()  # so the payload works where it is let
    trace.unlink()
    for path in checkpoints(run) if everywhere else checkpoints(run)[-1:]:
        path.write_bytes(content)
    ended = dsonas("run", *tiny, "--out", run)
    assert ended.code == 0
    assert "is refused" in caplog.text
    assert not trace.exists()
    check_same(run, finished)


def test_another_version_is_refused_by_name(dsonas, tiny, run):
    for step in ("pretrain", "search", "train"):
        for path in checkpoints(run, step):
            path.write_bytes(sealed({"version": 7, "state": read_checkpoint(path)}))
    ended = dsonas("run", *tiny, "--out", run)
    check_refused(ended, "is of version '7', this dsonas reads version 1")


@pytest.mark.parametrize(
    "history", [[[[1.0]]], [[[torch.zeros(0)] * 28]], [[["x"] * 28]], [3], None], ids=str
)
def test_a_history_of_other_factors_is_refused(dsonas, tiny, run, history):
    """It would be written at the end of the search, long after."""
    shutil.rmtree(run / "checkpoints" / "train")
    last = checkpoints(run, "search")[-1]
    state = read_checkpoint(last)
    assert [len(factors) for factors in state["state"]["history"][0]] == [28]
    state["state"]["history"] = history
    last.write_bytes(sealed({"version": 1, "state": state}))
    check_refused(dsonas("run", *tiny, "--out", run), "checkpoint of search does not fit this run")


def change_weight(state) -> None:
    state["network"]["classifier.weight"] = torch.zeros(3, 3)


def change_momentum(state) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3, 3)


def change_kind(state) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = [[]]


def change_group(state) -> None:
    state["optimizer"]["param_groups"][0]["params"] = [5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_weight, "classifier.weight"),
        (change_momentum, "momentum_buffer of parameter 0 must be of shape"),
        (change_kind, "momentum_buffer of parameter 0 must be a number"),
        (change_group, "groups of parameters are others"),
    ],
)
def test_wrong_shapes_are_refused_with_the_remedy(dsonas, tiny, run, change, reason):
    state = read_checkpoint(checkpoints(run)[-1])
    change(state["state"])
    checkpoints(run)[-1].write_bytes(sealed({"version": 1, "state": state}))
    before = files(run)
    ended = dsonas("run", *tiny, "--out", run)
    check_refused(ended, "does not fit this run", reason, "checkpoints/train")
    after = files(run)
    after[run / "config.yaml"] = before[run / "config.yaml"]
    assert after == before


STATES = {
    "no step": {"stage": None},
    "another step": {"stage": "search"},
    "negative epoch": {"epoch": -1},
    "text for a number": {"batch": "3"},
    "rows of numbers": {"rows": [1]},
    "rows without a step": {"rows": [{"epoch": 1}]},
    "rows of lists": {"rows": [{"stage": "train", "epoch": 1, "loss": []}]},
    "seconds of text": {"seconds": {"train": "x"}},
    "losses": {"loss": torch.zeros(3)},
    "no extras": {"extras": None},
    "architecture of another kind": {"extras": {"architecture": 5}},
    "no state": {"state": None},
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_no_run_has_saved_is_passed_over(dsonas, tiny, finished, run, caplog, case):
    last = checkpoints(run)[-1]
    last.write_bytes(sealed({"version": 1, "state": {**read_checkpoint(last), **STATES[case]}}))
    assert dsonas("run", *tiny, "--out", run).code == 0
    assert f"{last} cannot be used" in caplog.text
    check_same(run, finished)


# Places that cannot be written.


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A small file system of its own; yields what changes its options."""

    def mount(text: str) -> subprocess.CompletedProcess[str]:
        command = ["mount", "-t", "tmpfs", "-o", text, "none", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    folder.mkdir()
    if shutil.which("mount") is None or (done := mount(options)).returncode:
        reason = done.stderr.strip() if shutil.which("mount") else "no mount command"
        pytest.skip(f"a file system of its own needs the right to mount one: {reason}")
    try:
        yield lambda text: mount(f"remount,{text}").check_returncode()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_a_run_that_goes_on_later(dsonas, tiny, finished, halted, tmp_path):
    largest = max(path.stat().st_size for path in checkpoints(halted, "pretrain"))
    disk = tmp_path / "disk"
    with mounted(disk, f"size={largest * 3 // 2 + 40_000}") as remount:
        run = disk / "run"
        ended = dsonas("run", *tiny, *EVERY_STEP, "--out", run)
        check_refused(ended, "No space left on device: free some space", str(run))
        assert [path for path in run.rglob(".*") if path.is_file()] == []
        for path in (run / "checkpoints").rglob("*.pt"):
            read_checkpoint(path)
        assert list((run / "checkpoints").rglob("*.pt"))
        remount("size=64m")
        ended = dsonas("run", *tiny, "--out", run)
        assert (ended.code, "resuming pretrain" in ended.out) == (0, True)
        check_same(run, finished)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_limit_on_the_size_of_files_loses_nothing(dsonas, tiny, finished, run, share):
    """As a quota does; needs no rights."""
    limit = int(share * checkpoints(run)[-1].stat().st_size)
    before = {path: content for path, content in files(run).items() if path.suffix == ".pt"}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        ended = dsonas("run", *tiny, *EVERY_STEP, "--out", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    check_refused(ended, "File too large", str(run))
    assert {path: path.read_bytes() for path in before} == before
    assert dsonas("run", *tiny, "--out", run).code == 0
    check_same(run, finished)


def test_a_shard_that_finds_no_space_is_named(dsonas, digit_folder, tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))
    try:
        ended = dsonas("shards", digit_folder(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    check_refused(ended, "000000.tar: File too large: lift the limit", str(tmp_path / "out"))


def test_a_read_only_folder_is_one_line_and_stays_as_it_is(
    dsonas, tiny, finished, halted, tmp_path
):
    disk = tmp_path / "disk"
    with mounted(disk, "size=64m") as remount:
        run = Path(shutil.copytree(halted, disk / "run"))
        done = Path(shutil.copytree(finished, disk / "done"))
        before = files(disk)
        remount("ro")
        ended = dsonas("run", *tiny, "--out", run)
        check_refused(ended, "Read-only file system", str(run))
        check_refused(dsonas("run", *tiny, "--out", disk / "new"), "Read-only file system")
        assert "is finished" in dsonas("run", *tiny, "--out", done).out
        assert dsonas("evaluate", "--run", done).code == 0
        assert files(disk) == before
        remount("rw")
        assert dsonas("run", *tiny, "--out", run).code == 0
        check_same(run, finished)


# Two processes.

HOLD = """
import sys
from dsonas.run.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("command", ["run", "search", "train"])
def test_a_second_process_in_a_run_folder_is_refused(dsonas, tiny, finished, run, command):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    before = files(run)
    given = ["--architecture", finished / "architecture.json"] if command == "train" else []
    ended = dsonas(command, *tiny, *given, "--out", run)
    check_refused(ended, f"{run} is in use by another dsonas, process {process.pid}")
    assert len(ended.err.splitlines()) == 1
    assert files(run) == before
    process.kill()
    process.communicate(timeout=30)
    assert (run / LOCK_NAME).exists()
    if command == "run":
        assert dsonas(command, *tiny, "--out", run).code == 0
        check_same(run, finished)
