"""Exporting a run: round trips of all formats, what travels with them, and what is refused."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from dsonas.commands.exporting import ExportError, export_run, formats, running
from dsonas.data import load_images
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.run.classify import predict_images
from dsonas.run.runs import RunError, RunFolder
from helpers.builders import random_architecture

SIZE28 = Skeleton(image_size=28, input_channels=1, num_classes=4, blocks=(1, 1), channels=(3, 5))
SIZE224 = Skeleton(stem="imagenet", image_size=224, num_classes=4, blocks=(1, 1), channels=(3, 4))
DIGITS = Skeleton(image_size=8, input_channels=1, blocks=(1, 1), channels=(4, 6))
OPERATIONS = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")
DIGITS_CONFIG = "seed: 3\ndata: {name: digits, max_test_images: 40}\n"
DIGIT_NAMES = tuple(map(str, range(10)))


def architecture(seed: int, skeleton: Skeleton, shared: bool = True) -> Architecture:
    rng = Random(seed)
    operations = rng.sample(OPERATIONS, 2)
    return random_architecture(
        rng, skeleton, shared=shared, operations=operations, num_levels=2, density=0.4
    )


@pytest.fixture
def digits_run(run_folder) -> Path:
    return run_folder(architecture(0, DIGITS), DIGIT_NAMES, DIGITS_CONFIG)


@pytest.mark.parametrize("shared", [True, False], ids=["share", "full"])
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_at_28_pixels(run_folder: Callable[..., Path], seed: int, shared: bool):
    run = run_folder(architecture(seed, SIZE28, shared))
    fold = seed % 2 > 0
    results = export_run(run, fold=fold)
    assert [result.format for result in results] == ["onnx", "pt2", "python"]
    for result in results:
        assert result.same_predictions == result.num_images == 64
        assert result.max_difference <= 1e-4
        assert result.latency_ms > 0
        assert result.size_bytes == sum(path.stat().st_size for path in result.paths)
    if not fold:
        assert results[2].max_difference <= 1e-6


@pytest.mark.parametrize("shared", [True, False], ids=["share", "full"])
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_at_224_pixels(run_folder: Callable[..., Path], seed: int, shared: bool):
    run = run_folder(architecture(seed, SIZE224, shared))
    for result in export_run(run, fold=seed % 2 > 0):
        assert result.same_predictions == result.num_images
        assert result.max_difference <= 1e-4


@pytest.fixture(scope="module")
def exported(shared_run_folder: Callable[..., Path]) -> Path:
    run = shared_run_folder(architecture(0, DIGITS), DIGIT_NAMES, DIGITS_CONFIG)
    first, *_ = export_run(run)
    assert first.images == "40 test images of digits"
    return run / "export"


def test_what_travels_with_the_files_and_what_does_not(exported: Path):
    session = onnxruntime.InferenceSession(exported / "network.onnx")
    onnx = session.get_modelmeta().custom_metadata_map
    extra = {formats.METADATA_FILE: ""}
    torch.export.load(exported / "network.pt2", extra_files=extra)
    pt2 = json.loads(extra[formats.METADATA_FILE])
    python = runpy.run_path(str(exported / "network.py"))
    assert tuple(json.loads(onnx["class_names"])) == DIGIT_NAMES
    assert tuple(pt2["class_names"]) == python["CLASS_NAMES"] == DIGIT_NAMES
    for key in ("mean", "std", "image_size", "input_channels"):
        expected = python[key.upper()]
        assert json.loads(onnx[key]) == pt2[key] == pytest.approx(expected, abs=1e-7)
    assert pt2["test_error"] == 12.5
    assert (pt2["data"], onnx["data"], pt2["seed"]) == ("digits", "digits", 3)
    assert [value.shape[0] for value in session.get_inputs()] == ["batch"]
    for path in exported.iterdir():  # no folder of this machine
        assert str(Path(running.__file__).parents[3]).encode() not in path.read_bytes()
        assert str(exported.parent).encode() not in path.read_bytes()


WITHOUT_DSONAS = """
import runpy, sys
sys.modules["dsonas"] = None
import torch
print(torch.export.load(sys.argv[1]).module()(torch.zeros(5, 1, 8, 8)).shape[0])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_files_work_without_dsonas_and_classify_as_predict_does(exported: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (9 + i, 12), dtype=np.uint8)).save(path)
    files = [str(exported / name) for name in ("network.pt2", "network.py")]
    command = [sys.executable, "-c", WITHOUT_DSONAS, *files, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = [line.split("\t") for line in done.stdout.splitlines()]
    expected = predict_images(RunFolder(exported.parent), paths)
    lines = [[name, label, f"{probability:.4f}"] for name, label, probability in expected]
    assert found == [["5"], *lines]
    assert not list(exported.glob("__pycache__"))


def save_odd_images(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, shape, dtype=np.uint8)

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    rgb, rgba = Image.fromarray(noise(20, 30, 3)), Image.fromarray(noise(21, 17, 4), "RGBA")
    deep = Image.fromarray(rng.integers(0, 65535, (20, 24)).astype(np.uint16))
    palette = rgb.quantize(16)
    saved = {
        "plain.png": rgb, "turned.jpg": rgb, "clear.png": rgba, "deep.png": deep,
        "palette.png": palette, "grey.png": rgb.convert("L"), "bits.png": rgb.convert("1"),
        "large.jpg": rgb.resize((300, 200)), "pale.png": rgba.convert("LA"),
    }  # fmt: skip
    for name, image in saved.items():
        image.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    palette.save(folder / "hole.gif", transparency=0)
    return [str(folder / name) for name in (*saved, "hole.gif")]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_python_file_reads_images_as_dsonas_does(run_folder, tmp_path: Path, channels: int):
    skeleton = Skeleton(
        image_size=16, input_channels=channels, num_classes=3, blocks=(1,), channels=(3,)
    )
    run = run_folder(architecture(0, skeleton))
    export_run(run, ["python"])
    exported = runpy.run_path(str(run / "export" / "network.py"))
    statistics = RunFolder(run).load_network()[1]
    for path in save_odd_images(tmp_path):
        settings = {"image_size": 16, "mean": statistics.mean, "std": statistics.std}
        try:
            images, _ = next(load_images([path], input_channels=channels, **settings))
        except ValueError:
            continue  # dsonas wants colour
        torch.testing.assert_close(exported["read_image"](path), images[0], rtol=0, atol=1e-6)


def test_random_images_serve_where_the_data_are_out_of_reach(run_folder):
    config = "data: {name: 'folder:nowhere'}\n"
    (result,) = export_run(run_folder(architecture(0, DIGITS), (), config), ["python"])
    assert result.images.startswith("64 random images (")
    assert "nowhere" in result.images
    assert result.num_images == 64


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "names no data set"),
        ("[", "names no data set"),
        ("data: 3", "names no data set"),
        ("data: {name: digits, colour: 3}", "names no data set"),
        ("data: {name: digits}", "other classes"),
    ],
)
def test_data_of_another_kind_are_not_used(run_folder, config: str, reason: str):
    (result,) = export_run(run_folder(architecture(0, DIGITS), (), config), ["python"])
    assert reason in result.images


