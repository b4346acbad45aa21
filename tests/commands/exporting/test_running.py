"""Exporting a run: round trips of all formats, what travels with them, and what is refused."""

import json
import os
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
from dsonas.data import load_images, plain_name
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.run.measuring import predict_images
from dsonas.run.runs import RunError, RunFolder
from helpers.builders import random_architecture

pytestmark = pytest.mark.slow

SIZE28 = Skeleton(image_size=28, input_channels=1, num_classes=4, blocks=(1, 1), channels=(3, 5))
SIZE224 = Skeleton(stem="imagenet", image_size=224, num_classes=4, blocks=(1, 1), channels=(3, 4))
DIGITS = Skeleton(image_size=8, input_channels=1, blocks=(1, 1), channels=(4, 6))
OPERATIONS = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")
DIGITS_CONFIG = "seed: 3\ndata: {name: digits, max_test_images: 40}\n"
DIGIT_NAMES = tuple(map(str, range(10)))
EXAMPLES = Path(__file__).parents[3] / "examples"


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
    python = runpy.run_path(str(exported / "network.py"))["load"]().notes
    assert tuple(pt2["class_names"]) == DIGIT_NAMES
    for key, value in pt2.items():
        assert python[key] == value
        assert onnx[key] == (value if isinstance(value, str) else json.dumps(value))
    preprocessing = RunFolder(exported.parent).load_network()[1]
    expected = json.loads(json.dumps(preprocessing.description(DIGITS)))
    assert {key: pt2[key] for key in expected} == expected
    assert pt2["test_error"] == 12.5
    assert (pt2["data"], pt2["seed"], pt2["resize"]) == ("digits", 3, "bicubic")
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
    names = [*(f"{i}.png" for i in range(6)), "tab\tand\nline.png", os.fsdecode(b"\xff.png")]
    paths = [str(tmp_path / name) for name in names]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (9 + i, 12), dtype=np.uint8)).save(path)
    files = [str(exported / name) for name in ("network.pt2", "network.py")]
    command = [sys.executable, "-c", WITHOUT_DSONAS, *files, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = [line.split("\t") for line in done.stdout.splitlines()]
    expected = predict_images(RunFolder(exported.parent), paths)
    lines = [[plain_name(name), label, f"{v:.4f}"] for name, [(label, v)], _ in expected]
    assert found == [["5"], *lines]
    assert not list(exported.glob("__pycache__"))
    command = [sys.executable, files[1], str(tmp_path / "absent.png"), *paths[:1]]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    done = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def save_odd_images(folder: Path) -> tuple[list[str], list[str]]:
    """Image files of every kind, and some that nothing reads."""
    rng = np.random.default_rng(0)

    def noise(*shape: int, top: int = 255) -> np.ndarray:
        return rng.integers(0, top, shape).astype(np.uint8 if top < 256 else np.int32)

    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    rgb, rgba = Image.fromarray(noise(20, 30, 3)), Image.fromarray(noise(21, 17, 4), "RGBA")
    deep, palette = noise(20, 24, top=65535), rgb.quantize(16)
    saved = {
        "plain.png": rgb, "turned.jpg": rgb, "clear.png": rgba, "palette.png": palette,
        "deep.png": Image.fromarray(deep.astype(np.uint16)), "deep.pgm": Image.fromarray(deep),
        "deep.tif": Image.fromarray(deep.astype(np.uint16)), "long.tif": Image.fromarray(deep),
        "small.tif": Image.fromarray(deep // 257), "grey.png": rgb.convert("L"),
        "bits.png": rgb.convert("1"), "large.jpg": rgb.resize((300, 200)),
        "pale.png": rgba.convert("LA"), "pale.tif": rgba.convert("LA"),
        "print.jpg": rgb.convert("CMYK"), "print.tif": rgb.convert("CMYK"),
        "video.tif": rgb.convert("YCbCr"), "clear.webp": rgba,
    }  # fmt: skip
    for name, image in saved.items():
        image.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    for name in ("hole.gif", "hole.png"):
        palette.save(folder / name, transparency=0)
    rgb.convert("L").save(folder / "key.png", transparency=7)
    read = [str(folder / name) for name in (*saved, "hole.gif", "hole.png", "key.png")]
    Image.fromarray(deep / np.float32(65535)).save(folder / "float.tif")
    Image.fromarray(deep * 10).save(folder / "wide.tif")
    Image.fromarray(deep - 10000).save(folder / "below.tif")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:300])
    return read, [str(folder / name) for name in ("float.tif", "wide.tif", "below.tif", "cut.png")]


