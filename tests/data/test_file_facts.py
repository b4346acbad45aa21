"""What files told is recalled as long as it is true."""

import os
from pathlib import Path

import pytest

from dsonas.data import DataConfig, file_facts, folder_images, load_data, splitting
from dsonas.data.file_facts import told_by_files

LONG_AGO = 60.0


class Reader:
    """Reads text files, and remembers which."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: str) -> str | None:
        self.read.append(path)
        text = Path(path).read_text()
        if text == "stop":
            raise KeyboardInterrupt
        return text or None


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four files that were changed long ago, of a folder that counts as large."""
    monkeypatch.setattr(file_facts, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(file_facts, "MANY", 4)
    monkeypatch.setattr(file_facts, "FRESH", -LONG_AGO)
    paths = [tmp_path / "in" / f"{name}.txt" for name in "abcd"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.stem)
    return list(map(str, paths))


def told(files: list[str], kind: str = "text") -> tuple[dict[str, str], list[str]]:
    reader = Reader()
    return told_by_files(kind, files, reader, 1), reader.read


def test_what_has_not_changed_is_not_read_again(files):
    first, read = told(files)
    assert read == files
    assert told(files) == (first, [])
    assert list(first.values()) == ["a", "b", "c", "d"]


def test_a_file_of_equal_size_and_time_but_other_content_is_read(files):
    told(files)
    before = os.stat(files[1])
    Path(files[1]).write_text("x")
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    found, read = told(files)
    assert read == [files[1]]
    assert found[files[1]] == "x"


def test_a_file_put_in_the_place_of_another_is_read(files):
    told(files)
    os.replace(files[0], files[3])
    found, read = told([files[1], files[2], files[3], files[3]])
    assert found[files[3]] == "a"
    assert set(read) == {files[3]}


def test_a_file_that_has_just_changed_is_not_kept(files, monkeypatch):
    monkeypatch.setattr(file_facts, "FRESH", LONG_AGO)
    told(files)
    assert told(files)[1] == files


def test_what_told_nothing_is_asked_again(files):
    Path(files[2]).write_text("")
    found, _ = told(files)
    assert files[2] not in found
    assert told(files)[1] == [files[2]]


def test_two_parts_of_a_folder_keep_what_each_told(files, monkeypatch):
    monkeypatch.setattr(file_facts, "MANY", 2)
    told(files[:2])
    told(files[2:])
    assert told(files)[1] == []


def test_what_is_gone_is_forgotten(files, tmp_path):
    told(files)
    os.remove(files[3])
    Path(files[0]).write_text("new")
    told([files[0], *files[:3]])
    (kept,) = (tmp_path / "cache").iterdir()
    assert files[2] in kept.read_text()
    assert files[3] not in kept.read_text()


def test_after_an_interrupt_what_was_read_is_kept(files):
    Path(files[3]).write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        told(files)
    Path(files[3]).write_text("go")
    assert told(files)[1] == [files[3]]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", '{"a": 1}', '{"a": []}', "7"])
def test_a_damaged_file_is_as_none(files, tmp_path, content):
    first, _ = told(files)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(content)
    assert told(files) == (first, files)


def test_a_folder_that_cannot_be_written_is_no_error(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    first, _ = told(files)
    assert told(files) == (first, files)


def test_without_a_home_nothing_is_kept(files, monkeypatch, tmp_path):
    monkeypatch.setattr(file_facts, "FOLDER", "~nobody-of-this-name/files")
    monkeypatch.chdir(tmp_path)
    assert told(files) == told(files)
    assert not list(tmp_path.glob("~*"))


def test_kinds_are_kept_apart_and_small_folders_not_at_all(files, tmp_path):
    told(files)
    assert told(files, "other")[1] == files
    assert told(files[:3], "third")[1] == files[:3]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_folder_of_images_is_read_once(make_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(file_facts, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(file_facts, "MANY", 1)
    monkeypatch.setattr(file_facts, "FRESH", -LONG_AGO)
    root = make_folder(count=10)
    (root / "a" / "bad.png").write_bytes(b"no image")
    config = DataConfig(name=f"folder:{root}", augment="crop")
    before = load_data(config)
    read = []
    header = folder_images.read_header
    monkeypatch.setattr(splitting, "_digest", read.append)
    monkeypatch.setattr(
        folder_images, "read_header", lambda path: read.append(path) or header(path)
    )
    after = load_data(config)
    assert read == [str(root / "a" / "bad.png")]
    assert after.identity == before.identity
    assert after.skipped == before.skipped == ("a/bad.png",)
