"""`dsonas plan` as a user meets it."""

import json

import pytest

from dsonas.commands import forecast as module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two steps of each kind are enough here."""
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIMED", 2)


def test_a_plan_is_a_table_or_json(dsonas, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = dsonas("plan", *tiny)
    assert (ended.code, ended.err) == (0, "")
    table = ended.out[ended.out.index("stage") :].splitlines()
    assert table[0].split() == ["stage", "steps", "multiply-adds", "peak", "memory", "time"]
    assert {len(line) for line in table} == {len(table[0])}
    assert "200 training and 50 test images, 8x8x1, 10 classes" in ended.out
    assert "cpu, 1 CPU threads" in ended.out
    plan = json.loads(dsonas("plan", *tiny, "--json").out)
    stages = ["pretrain", *["search"] * 3, *["train"] * 2]
    assert [line["stage"] for line in plan["lines"]] == stages
    assert plan["hours"] == pytest.approx(sum(line["hours"] for line in plan["lines"]))
    assert plan["lines"][0]["steps"] == 100 // 16
    assert not list(tmp_path.iterdir())


def test_a_folder_is_counted_not_loaded(dsonas, digit_folder, tiny):
    folder = digit_folder(classes=3, each=20)
    options = [option for option in tiny if "max_" not in option and option not in ("200", "50")]
    for damaged in list(folder.rglob("*.png"))[1::2]:
        damaged.write_bytes(b"")
    ended = dsonas("plan", "--data.name", f"folder:{folder}", *options)
    assert (ended.code, ended.err) == (0, "")
    assert "51 training and 9 test images, 32x32x1, 3 classes" in ended.out


def test_images_that_are_not_there_can_be_stated(dsonas, tiny):
    options = [option for option in tiny if "max_" not in option and option not in ("200", "50")]
    sizes = ("--images", 1_281_167, "--test-images", 50_000, "--classes", 1000)
    stated = ("--data.name", "folder", "--data.image_size", 16, *sizes)
    ended = dsonas("plan", *options, *stated, "--search.keep_cost", "null")
    assert (ended.code, ended.err) == (0, "")
    assert "1281167 training and 50000 test images, 16x16x3, 1000 classes" in ended.out
    assert "an upper bound" in ended.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "8", "--data.name", "cifar10"], ["images must be at least 10, got 8"]),
        (["--images", "many"], ["images must be a whole number"]),
        (["--budget.macs", "1"], ["cannot be met"]),
        (["--data.name", "folder:nowhere"], ["nowhere not found", "or state --images"]),
        (["--data.name", "folder", "--images", "500"], ["needs --classes"]),
        (["--train.patience", "2"], ["train.patience 2 needs a validation part"]),
        (["--device-tflops", "1"], ["unknown option --device-tflops"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(dsonas, tiny, options, words):
    ended = dsonas("plan", *tiny, *options)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in ended.err
