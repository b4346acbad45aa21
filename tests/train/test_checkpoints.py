"""Checkpoints: damaged ones are noticed, code is never run, a crash leaves nothing half."""

import contextlib
import errno
import hashlib
import io
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dsonas.train.checkpoints import (
    MAGIC,
    CheckpointError,
    CheckpointFolder,
    read_checkpoint,
    write_atomically,
)

STATE = {
    "epoch": 3,
    "rows": [{"stage": "search", "loss": 0.5}],
    "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float64)},
    "none": None,
    "flags": (True, False),
}


def same(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(v, two[k]) for k, v in one.items())
    return one == two


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sealed(body: bytes) -> bytes:
    """A body with the head and checksum of a real checkpoint."""
    return MAGIC + hashlib.sha256(body).digest() + body


@pytest.fixture
def two(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.save({"number": 1})
    folder.save({"number": 2, "weights": torch.arange(50.0)})
    return folder


def last_file(folder: CheckpointFolder) -> Path:
    return sorted(folder.folder.iterdir())[-1]


def test_round_trip(tmp_path: Path):
    folder = CheckpointFolder(str(tmp_path / "deep" / "folder"))
    folder.save(STATE)
    assert same(folder.load_last(), STATE)
    assert same(CheckpointFolder(folder.folder).load_last(), STATE)


def test_an_empty_or_missing_folder_has_none(tmp_path: Path):
    assert CheckpointFolder(tmp_path / "missing").load_last() is None
    assert CheckpointFolder(tmp_path).load_last() is None


def test_only_the_last_two_are_kept_and_other_files_are_left_alone(tmp_path: Path):
    other = tmp_path / "checkpoint-x.pt"
    other.write_bytes(b"mine")
    folder = CheckpointFolder(tmp_path)
    for number in range(12):
        folder.save({"number": number})
        assert folder.load_last() == {"number": number}
    assert names(tmp_path) == ["checkpoint-00000011.pt", "checkpoint-00000012.pt", other.name]
    (tmp_path / "checkpoint-00000012.pt").unlink()
    assert folder.load_last() == {"number": 10}


@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_file_is_noticed_and_the_one_before_used(two, caplog, tenth: int):
    path = last_file(two)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenth // 10])
    with pytest.raises(CheckpointError, match=path.name):
        read_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert two.load_last() == {"number": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path.name in caplog.text


@settings(max_examples=100)
@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "checkpoint-00000001.pt"
    CheckpointFolder(path.parent).save({"number": 1, "weights": torch.arange(5.0)})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        read_checkpoint(path)


def test_a_damaged_checkpoint_does_not_push_out_a_sound_one(two):
    last_file(two).write_bytes(b"rubbish")
    assert two.load_last() == {"number": 1}
    two.save({"number": 3})
    assert names(two.folder) == ["checkpoint-00000001.pt", "checkpoint-00000003.pt"]


def test_a_state_that_its_user_refuses_is_passed_over(tmp_path: Path, caplog):
    def check(state) -> None:
        if state["number"] > 1:
            raise CheckpointError("no such number")

    folder = CheckpointFolder(tmp_path, check)
    folder.save({"number": 1})
    folder.save({"number": 2})
    assert folder.load_last() == {"number": 1}
    assert "checkpoint-00000002.pt cannot be used: no such number" in caplog.text


def test_nothing_usable_is_an_error_with_the_reason(two):
    for path in two.folder.iterdir():
        path.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*not a dsonas checkpoint"):
        two.load_last()


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(two, tmp_path: Path, legacy: bool):
    trace = tmp_path / "ran"
    buffer = io.BytesIO()
    value = {"version": 1, "state": Payload(trace)}
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    path = last_file(two)
    path.write_bytes(sealed(buffer.getvalue()))
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert trace.exists()
    trace.unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name} is refused") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert two.load_last() == {"number": 1}
    assert not trace.exists()


BODIES = {
    "empty": b"",
    "rubbish": b"\x00\x01rubbish" * 9,
    "text": b"hello",
    "plain pickle": pickle.dumps({"version": 1, "state": {}}),
    "half a pickle": pickle.dumps({"version": 1, "state": list(range(99))})[:30],
    "empty zip": b"PK\x05\x06" + bytes(18),
    "zip head only": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", BODIES)
def test_foreign_content_with_a_right_checksum_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "checkpoint-00000001.pt"
    path.write_bytes(sealed(BODIES[name]))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150)
@given(st.data())
def test_a_forged_checksum_over_damaged_content_never_escapes(tmp_path_factory, data):
    buffer = io.BytesIO()
    torch.save({"version": 1, "state": {"a": torch.arange(3.0)}}, buffer)
    body = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("forged") / "checkpoint-00000001.pt"
    path.write_bytes(sealed(bytes(body)))
    with contextlib.suppress(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "value", [[1], {"state": {}}, {"version": 2, "state": {}}, {"version": None}, {"version": 1}]
)
def test_another_version_is_refused(tmp_path: Path, value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path = tmp_path / "checkpoint-00000001.pt"
    path.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(CheckpointError, match="version"):
        read_checkpoint(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path):
    (tmp_path / "checkpoint-00000001.pt").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "checkpoint-00000001.pt")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_ones_and_no_rubbish(two, monkeypatch, function: str):
    before = names(two.folder)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match=r"No space left.*free some space.*checkpoint-00000003"):
        two.save({"number": 3})
    monkeypatch.undo()
    assert names(two.folder) == before
    assert two.load_last()["number"] == 2
    two.save({"number": 4})
    assert two.load_last() == {"number": 4}


def test_a_write_that_fails_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    seen = []

    def look(_, target):
        seen.append((path.read_bytes(), names(tmp_path)))
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", look)
    with pytest.raises(OSError, match="broken"):
        write_atomically(path, b"new")
    assert seen[0][0] == b"old"
    assert len(seen[0][1]) == 2
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()):
        with pytest.raises(IsADirectoryError):
            write_atomically(folder, b"new")


def test_content_reaches_the_disk_before_the_name_does(tmp_path: Path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("replace"), replace(*a)))
    write_atomically(tmp_path / "new" / "file", b"content")
    assert order == ["fsync", "replace", "fsync"]  # the content, the name, the folder
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
