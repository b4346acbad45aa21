"""Images that change while a run waits: it does not go on, and says what has changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from commands.test_image_folders import SMALL
from dsonas.commands.cli import main
from dsonas.run import Job

pytestmark = pytest.mark.slow


def interrupted(dsonas, run: Path, monkeypatch: pytest.MonkeyPatch, *options: object):
    """A run that ends after its first epoch of the search; returns what goes on with it."""
    command = ["run", *SMALL, "--train.epochs", "2", "--out", run, *options]
    with monkeypatch.context() as patch:
        patch.setattr(Job, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dsonas(*command)
    assert any((run / "checkpoints").rglob("*.pt"))
    return lambda: dsonas(*command)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "classes gone: digit2; classes new: two": lambda root: (root / "digit2").rename(root / "two"),
    "classes gone: digit2; classes new: Digit2": lambda root: (root / "digit2").rename(
        root / "Digit2"
    ),
    "classes gone: digit2; 20 files gone": lambda root: shutil.rmtree(root / "digit2"),
    "classes new: more; 20 files new": lambda root: shutil.copytree(root / "digit0", root / "more"),
    "1 files new: digit1/more.png": lambda root: shutil.copy(
        root / "digit0" / "00.png", root / "digit1" / "more.png"
    ),
    "1 files gone: digit1/03.png": lambda root: (root / "digit1" / "03.png").unlink(),
    "1 files changed: digit1/03.png": lambda root: (root / "digit1" / "03.png").write_bytes(b"no"),
    "1 files gone: digit1/03.png; 1 files new: digit2/x.png": lambda root: (
        root / "digit1" / "03.png"
    ).rename(root / "digit2" / "x.png"),
    "2 files changed: digit0/03.png, digit1/03.png": lambda root: swap(
        root / "digit0" / "03.png", root / "digit1" / "03.png"
    ),
}


@pytest.fixture(scope="module")
def stopped(digit_folder, tmp_path_factory) -> tuple[Path, Path]:
    """Images and a run with them that has ended after its search; for all changes."""
    images, run = digit_folder("L"), tmp_path_factory.mktemp("stopped") / "run"
    command = ["run", *SMALL, "--data.name", f"folder:{images}", "--out", str(run)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command)
    return images, run


@pytest.mark.parametrize("said", CHANGES)
def test_a_run_does_not_go_on_with_other_images(dsonas, stopped, tmp_path, said):
    images, run = stopped
    command = ["run", *SMALL, "--data.name", f"folder:{images}", "--out", run]
    kept = shutil.copytree(images, tmp_path / "kept")
    CHANGES[said](images)
    ended = dsonas(*command)
    shutil.rmtree(images)
    kept.rename(images)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"was begun with other images ({said}" in ended.err
    assert not (run / "network.safetensors").exists()
    assert any((run / "checkpoints").rglob("*.pt"))


def test_a_run_goes_on_with_the_same_images(dsonas, digit_folder, tmp_path, monkeypatch):
    images, run = digit_folder("L"), tmp_path / "run"
    go_on = interrupted(dsonas, run, monkeypatch, "--data.name", f"folder:{images}")
    os.utime(images / "digit0" / "00.png", (1, 1))
    (images / "digit0" / "notes.txt").write_text("no image")
    (images / "digit0" / "link.png").symlink_to(images / "digit0" / "00.png")
    (images / "digit3").mkdir()
    (images / ".hidden").mkdir()
    assert go_on().code == 0
    assert "digit0/notes.txt,,ignored,0,no image," in (run / "split.csv").read_text()


LABELS = {
    "1 files changed: digit1/03.png": lambda text: text.replace("1/03.png,b", "1/03.png,a"),
    "1 files gone: digit1/03.png": lambda text: text.replace("digit1/03.png,b\n", ""),
    "classes gone: b; classes new: B": lambda text: text.replace(",b\n", ",B\n"),
    "": lambda text: "path,label\n" + "".join(sorted(text.splitlines(True)[1:], reverse=True)),
}


@pytest.mark.parametrize("said", LABELS)
def test_a_run_does_not_go_on_with_other_labels(dsonas, digit_folder, tmp_path, monkeypatch, said):
    images, run, labels = digit_folder("L", 2), tmp_path / "run", tmp_path / "labels.csv"
    names = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))
    text = "path,label\n" + "".join(f"{name},{'ab'[int(name[5])]}\n" for name in names)
    labels.write_text(text)
    options = ["--data.name", f"folder:{images}", "--data.labels", labels]
    go_on = interrupted(dsonas, run, monkeypatch, *options)
    labels.write_text(LABELS[said](text))
    ended = go_on()
    assert ended.code == (2 if said else 0)
    if said:
        assert f"was begun with other images ({said}" in ended.err
        labels.write_text(text)
        assert go_on().code == 0
    whole = tmp_path / "whole"
    command = ["run", *SMALL, "--train.epochs", "2", *options]
    assert dsonas(*command, "--out", whole).code == 0
    one, other = (folder / "network.safetensors" for folder in (run, whole))
    assert one.read_bytes() == other.read_bytes()


def test_a_test_part_elsewhere_belongs_to_the_run(dsonas, digit_folder, tmp_path, monkeypatch):
    images, other, run = digit_folder("L", 2), digit_folder("L", 2, 30), tmp_path / "run"
    options = ["--data.name", f"folder:{images}", "--data.test", other]
    for file in other.rglob("*.png"):
        if int(file.stem) < 20:
            file.unlink()
    go_on = interrupted(dsonas, run, monkeypatch, *options)
    Image.new("L", (8, 8), 99).save(other / "digit0" / "new.png")
    ended = go_on()
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "(1 files new: ../" in ended.err


def test_a_front_and_a_study_are_of_the_same_images(dsonas, digit_folder, tmp_path):
    images, run, study = digit_folder("L"), tmp_path / "run", tmp_path / "study"
    options = ["--data.name", f"folder:{images}", *SMALL, "--train.epochs", "1"]
    front = ["run", *options, "--budget.macs", "6k", "--out", run]
    assert dsonas(*front).code == 0
    few = ["--spaces", "share", "--seeds", "1", "--random", "1", "--random_factors", "0"]
    few += ["--random_searches", "0", "--hand_made", "0"]
    compare = ["compare", *options, "--budgets", "9k", *few, "--jobs.number", "1", "--out", study]
    assert dsonas(*compare).code == 0
    Image.new("L", (8, 8), 99).save(images / "digit0" / "new.png")
    job = ["compare", "--out", study, "--job"]
    name = next(path.name for path in (study / "jobs").iterdir() if "random" in path.name)
    shutil.rmtree(study / "jobs" / name)
    for command in ([*front, "--pareto", "2"], compare, [*job, name]):
        ended = dsonas(*command)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "was begun with other images (1 files new: digit0/new.png)" in ended.err


def test_test_images_of_another_class_now_are_said(dsonas, digit_folder, tmp_path, caplog):
    images, run, labels = digit_folder("L", 2), tmp_path / "run", tmp_path / "labels.csv"
    names = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))
    parts = ["test" if int(name[-6:-4]) > 15 else "train" for name in names]
    rows = [f"{name},{'ab'[int(name[5])]},{part}" for name, part in zip(names, parts, strict=True)]
    labels.write_text("\n".join(rows))
    options = ["--data.name", f"folder:{images}", "--data.labels", labels, *SMALL]
    assert dsonas("run", *options, "--train.epochs", "1", "--out", run).code == 0
    labels.write_text("\n".join(rows).replace("digit0/17.png,a", "digit0/17.png,b"))
    assert dsonas("evaluate", "--run", run).code == 0
    assert "1 test images of the run are of another class now: digit0/17.png" in caplog.text