@pytest.mark.parametrize(("channels", "crop"), [(1, 1.0), (3, 0.75)])
def test_predict_the_python_file_and_the_onnx_program_read_images_alike(
    run_folder, tmp_path: Path, capsys, monkeypatch, channels: int, crop: float
):
    skeleton = Skeleton(
        image_size=16, input_channels=channels, num_classes=3, blocks=(1,), channels=(3,)
    )
    run = run_folder(architecture(0, skeleton), crop=crop)
    export_run(run, ["python", "onnx"])
    exported = runpy.run_path(str(run / "export" / "network.py"))
    read, refused = save_odd_images(tmp_path)
    pixels = RunFolder(run).load_network()[1].pixels(skeleton)
    network = exported["load"]()
    for path in read:
        images, _ = next(load_images([path], **pixels))
        torch.testing.assert_close(network.read_image(path), images[0], rtol=0, atol=1e-6)
    predicted = predict_images(RunFolder(run), read)
    expected = [f"{n}\t{classes[0][0]}\t{classes[0][1]:.4f}" for n, classes, _ in predicted]
    assert exported["main"]([*read, *refused]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == expected
    told = [line for line in printed.err.splitlines() if " skipped: " in line]  # torch may warn
    assert [line.split(" skipped: ")[0] for line in told] == refused
    monkeypatch.setattr(sys, "path", [*sys.path])
    classify = runpy.run_path(str(EXAMPLES / "walkthrough_classify.py"))["main"]
    classify(str(run / "export" / "network.onnx"), read)
    sys.modules.pop("pixels")
    for line, other in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        (*same, found), (*names, probability) = line.split("\t"), other.split("\t")
        assert same == names
        assert float(found) == pytest.approx(float(probability), abs=2e-4)
    for path in refused:
        with pytest.raises(ValueError, match="readable image"):
            list(load_images([path], **pixels))
        with pytest.raises((ValueError, OSError)):
            classify(str(run / "export" / "network.onnx"), [path])
    sys.modules.pop("pixels")


def test_the_fixed_files_are_those_of_the_package(exported: Path):
    package = Path(running.__file__).parents[2]
    for name, source in (("network", "commands/exporting/runtime"), ("pixels", "data/pixels")):
        assert (exported / f"{name}.py").read_bytes() == (package / f"{source}.py").read_bytes()


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
        ("data: {name: digits}", "knows the classes"),
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
    with pytest.raises(ExportError, match=r"--format must be one of .* got 'tflite'"):
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
    assert not list((digits_run / "export").iterdir())  # nor pixels.py by itself


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


class Forks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.is_meta or float(x.abs().sum()) > 1 else -x


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_code_that_no_exporter_follows_is_told_with_its_reason(run_folder, register, format: str):
    own = register(lambda channels: Forks())
    run = run_folder(Architecture.complete(DIGITS, (own,), 1))
    with pytest.raises(ExportError, match=f"{format} cannot hold .*data-dependent") as told:
        export_run(run, [format])
    assert str(told.value).isprintable()


def test_what_cannot_be_written_is_not_said_to_be_the_network(digits_run: Path):
    (digits_run / "export").touch()
    with pytest.raises(OSError, match="export"):
        export_run(digits_run, ["python"])
