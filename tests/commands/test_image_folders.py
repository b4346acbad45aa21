"""Runs on folders of image files, and predictions."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SMALL = [
    "--data.image_size", "8", "--network.levels", "1", "--network.channels", "4",
    "--network.blocks", "[1]", "--pretrain.epochs", "0", "--search.epochs", "1",
    "--train.epochs", "40", "--search.batch_size", "8", "--train.batch_size", "8",
    "--engine.threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def grey(digit_folder, tmp_path_factory) -> tuple[Path, Path]:
    """Grey digits and a finished run on them."""
    return trained(digit_folder("L"), tmp_path_factory.mktemp("grey") / "run")


@pytest.fixture(scope="module")
def colour(digit_folder, tmp_path_factory) -> tuple[Path, Path]:
    """The same in colour."""
    return trained(digit_folder("RGB"), tmp_path_factory.mktemp("colour") / "run")


def trained(images: Path, run: Path) -> tuple[Path, Path]:
    from dsonas.commands.cli import main

    assert main(["run", "--data.name", f"folder:{images}", *SMALL, "--out", str(run)]) == 0
    return images, run


def lines(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


def test_predict_prints_file_class_and_probability(dsonas, grey):
    images, run = grey
    files = sorted(images.rglob("*.png"))[:3]
    ended = dsonas("predict", "--run", run, *files)
    assert (ended.code, ended.err) == (0, "")
    found = lines(ended.out)
    assert [line[0] for line in found] == list(map(str, files))
    for _, label, probability in found:
        assert label in ("digit0", "digit1", "digit2")
        assert 1 / 3 - 1e-3 <= float(probability) <= 1


def test_predict_takes_a_folder_and_knows_the_images(dsonas, grey):
    images, run = grey
    found = lines(dsonas("predict", "--run", run, images).out)
    assert len(found) == 60
    right = sum(Path(name).parent.name == label for name, label, _ in found)
    assert right > 45


def test_predict_makes_colour_grey_for_a_grey_network(dsonas, grey, colour):
    ended = dsonas("predict", "--run", grey[1], colour[0] / "digit0" / "00.png")
    same = dsonas("predict", "--run", grey[1], grey[0] / "digit0" / "00.png")
    assert lines(ended.out)[0][1:] == lines(same.out)[0][1:]


def test_predict_makes_grey_colour_for_a_colour_network(dsonas, grey, colour, tmp_path):
    image = Image.open(grey[0] / "digit0" / "00.png")
    assert image.mode == "L"
    image.convert("RGB").save(tmp_path / "rgb.png")
    ended = dsonas("predict", "--run", colour[1], grey[0] / "digit0" / "00.png")
    same = dsonas("predict", "--run", colour[1], tmp_path / "rgb.png")
    assert (ended.code, ended.err) == (0, "")
    assert lines(ended.out)[0][1:] == lines(same.out)[0][1:]


def test_predict_skips_and_counts_corrupt_images(dsonas, grey, tmp_path):
    shutil.copy(grey[0] / "digit0" / "00.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    ended = dsonas("predict", "--run", grey[1], tmp_path)
    assert (ended.code, len(lines(ended.out))) == (0, 1)
    (tmp_path / "good.png").unlink()
    ended = dsonas("predict", "--run", grey[1], tmp_path)
    assert (ended.code, "readable image" in ended.err) == (2, True)


@pytest.mark.parametrize("name", ["nowhere.png", "empty"])
def test_predict_refuses_what_is_not_there(dsonas, grey, tmp_path, name):
    (tmp_path / "empty").mkdir()
    ended = dsonas("predict", "--run", grey[1], tmp_path / name)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_a_corrupt_image_is_skipped_counted_and_logged(dsonas, digit_folder, tmp_path, caplog):
    images = digit_folder("L")
    (images / "digit1" / "03.png").write_bytes(b"nonsense")
    ended = dsonas("run", "--data.name", f"folder:{images}", *SMALL, "--out", tmp_path / "run")
    assert ended.code == 0
    assert "1 unreadable image files skipped: digit1/03.png" in caplog.text
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["skipped_images"] == 1


def test_grey_images_are_refused_where_colour_is_demanded(dsonas, grey, tmp_path):
    options = ["--data.name", f"folder:{grey[0]}", "--data.color", "rgb", *SMALL]
    ended = dsonas("run", *options, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "use --data.color auto" in ended.err


def test_evaluate_refuses_other_classes(dsonas, grey, digit_folder):
    ended = dsonas("evaluate", "--run", grey[1], "--data.name", f"folder:{digit_folder('RGB', 4)}")
    assert (ended.code, "knows the classes" in ended.err) == (2, True)


def test_evaluate_uses_the_statistics_of_the_training(dsonas, digit_folder, tmp_path):
    """Even when the training images are no longer the same."""
    images, run = digit_folder("L"), tmp_path / "run"
    train, test = images / "train", images / "test"
    for file in list(images.rglob("*.png")):
        place = (test if file.stem > "13" else train) / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    for folder in images.glob("digit*"):
        shutil.rmtree(folder)
    assert dsonas("run", "--data.name", f"folder:{images}", *SMALL, "--out", run).code == 0
    for file in train.rglob("1*.png"):
        Image.new("L", (8, 8), 255).save(file)
    metrics = json.loads((run / "metrics.json").read_text())
    measured = json.loads(dsonas("evaluate", "--run", run, "--json").out)
    assert measured["test_loss"] == metrics["test_loss"]


def interrupted(dsonas, images: Path, run: Path, monkeypatch: pytest.MonkeyPatch, *options: object):
    """A run that ends after its first epoch of the search; returns what goes on with it."""
    from dsonas.run import Job

    command = ["run", "--data.name", f"folder:{images}", *SMALL, "--out", run, *options]
    with monkeypatch.context() as patch:
        patch.setattr(Job, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dsonas(*command)
    assert any((run / "checkpoints").rglob("*.pt"))
    return lambda: dsonas(*command)


CHANGES = {
    "classes gone: digit2; classes new: two": lambda root: (root / "digit2").rename(root / "two"),
    "classes gone: digit2; 20 files gone": lambda root: shutil.rmtree(root / "digit2"),
    "classes new: more; 20 files new": lambda root: shutil.copytree(root / "digit0", root / "more"),
    "1 files new: digit1/more.png": lambda root: shutil.copy(
        root / "digit0" / "00.png", root / "digit1" / "more.png"
    ),
    "1 files gone: digit1/03.png": lambda root: (root / "digit1" / "03.png").unlink(),
    "1 files changed: digit1/03.png": lambda root: (root / "digit1" / "03.png").write_bytes(b"no"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_run_does_not_go_on_with_other_images(dsonas, digit_folder, tmp_path, monkeypatch, said):
    images, run = digit_folder("L"), tmp_path / "run"
    kept = shutil.copytree(images, tmp_path / "kept")
    go_on = interrupted(dsonas, images, run, monkeypatch)
    CHANGES[said](images)
    ended = go_on()
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"was begun with other images ({said}" in ended.err
    assert not (run / "network.safetensors").exists()
    shutil.rmtree(images)
    kept.rename(images)
    assert go_on().code == 0


def test_a_network_with_other_outputs_than_classes_is_not_written(grey, tmp_path):
    from dsonas.run import Preprocessing, RunError, RunFolder

    network, found = RunFolder(grey[1]).load_network()
    other = Preprocessing(("one", "two"), found.mean, found.std)
    with pytest.raises(RunError, match="is not written: class_names must be 3 names"):
        RunFolder(tmp_path).write_network(network, other)
    assert not (tmp_path / "network.safetensors").exists()


def test_images_that_come_later_change_neither_evaluation_nor_report(
    dsonas, digit_folder, tmp_path, caplog
):
    images, run = digit_folder("L"), tmp_path / "run"
    ended = dsonas("run", "--data.name", f"folder:{images}", *SMALL, "--out", run)
    assert f"{images.name}/ 3 classes" in ended.out
    metrics = json.loads((run / "metrics.json").read_text())
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    num_test = sum(row[2] == "test" for row in rows)
    for number in range(20, 40):
        Image.new("L", (8, 8), number).save(images / "digit0" / f"{number}.png")
    ended = dsonas("evaluate", "--run", run)
    assert ended.out.startswith(f"test error {metrics['test_error']} %")
    assert ended.out.endswith(f"  {num_test} images\n")
    assert "20 images are new and not measured: digit0/20.png" in caplog.text
    (run / "evaluation.json").unlink()
    assert dsonas("report", run).code == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert sum(map(sum, found["confusion"])) == num_test


def test_another_folder_is_measured_as_a_whole(dsonas, grey, digit_folder):
    other = digit_folder("RGB", 2, 7)
    ended = dsonas("evaluate", "--run", grey[1], "--data.name", f"folder:{other}")
    assert (ended.code, ended.out.endswith("  14 images\n")) == (0, True)


def test_a_folder_of_other_files_is_not_written_into(dsonas, grey, tmp_path):
    (tmp_path / "config.yaml").write_text("of: somebody else\n")
    (tmp_path / "log.csv").write_text("theirs")
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    for out in (tmp_path, grey[0]):
        options = ["--data.name", f"folder:{grey[0]}", *SMALL, "--out", out]
        for command in ("run", "search"):
            ended = dsonas(command, *options)
            assert (ended.code, ended.err.count("\n")) == (2, 1)
            assert re.search("--out must be a new folder or that of a run, got .*: ch", ended.err)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