def test_a_run_that_is_not_there_or_damaged_is_refused(run_folder, tmp_path: Path):
    with pytest.raises(RunError, match="holds no finished network"):
        export_run(tmp_path / "nothing")
    run = run_folder(architecture(0, DIGITS))
    (run / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        export_run(run)
    (run / "network.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match="damaged"):
        export_run(run)
    (run / "architecture.json").unlink()
    with pytest.raises(RunError, match="does not exist"):
        export_run(run)
    assert not (run / "export").exists()


def test_arguments_out_of_range_are_refused(digits_run: Path):
    with pytest.raises(ExportError, match=r"format must be one or more of .* got 'tflite'"):
        export_run(digits_run, ["pt2", "tflite"])
    with pytest.raises(ExportError, match="got none"):
        export_run(digits_run, [])
    with pytest.raises(ExportError, match="threads must be at least 1"):
        export_run(digits_run, threads=0)
    with pytest.raises(ExportError, match="num_images must be at least 1"):
        export_run(digits_run, num_images=0)


def test_a_missing_package_is_named_before_anything_is_written(digits_run: Path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ExportError, match=r'needs onnxscript: .*pip install "dsonas\[export\]"'):
        export_run(digits_run)
    assert not (digits_run / "export").exists()
    assert export_run(digits_run, ["python"])


def test_a_file_with_other_outputs_is_refused_and_deleted(digits_run: Path, monkeypatch):
    wrong = lambda path, threads: lambda images: torch.zeros(len(images), 10)  # noqa: E731
    python = formats.FORMATS["python"]
    changed = formats.Format("python", python.write, wrong)
    monkeypatch.setitem(formats.FORMATS, "python", changed)
    with pytest.raises(ExportError, match=r"network\.py gave outputs that differ by"):
        export_run(digits_run, ["python"])
    assert not list((digits_run / "export").iterdir())


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, 3) * x.sigmoid()


def test_an_operation_with_code_of_its_own_still_goes_to_onnx(run_folder, register):
    skeleton = Skeleton(image_size=8, input_channels=1, num_classes=3, blocks=(1,), channels=(3,))
    own = register(lambda channels: Shifted())
    run = run_folder(Architecture.complete(skeleton, (own,), 1))
    with pytest.raises(ExportError, match="module Shifted"):
        export_run(run, ["python"])
    (result,) = export_run(run, ["onnx"])
    assert result.same_predictions == result.num_images
