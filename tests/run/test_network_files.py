"""The file of a network: what it says about images, older files, and that it is what deploys."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsonas.data import DataConfig, load_data, load_images
from dsonas.graph import Architecture, Skeleton
from dsonas.nn import build
from dsonas.run import Preprocessing, RunError, RunFolder, Shape, predict_images

SKELETON = Skeleton(image_size=8, input_channels=1, num_classes=2, blocks=(1,), channels=(4,))
EXPECTED = Preprocessing(("cat", "dog"), (0.4,), (0.2,), 0.875)


def written(folder: Path, expected: Preprocessing = EXPECTED) -> RunFolder:
    run = RunFolder(folder)
    network = build(Architecture.complete(SKELETON, ("max_pool3x3",), 1))
    run.write_network(network, expected, Shape.of(SKELETON))
    return run


def test_the_file_describes_the_whole_way_from_an_image_to_a_name(tmp_path: Path):
    run = written(tmp_path / "run")
    assert run.load_network()[1] == EXPECTED
    with safe_open(tmp_path / "run" / "network.safetensors", "pt") as file:
        found = {name: json.loads(text) for name, text in file.metadata().items()}
    assert found == {
        "class_names": ["cat", "dog"], "image_size": 8, "input_channels": 1, "mean": [0.4],
        "std": [0.2], "crop": 0.875, "resize": "bicubic",
    }  # fmt: skip


def rewrite(run: RunFolder, **values: object) -> None:
    path = run.path / "network.safetensors"
    texts = {"class_names": ["cat", "dog"], "mean": [0.4], "std": [0.2], **values}
    save_file(load_file(path), path, {name: json.dumps(value) for name, value in texts.items()})


def test_a_file_from_before_crops_were_stored_still_loads(tmp_path: Path):
    run = written(tmp_path / "run")
    rewrite(run)
    assert run.load_network()[1] == Preprocessing(("cat", "dog"), (0.4,), (0.2,), 1.0)


@pytest.mark.parametrize("crop", [0, 1.5, -1, "half", None, [1]])
def test_a_crop_that_is_none_is_damage(tmp_path: Path, crop: object):
    run = written(tmp_path / "run")
    rewrite(run, crop=crop)
    with pytest.raises(RunError, match="damaged"):
        run.load_network()


def test_test_images_are_measured_and_predicted_with_the_same_crop(tmp_path: Path):
    rng = np.random.default_rng(0)
    places = [f"{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")]
    for place in places:
        (tmp_path / "images" / place).mkdir(parents=True)
        for i in range(4):
            values = rng.integers(0, 256, (24 + i, 30), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "images" / place / f"{i}.png")
    data = load_data(DataConfig(name=f"folder:{tmp_path / 'images'}", image_size=8, fit="crop:0.5"))
    expected = Preprocessing.of(data)
    assert expected.crop == 0.5
    paths = [str(path) for path in sorted((tmp_path / "images" / "test").rglob("*.png"))]
    ((images, _),) = load_images(paths, **expected.pixels(SKELETON))
    wanted = data.test.gather(torch.arange(len(paths)))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    torch.testing.assert_close(images, (wanted / 255 - mean) / std)
    run = written(tmp_path / "run", expected)
    network, *_ = run.load_network()
    found = [found.classes[0][0] for found in predict_images(run, paths)]
    assert found == [data.class_names[i] for i in network(images).argmax(1).tolist()]


def test_sets_without_files_have_no_crop():
    assert Preprocessing.of(load_data(DataConfig(name="digits", fit="crop:0.5"))).crop == 1.0
