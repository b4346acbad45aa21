"""One process at a time in a folder, and a lock that no crash leaves behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsonas.run.runs import LOCK_NAME, FolderInUseError, RunFolder

pytestmark = pytest.mark.slow

HOLD = """
import sys
from dsonas.run.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""
FORK = """
import os, sys, time
from dsonas.run.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    if os.fork() == 0:
        os.close(0)
        time.sleep(60)
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, program: str = HOLD) -> subprocess.Popen[str]:
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    process = hold(folder)
    with pytest.raises(FolderInUseError, match=rf"run is in use .* process {process.pid}: wait"):
        RunFolder(folder).lock().__enter__()
    process.communicate(timeout=30)
    assert not folder.exists()
    with RunFolder(folder).lock():
        assert (folder / LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_killed_process_leaves_no_lock(tmp_path):
    process = hold(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / LOCK_NAME).exists()
    with RunFolder(tmp_path).lock():
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_children_of_a_killed_process_hold_no_lock(tmp_path):
    """As the workers that read images, which end a little later."""
    process = hold(tmp_path, FORK)
    try:
        process.kill()
        process.wait(timeout=30)
        with RunFolder(tmp_path).lock():
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def test_what_was_written_stays(tmp_path):
    folder = tmp_path / "deep" / "run"
    with RunFolder(folder).lock():
        (folder / "file").write_text("content")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_only_folders_that_were_made_are_removed(tmp_path):
    with RunFolder(tmp_path / "a" / "b").lock():
        pass
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.exists()


def test_an_error_inside_ends_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).lock():
        raise ZeroDivisionError
    process = hold(tmp_path)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_lock_of_another_is_never_removed(tmp_path):
    """If somebody deletes the folder while it is in use, and another process begins there."""
    with RunFolder(tmp_path).lock():
        (tmp_path / LOCK_NAME).unlink()
        process = hold(tmp_path)
    with pytest.raises(FolderInUseError):
        RunFolder(tmp_path).lock().__enter__()
    process.communicate(timeout=30)


def test_a_place_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dsonas.run.runs.FileLock.acquire", refuse)
    with RunFolder(tmp_path).lock():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_write_takes_no_lock(tmp_path):
    with RunFolder(tmp_path / "run", writes=False).lock():
        assert not (tmp_path / "run").exists()
