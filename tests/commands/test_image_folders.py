"""Runs on folders of image files, and predictions."""

import json
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
    test = images / "test"
    shutil.copytree(images, tmp_path / "copy")
    train = images / "train"
    for part in (train, test):
        shutil.copytree(tmp_path / "copy", part)
    for folder in images.glob("digit*"):
        shutil.rmtree(folder)
    assert dsonas("run", "--data.name", f"folder:{images}", *SMALL, "--out", run).code == 0
    for file in train.rglob("1*.png"):
        Image.new("L", (8, 8), 255).save(file)
    metrics = json.loads((run / "metrics.json").read_text())
    measured = json.loads(dsonas("evaluate", "--run", run, "--json").out)
    assert measured["test_loss"] == metrics["test_loss"]
