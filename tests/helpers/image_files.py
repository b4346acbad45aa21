"""Small data sets in the true formats of the published ones."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, classes: int = 10) -> None:
    """The pickled batches of CIFAR-10 or CIFAR-100, one image of every class in each."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    is_10 = classes == 10
    base = folder / ("cifar-10-batches-py" if is_10 else "cifar-100-python")
    base.mkdir(parents=True)
    key = "labels" if is_10 else "fine_labels"
    parts = (
        [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if is_10 else ["train", "test"]
    )
    for number, name in enumerate(parts):
        pixels = np.random.default_rng(number).integers(0, 256, (classes, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": pixels, key: list(range(classes))}))
    names = [f"class {number}" for number in range(classes)]
    meta = {"label_names" if is_10 else "fine_label_names": names}
    (base / ("batches.meta" if is_10 else "meta")).write_bytes(pickle.dumps(meta))


def write_imagenet(folder: Path, classes: int = 3, each: int = 4) -> None:
    """Folders ``train`` and ``val`` of JPEG files of about ImageNet's size, by WordNet number."""
    for part, count in (("train", each), ("val", 1)):
        for label in range(classes):
            place = folder / part / f"n{1440764 + label:08}"
            place.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([label, number, count])
                rough = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                size = ((340, 256), (250, 333), (500, 375))[number % 3]
                image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
                image.save(place / f"{place.name}_{number}.JPEG", quality=90)
