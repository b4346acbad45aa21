"""`dsonas plan` as a user meets it."""

import json
from functools import partial

import pytest

from dsonas.commands import plan_command

STATED = ("--device-tflops", "1")


def test_a_plan_is_a_table_and_a_file(dsonas, tiny, tmp_path):
    file = tmp_path / "plan.json"
    ended = dsonas("plan", *tiny, *STATED, "--json", file)
    assert (ended.code, ended.err) == (0, "")
    head = next(line for line in ended.out.splitlines() if line.startswith("stage"))
    assert head.split("  ")[-1] == "time"
    assert "200 training and 50 test images, 8x8x1, 10 classes (published size)" in ended.out
    plan = json.loads(file.read_text())
    assert [line["stage"] for line in plan["lines"]] == [
        "pretrain",
        *["search"] * 3,
        *["train"] * 2,
    ]
    assert plan["hours"] == pytest.approx(sum(line["hours"] for line in plan["lines"]))
    assert plan["lines"][0]["steps"] == 100 // 16


def test_nothing_is_written_beside_the_file_asked_for(dsonas, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dsonas("plan", *tiny, *STATED).code == 0
    assert list(tmp_path.iterdir()) == []


def test_measured_here_without_a_stated_device(dsonas, tiny, monkeypatch):
    quick = partial(plan_command.measured_device, seconds=0.02)
    monkeypatch.setattr(plan_command, "measured_device", quick)
    ended = dsonas("plan", *tiny, "--devices", 2)
    assert (ended.code, ended.err) == (0, "")
    assert "measured here: cpu, 1 threads" in ended.out
    assert "cluster   2 of them" in ended.out


def test_a_folder_is_counted_not_loaded(dsonas, digit_folder, tiny):
    folder = digit_folder(classes=3, each=20)
    options = [option for option in tiny if "max_" not in option and option not in ("200", "50")]
    for damaged in list(folder.rglob("*.png"))[1::2]:
        damaged.write_bytes(b"")
    ended = dsonas("plan", "--data.name", f"folder:{folder}", *options, *STATED)
    assert (ended.code, ended.err) == (0, "")
    assert "48 training and 12 test images, 32x32x1, 3 classes (counted)" in ended.out


def test_images_that_are_not_there_can_be_stated(dsonas):
    ended = dsonas(
        *("plan", "--config", "imagenet-share", "--images", 1_281_167, "--test-images", 50_000),
        *("--classes", 1000, *STATED, "--devices", 8),
    )
    assert (ended.code, ended.err) == (0, "")
    assert "1281167 training and 50000 test images, 224x224x3, 1000 classes (stated)" in ended.out
    assert "an upper bound" in ended.out


def test_growth_is_tabulated(dsonas, tiny, tmp_path):
    file = tmp_path / "plan.json"
    ended = dsonas("plan", *tiny, *STATED, "--growth", "--json", file)
    assert (ended.code, ended.err) == (0, "")
    rows = json.loads(file.read_text())["growth"]
    assert [row["devices"] for row in rows["devices"]] == [1, 2, 4, 8]
    assert "speed-up" in ended.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device-tflops", "fast"], ["device-tflops must be a number above 0", "'fast'"]),
        (["--device-tflops", "1", "--efficiency", "2"], ["efficiency must be above 0 and at most"]),
        (["--efficiency", "0.5"], ["need --device-tflops"]),
        (["--devices", "0"], ["devices must be a whole number of at least 1"]),
        (["--devices", "3"], ["share pretrain.batch_size 16 equally"]),
        (["--link-gbytes", "-1"], ["link-gbytes must be a number above 0"]),
        (["--images", "8"], ["num_train must be at least 10"]),
        (["--budget.macs", "1"], ["cannot be met"]),
        (["--data.name", "folder:nowhere"], ["nowhere not found", "or state --images"]),
        (["--data.name", "folder", "--images", "500"], ["needs --classes"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(dsonas, tiny, options, words):
    ended = dsonas("plan", *tiny, *options)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    for word in words:
        assert word in ended.err
