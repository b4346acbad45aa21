"""What a user says about a folder: labels in a file, parts elsewhere, shapes, balance, a check."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsonas.data import (
    Augmentation,
    Batches,
    DataConfig,
    DataError,
    check_folder,
    images,
    load_data,
    load_test,
    sources,
)
from dsonas.data.decoding import decode
from dsonas.data.pixels import read_pixels

RNG = np.random.default_rng(0)


def picture(path: Path, width: int = 20, height: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def pictures(root: Path, classes: str = "cat dog", count: int = 10, **size: int) -> Path:
    for name in classes.split():
        for number in range(count):
            picture(root / name / f"{number}.png", **size)
    return root


def load(root: Path, **options):
    return load_data(DataConfig(name=f"folder:{root}", **options))


def names(images) -> set[str]:
    return set(images.names or ()) if images is not None else set()


# parts elsewhere, or held out


def test_a_test_part_may_lie_elsewhere(tmp_path):
    root = pictures(tmp_path / "train_images")
    other = pictures(tmp_path / "elsewhere", count=3)
    data = load(root, test=str(other))
    assert (len(data.train), len(data.test)) == (20, 6)
    assert f"{other}/ used as test" in data.layout
    with pytest.raises(DataError, match=r"data\.test .*gone not found"):
        load(root, test=str(tmp_path / "gone"))
    pictures(other, "owl", count=1)
    with pytest.raises(DataError, match=r"only in the second \['owl'\]"):
        load(root, test=str(other))


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_share_is_held_out_for_validation(tmp_path, name):
    place = "digits" if name == "digits" else f"folder:{pictures(tmp_path, count=60)}"
    plain = load_data(DataConfig(name=place))
    data = load_data(DataConfig(name=place, val=0.25))
    assert plain.val is None
    assert data.val is not None
    assert len(data.train) + len(data.val) == len(plain.train)
    assert 0.1 < len(data.val) / len(plain.train) < 0.4
    assert torch.equal(data.test.labels, plain.test.labels)
    assert not names(data.val) & (names(data.train) | names(data.test))


def test_copies_of_test_images_are_not_learned(tmp_path):
    root = pictures(tmp_path)
    for number in range(10):
        shutil.copy(root / "cat" / f"{number}.png", root / "cat" / f"copy {number}.png")
    data = load(root)
    content = {name: (root / name).read_bytes() for name in names(data.train) | names(data.test)}
    assert not {content[n] for n in names(data.train)} & {content[n] for n in names(data.test)}
    assert len(content) == 30  # copies stay together, so that none is lost


def test_large_images_that_differ_in_the_middle_alone_are_no_copies(tmp_path):
    """As scans with black margins are, when nothing compresses them."""
    for number in range(6):
        pixels = np.zeros((900, 900, 3), np.uint8)
        pixels[450, 450] = number
        path = tmp_path / ("cat" if number % 2 else "dog") / f"{number}.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 6
    pixels[450, 450] = 99
    Image.fromarray(pixels).save(path)
    after = load(tmp_path)
    assert data.split is not None
    assert after.split is not None
    assert data.split.changes(after.split) == "1 files changed: cat/5.bmp"


def test_a_change_of_content_alone_is_noticed(tmp_path):
    root = pictures(tmp_path)
    file = root / "cat" / "3.png"
    before = load(root)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    after = load(root)
    assert before.split is not None
    assert after.split is not None
    assert before.split.changes(after.split).endswith("1 files changed: cat/3.png")
    assert before.identity != after.identity


def test_classes_divided_each_for_itself_are_refused(tmp_path):
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            picture(tmp_path / name / part / "1.png")
    with pytest.raises(DataError, match="look like parts of a split inside of a class"):
        load(tmp_path)


# shapes


def test_an_image_is_padded_or_stretched(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((10, 40, 3), 200, np.uint8)).save(path)
    padded = read_pixels(path, 20, 1, fit="pad")[0]
    assert (padded[:7] == 0).all()
    assert (padded[8:12] == 200).all()
    assert (padded[13:] == 0).all()
    assert (read_pixels(path, 20, 1, fit="stretch") == 200).all()
    for fit in ("pad", "stretch"):
        half = np.zeros((10, 40), np.uint8)
        half[:, 20:] = 255
        Image.fromarray(half).save(tmp_path / "half.png")
        found = decode(str(tmp_path / "half.png"), 20, 1, fit=fit)[0, 10]
        assert found[0] == 0
        assert found[-1] == 255


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (33, 20)])
@pytest.mark.parametrize("augment", ["shift", "crop"])
def test_every_shape_becomes_a_square(tmp_path, fit, size, augment):
    root = pictures(tmp_path, count=6)
    picture(root / "cat" / "odd.png", *size)
    data = load(root, fit=fit, augment=augment, image_size=8)
    batches = Batches(data.train, data, batch_size=len(data.train), shuffle=False, seed=0,
                      augmentation=data.train_augmentation, drop_last=True)  # fmt: skip
    images, _ = next(batches.epoch(0))
    assert images.shape[1:] == (3, 8, 8)
    assert images.isfinite().all()
    assert data.fit == fit


# classes of different size


def test_balanced_draws_show_all_classes_equally_often(tmp_path, caplog):
    root = pictures(tmp_path, "many", count=60)
    pictures(root, "few", count=6)
    with caplog.at_level(logging.WARNING):
        load(root)
    assert "classes differ in size" in caplog.text
    data = load(root, balance=True)
    batches = Batches(data.train, data, batch_size=8, augmentation=Augmentation(), shuffle=True,
                      drop_last=False, seed=0)  # fmt: skip
    labels = torch.cat([labels for epoch in range(20) for _, labels in batches.epoch(epoch)])
    assert labels.float().mean() == pytest.approx(0.5, abs=0.06)


# the check


def test_a_check_tells_what_a_run_would_do(tmp_path):
    root = pictures(tmp_path / "photos", count=30, width=96, height=48)
    shutil.copy(root / "cat" / "1.png", root / "dog" / "again.png")
    (root / "dog" / "bad.png").write_bytes((root / "dog" / "2.png").read_bytes()[:300])
    (root / "dog" / "notes.txt").write_text("no image")
    found = check_folder(DataConfig(name=f"folder:{root}"))
    assert found.num_images == 61
    assert "dog/bad.png" in found.unreadable
    assert found.copies == {"dog/again.png": "cat/1.png"}
    assert any("1 .txt" in note for note in found.notes)
    assert found.image_size == 64
    assert found.proposed["data.fit"] == "pad"
    assert found.sizes["long"] == 61
    assert {name: sum(found.counts[part].get(name, 0) for part in found.counts)
            for name in found.class_names} == {"cat": 30, "dog": 31}  # fmt: skip


# said, and said once


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_warned_of_once_in_all_epochs(tmp_path, caplog, monkeypatch, workers):
    root = pictures(tmp_path)
    data = load(root)
    bad = sorted(names(data.train))[0]
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(images, "_said", set())
    (root / bad).write_bytes((root / bad).read_bytes()[:200])  # its head is whole
    data = load(root, workers=workers)
    assert bad in names(data.train)
    batches = Batches(data.train, data, batch_size=4, augmentation=Augmentation(), shuffle=True,
                      drop_last=False, seed=0, workers=workers)  # fmt: skip
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            assert sum(len(labels) for _, labels in batches.epoch(epoch)) == len(data.train)
    assert caplog.text.count("takes its place") == 1


def test_a_run_without_a_split_is_measured_with_a_warning(tmp_path, caplog):
    root = pictures(tmp_path)
    options = {"class_names": ("cat", "dog"), "image_size": 8, "input_channels": 3,
               "mean": [0.5] * 3, "std": [0.5] * 3, "split": None}  # fmt: skip
    with caplog.at_level(logging.WARNING):
        data = load_test(DataConfig(name=f"folder:{root}"), **options)
    assert len(data.test) == 20
    assert "which images were in training is not known, as the run has no split.csv" in caplog.text
