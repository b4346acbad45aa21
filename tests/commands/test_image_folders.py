"""Runs on folders of image files, and predictions."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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


def test_a_network_with_other_outputs_than_classes_is_not_written(grey, tmp_path):
    from dsonas.run import Preprocessing, RunError, RunFolder

    network, found, shape = RunFolder(grey[1]).load_network()
    other = Preprocessing(("one", "two"), found.mean, found.std)
    with pytest.raises(RunError, match="is not written: class_names must be 3 names"):
        RunFolder(tmp_path).write_network(network, other, shape)
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


def test_a_test_part_that_evaluate_names_is_measured(dsonas, grey, digit_folder, caplog):
    evaluate = ["evaluate", "--run", grey[1], "--data.test"]
    assert dsonas(*evaluate, digit_folder("RGB", 2, 7)).out.endswith("  14 images\n")
    assert "not measured" not in caplog.text
    assert dsonas(*evaluate, grey[0]).out == dsonas(*evaluate[:3]).out
    assert "images were in training and are not measured" in caplog.text


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        (["--data.fit", "pad"], "data.fit must be 'crop', as the network has it, got 'pad'"),
        (["--data.image_size", 64], "data.image_size must be 8, as the network has it, got 64"),
        (["--data.color", "rgb"], "data.color must be 'grey', as the network has it, got 'rgb'"),
        (["--data.test", 0.5], "data.test must be left out, got 0.5"),
        (["--data.val", 0.1], "data.val must be left out"),
        (["--data.flip", "true"], "data.flip must be left out"),
        (["--data.augment", "x.py:vary"], "data.augment must be left out"),
        (["--data.balance", "true"], "data.balance must be left out"),
        (["--data.max_train_images", 3], "data.max_train_images must be left out"),
        (["--engine.graphs", "off"], "engine.graphs must be left out"),
    ],
)
def test_evaluate_refuses_what_would_change_nothing(dsonas, grey, option, rule):
    for other in ([], ["--data.name", f"folder:{grey[0]}/"]):
        ended = dsonas("evaluate", "--run", grey[1], *other, *option)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert rule in ended.err


def test_evaluate_reads_the_network_once(dsonas, grey, monkeypatch):
    from dsonas.run.runs import RunFolder

    read, calls = RunFolder.load_network, []
    monkeypatch.setattr(RunFolder, "load_network", lambda run: calls.append(run) or read(run))
    assert dsonas("evaluate", "--run", grey[1]).code == 0
    assert len(calls) == 1


def test_evaluate_takes_the_options_of_the_run(dsonas, grey):
    options = ["--data.name", f"folder:{grey[0]}", "--data.image_size", 8, "--data.color", "grey",
               "--data.fit", "crop", "--data.test", 0.2, "--data.val", 0]  # fmt: skip
    plain = dsonas("evaluate", "--run", grey[1])
    assert dsonas("evaluate", "--run", grey[1], *options) == plain


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


@pytest.mark.parametrize("place", ["run", "digit0/run", "test", "../link/run"])
def test_a_run_does_not_lie_among_its_images(dsonas, digit_folder, tmp_path, place):
    images = shutil.copytree(digit_folder("L"), tmp_path / "images")
    (tmp_path / "link").symlink_to(images)
    before = sorted(images.rglob("*"))
    for command in ("run", "search", "compare"):
        options = SMALL if command != "compare" else [*SMALL, "--budgets", "50k", "--seeds", "1"]
        out = images / place
        ended = dsonas(command, "--data.name", f"folder:{images}", *options, "--out", out)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "--out must be outside of the image folder" in ended.err
    assert sorted(images.rglob("*")) == before


def test_predict_takes_the_folder_it_is_in(dsonas, grey, monkeypatch):
    monkeypatch.chdir(grey[0])
    found = lines(dsonas("predict", "--run", grey[1], ".").out)
    assert [row[0] for row in found][:2] == ["digit0/00.png", "digit0/01.png"]
    assert found == lines(dsonas("predict", "--run", grey[1], "./digit0", "digit1", "digit2").out)


def test_predict_writes_json_and_csv_and_takes_a_list(dsonas, grey, tmp_path, monkeypatch):
    images, run = grey
    files = [str(file) for file in sorted(images.rglob("*.png"))[:3]]
    plain = lines(dsonas("predict", "--run", run, *files).out)
    found = json.loads(dsonas("predict", "--run", run, "--json", "--top", 2, *files).out)
    assert [row["file"] for row in found] == files
    for row, (_, label, probability) in zip(found, plain, strict=True):
        assert (row["class"], f"{row['probability']:.4f}") == (label, probability)
        assert len(row["top"]) == 2
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]
    text = dsonas("predict", "--run", run, "--csv", "--top", 9, "--device", "cpu", *files).out
    table = list(csv.DictReader(io.StringIO(text)))
    assert [(row["file"], row["class"]) for row in table] == [(n, label) for n, label, _ in plain]
    assert sum(float(table[0][f"probability{end}"]) for end in ("", "_2", "_3")) == pytest.approx(
        1, abs=1e-3
    )
    for mark in ("\n", "\0"):
        stdin = io.TextIOWrapper(io.BytesIO(mark.join(files).encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        assert lines(dsonas("predict", "--run", run, "-").out) == plain
    ended = dsonas("predict", "--run", run, "--csv", "--json", *files)
    assert (ended.code, ended.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("bad", [(0,), (2, 3), (1, 4), (0, 1, 2, 3)])
def test_predict_gives_files_that_cannot_be_read_a_row_with_the_reason(dsonas, grey, tmp_path, bad):
    files = []
    for number, file in enumerate(sorted(grey[0].rglob("*.png"))[:5]):
        files.append(str(shutil.copy(file, tmp_path / f"{number}.png")))
    for number in bad:
        Path(files[number]).write_bytes(b"no image")
    options = ("predict", "--run", grey[1], "--top", 2, *files)
    for rows in (
        json.loads(dsonas(*options, "--json").out),
        list(csv.DictReader(io.StringIO(dsonas(*options, "--csv").out))),
    ):
        assert [row["file"] for row in rows] == files
        for number, row in enumerate(rows):
            skipped, label = row.get("skipped", ""), row.get("class", "")
            assert (skipped != "", label == "") == (number in bad, number in bad)
            assert skipped in ("", "cannot identify image file")
    assert len(lines(dsonas(*options).out)) == 5 - len(bad)


def test_predict_follows_links_and_names_any_file_in_one_line(dsonas, grey, tmp_path, caplog):
    images, run = grey
    (tmp_path / "linked").symlink_to(images / "digit0", target_is_directory=True)
    assert len(lines(dsonas("predict", "--run", run, tmp_path).out)) == 20
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in ("tab\there.png", "line\nhere.png", os.fsdecode(b"\xff.png")):
        shutil.copy(images / "digit0" / "00.png", odd / name)
    assert {len(line) for line in lines(dsonas("predict", "--run", run, odd).out)} == {3}
    (odd / "bad.png").write_bytes(b"nonsense")
    caplog.clear()
    assert len(lines(dsonas("predict", "--run", run, odd).out)) == 3
    assert "bad.png: cannot identify image file: skipped" in caplog.text
    assert "1 unreadable image files skipped of 4" in caplog.text


def test_a_run_writes_metrics_of_each_class_and_its_predictions(grey):
    from sklearn.metrics import balanced_accuracy_score, classification_report, confusion_matrix

    images, run = grey
    rows = list(csv.DictReader((run / "predictions.csv").open(newline="")))
    true, predicted = ([row[name] for row in rows] for name in ("class", "predicted"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert all((images / row["file"]).is_file() for row in rows)
    assert all(row["file"].split("/")[0] == row["class"] for row in rows)
    assert metrics["images"] == len(rows)
    wrong = sum(a != b for a, b in zip(true, predicted, strict=True))
    assert metrics["test_error"] == pytest.approx(100 * wrong / len(rows), abs=1e-4)
    assert metrics["confusion"] == confusion_matrix(true, predicted).tolist()
    expected = balanced_accuracy_score(true, predicted)
    assert metrics["balanced_accuracy"] == pytest.approx(expected, abs=1e-5)
    report = classification_report(true, predicted, output_dict=True, zero_division=0)
    for row in metrics["classes"]:
        for name, other in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
            assert row[name] == pytest.approx(report[row["name"]][other], abs=1e-5)
    parts = {row["path"]: row["part"] for row in csv.DictReader((run / "split.csv").open())}
    assert {row["file"] for row in rows} == {n for n, part in parts.items() if part == "test"}


def test_evaluate_says_what_the_error_is_worth(dsonas, grey):
    found = json.loads(dsonas("evaluate", "--run", grey[1], "--json").out)
    stored = json.loads((grey[1] / "metrics.json").read_text())
    assert {name: stored[name] for name in found} == found
    said = dsonas("evaluate", "--run", grey[1]).out
    assert f"balanced accuracy {100 * found['balanced_accuracy']:.2f} %" in said


def test_a_run_is_used_from_any_directory(dsonas, digit_folder, tmp_path, monkeypatch):
    images = digit_folder("L")
    monkeypatch.chdir(images.parent)
    run, again = tmp_path / "run", tmp_path / "again"
    assert dsonas("run", "--data.name", f"folder:{images.name}", *SMALL, "--out", run).code == 0
    monkeypatch.chdir(tmp_path)
    assert dsonas("evaluate", "--run", "run").code == 0
    assert dsonas("export", "run", "--format", "pt2").out.count("test images of folder") == 1
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert dsonas("run", "--config", "config.yaml", "--out", again).code == 0
    assert (again / "network.safetensors").read_bytes() == (
        run / "network.safetensors"
    ).read_bytes()


def test_few_images_lower_the_batch_and_it_is_said_once(dsonas, digit_folder, tmp_path):
    images = digit_folder("L", 3, 30)
    options = ["--data.image_size", "8", "--network.levels", "1", "--network.channels", "4",
               "--network.blocks", "[1]", "--epochs", "1", "--engine.threads", "1"]  # fmt: skip
    run = tmp_path / "run"
    ended = dsonas("run", "--data.name", f"folder:{images}", *options, "--out", run)
    assert ended.code == 0, ended.err
    assert ended.out.count("lowered for so few images") == 1
    assert "pretrain 128 to 8" in ended.out or "pretrain 64 to 8" in ended.out
    stages = [row["stage"] for row in csv.DictReader((run / "log.csv").open())]
    assert stages == ["pretrain", "search", "train"]  # one --epochs for all


def test_the_epoch_that_validation_prefers_is_kept(dsonas, digit_folder, tmp_path):
    images, run = digit_folder("L", 3, 60), tmp_path / "run"
    options = ["--data.name", f"folder:{images}", *SMALL, "--data.val", "0.3", "--train.patience",
               "4", "--train.lr", "0.3", "--out", run]  # fmt: skip
    ended = dsonas("run", *options)
    assert ended.code == 0, ended.err
    assert "validation and" in ended.out
    rows = [row for row in csv.DictReader((run / "log.csv").open()) if row["stage"] == "train"]
    errors = [(float(row["val_error"]), float(row["val_loss"])) for row in rows]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best_epoch"] == 1 + errors.index(min(errors))
    assert metrics["val_error"] == pytest.approx(min(errors)[0], abs=1e-4)
    assert len(rows) == min(40, metrics["best_epoch"] + 4)
    parts = {row["part"] for row in csv.DictReader((run / "split.csv").open())}
    assert parts == {"train", "val", "test"}
    assert dsonas("evaluate", "--run", run, "--json").code == 0


def test_a_huge_budget_widens_the_network_fourfold_at_most(dsonas, digit_folder, tmp_path, caplog):
    images, run = digit_folder("L"), tmp_path / "run"
    options = [*SMALL, "--train.epochs", "1", "--budget.macs", "1G", "--out", run]
    assert dsonas("run", "--data.name", f"folder:{images}", *options).code == 0
    assert json.loads((run / "metrics.json").read_text())["channels"] == [16]
    assert "budget.macs 1e+09 is not used up" in caplog.text
    assert "4 times as wide as the supernet" in caplog.text
    former = dsonas("run", "--data.name", f"folder:{images}", *options, "--network.growth", "10")
    assert (former.code, former.err.count("\n")) == (2, 1)
    assert "network.growth is fixed at 4 now: leave it out, raise network.channels" in former.err


def test_padded_networks_see_the_same_everywhere(dsonas, grey, tmp_path):
    images, run = grey[0], tmp_path / "run"
    wide = tmp_path / "wide"
    for file in images.rglob("*.png"):
        (wide / file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((24, 8)).save(wide / file.parent.name / file.name)
    options = ["--data.fit", "pad", *SMALL, "--train.epochs", "2", "--out", run]
    assert dsonas("run", "--data.name", f"folder:{wide}", *options).code == 0
    assert dsonas("export", run, "--format", "python,onnx").code == 0
    files = sorted(map(str, wide.rglob("*.png")))[:6]
    expected = lines(dsonas("predict", "--run", run, *files).out)
    classify = Path(__file__).parents[2] / "examples" / "walkthrough_classify.py"
    exported = run / "export"
    for program in ([exported / "network.py"], [classify, exported / "network.onnx"]):
        done = subprocess.run([sys.executable, *program, *files], capture_output=True, text=True)
        found = lines(done.stdout)
        assert [row[:2] for row in found] == [row[:2] for row in expected], done.stderr
        for one, other in zip(found, expected, strict=True):
            assert float(one[2]) == pytest.approx(float(other[2]), abs=2e-4)


def test_names_that_a_terminal_lacks_are_escaped(digit_folder, monkeypatch):
    from dsonas.commands.cli import main

    images = digit_folder("L", 2)
    (images / "digit0").rename(images / "größe")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["check", str(images)]) == 0
    assert b"gr\\xf6\\xdfe" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_check_tells_of_a_folder_without_training(dsonas, grey, tmp_path):
    ended = dsonas("check", grey[0])
    assert (ended.code, ended.err) == (0, "")
    assert "3 classes" in ended.out
    assert "proposed    dsonas run --data.name folder:" in ended.out
    found = json.loads(dsonas("check", grey[0], "--json").out)
    assert found["images"] == 60
    assert found["grey"] == 60
    given = {"data.fit": "stretch", "data.flip": "false", "data.workers": "2", "data.val": "0.1"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    proposed = json.loads(dsonas("check", grey[0], "--json", *options).out)["proposed"]
    assert given.items() <= proposed.items()
    ended = dsonas("check", tmp_path / "nowhere")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


def test_what_check_proposes_runs_with_the_parts_that_are_given(dsonas, digit_folder, tmp_path):
    images = digit_folder("L", 2)
    names = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))
    rows = [f"{name},{'ab'[int(name[5])]}" for name in names]
    for part, own in (("train", rows[:14] + rows[20:34]), ("test", rows[14:20] + rows[34:])):
        (tmp_path / f"{part}.csv").write_text("path,label\n" + "\n".join(own))
    given = ["--data.labels", tmp_path / "train.csv", "--data.test", tmp_path / "test.csv"]
    found = json.loads(dsonas("check", images, *given, "--data.val", 0.2, "--json").out)
    assert sum(found["counts"]["test"].values()) == 12
    command = shlex.split(found["command"])[1:]
    ended = dsonas(*command, *SMALL, "--train.epochs", 1, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    val = sum(found["counts"]["val"].values())
    assert f"{28 - val} training, {val} validation and 12 test images" in ended.out
    assert dsonas("plan", "--data.name", f"folder:{images}", *given, *SMALL).code == 0


def test_a_report_of_two_classes_names_the_wrong_files(dsonas, digit_folder, tmp_path):
    images, run = digit_folder("L", 2, 40), tmp_path / "run"
    options = [*SMALL, "--train.epochs", "1", "--train.lr", "1e-6", "--out", run]
    assert dsonas("run", "--data.name", f"folder:{images}", *options).code == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["mistakes"]
    page = (run / "report.html").read_text()
    for mistake in found["mistakes"][:3]:
        assert (images / mistake["file"]).is_file()
        assert f'title="{mistake["file"]}"' in page
    assert "balanced accuracy" in page
