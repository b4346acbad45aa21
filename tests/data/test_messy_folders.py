"""Folders as people have them: every kind of disorder gives the right images or a plain refusal."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dsonas.data import (
    DataConfig,
    DataError,
    ImageData,
    Split,
    check_folder,
    folder_layout,
    load_data,
    load_images,
    load_test,
)
from dsonas.data.folder_layout import find_layout
from dsonas.data.folders import list_images

PHOTO = Image.fromarray(load_sample_image("flower.jpg"))


def photo(path: Path, number: int, size: int = 24) -> None:
    """A part of a photograph, another one for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left, top = 37 * number % 500, 23 * number % 300
    image = PHOTO.crop((left, top, left + 100, top + 100)).resize((size, size))
    for place, digit in enumerate(f"{number:06}"):
        image.paste((25 * int(digit), 0, 0), (4 * place, 0, 4 * place + 4, 4))
    image.save(path)


def photos(
    root: Path, classes: str | list[str] = "cat dog owl", count: int = 10, start: int = 0
) -> Path:
    """Class folders of photographs, no two of them the same."""
    for label, name in enumerate(classes.split() if isinstance(classes, str) else classes):
        for i in range(count):
            photo(root / name / f"{i:03}.png", start + 1000 * label + i)
    return root


def load(root: Path, **options) -> ImageData:
    return load_data(DataConfig(name=f"folder:{root}", **options))


def named(data: ImageData) -> tuple[set[str], set[str]]:
    """The names of the training images and of the test images."""
    assert data.train.names is not None
    assert data.test.names is not None
    return set(data.train.names), set(data.test.names)


def contents(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.gather(torch.arange(len(images)))}


# 1 and 2: which file is for what, whatever comes and goes


def test_files_stay_in_their_part_when_others_come_and_go(tmp_path):
    root = photos(tmp_path / "photos", count=40)
    train, test = named(load(root))
    assert len(train) + len(test) == 120
    assert 15 <= len(test) <= 33
    photos(root, "cat", count=60)
    (root / "dog" / "007.png").unlink()
    photos(root, "ant", count=20, start=5000)
    later_train, later_test = named(load(root))
    assert not later_train & test
    assert not later_test & train
    assert (later_train | later_test) >= (train | test) - {"dog/007.png"}


def test_the_part_of_a_file_does_not_depend_on_the_system(tmp_path):
    """Names are compared composed, as most systems have them; macOS has written others."""
    root = photos(tmp_path / "photos", count=1)
    for i in range(40):
        photo(root / "cat" / f"caf\u00e9 {i}.png", i)
    _, test = named(load(root))
    for file in list((root / "cat").glob("caf*")):
        file.rename(file.with_name(file.name.replace("\u00e9", "e\u0301")))
    _, later = named(load(root))
    assert {name.replace("e\u0301", "\u00e9") for name in later} == test


def test_a_split_says_what_has_changed(tmp_path):
    root = photos(tmp_path / "photos")
    before = load(root)
    assert before.split is not None
    assert load(root).identity == before.identity
    (root / "owl").rename(root / "eagle")
    photo(root / "dog" / "new.png", 77)
    photo(root / "dog" / "001.png", 78, size=40)
    after = load(root)
    assert after.split is not None
    assert after.identity != before.identity
    said = before.split.changes(after.split)
    assert said.startswith("classes gone: owl; classes new: eagle; 10 files gone: owl/000.png, ")
    assert "; 11 files new: dog/new.png, " in said
    assert said.endswith("; 1 files changed: dog/001.png")


def test_a_split_survives_any_file_name(tmp_path):
    root = photos(tmp_path / "photos")
    for name in ('a,"b".png', "tab\tnew\nline\r.png", os.fsdecode(b"\xff\xfe.png"), "ü\u2028.png"):
        photo(root / "cat" / name, 5)
    split = load(root).split
    assert split is not None
    text = split.to_csv().encode().decode()
    assert Split.from_csv(text) == split
    assert len(text.splitlines()) == 35
    with pytest.raises(DataError, match=r"split\.csv is damaged"):
        Split.from_csv(text + "rest\n")


def measured(root: Path, split: Split | None, names: str = "cat dog owl") -> ImageData:
    return load_test(
        DataConfig(name=f"folder:{root}"), class_names=names.split(), image_size=32,
        input_channels=3, mean=[0.5] * 3, std=[0.5] * 3, split=split,
    )  # fmt: skip


def test_a_network_is_measured_on_the_test_images_of_its_run(tmp_path, caplog):
    root = photos(tmp_path / "photos", count=30)
    data = load(root)
    _, test = named(data)
    assert named(measured(root, data.split))[1] == test
    photos(root, count=35)
    gone = min(test)
    (root / gone).unlink()
    shutil.rmtree(root / "owl")  # a class less is no reason to refuse
    with caplog.at_level(logging.WARNING):
        found = measured(shutil.copytree(root, tmp_path / "moved"), data.split)
    left = {name for name in test if name != gone and not name.startswith("owl")}
    assert named(found)[1] == left
    assert found.class_names == ("cat", "dog", "owl")
    assert f"{len(test) - len(left)} test images of the run are gone: {gone}" in caplog.text
    assert "10 images are new and not measured: cat/030.png" in caplog.text
    assert "no images of 1 of the network's 3 classes: owl" in caplog.text


def test_of_another_folder_everything_is_measured(tmp_path, caplog):
    data = load(photos(tmp_path / "photos", count=30))
    other = photos(tmp_path / "other", "cat dog", count=8, start=9000)
    assert len(named(measured(other, data.split))[1]) == 16
    assert measured(other, data.split).test.labels.tolist() == [0] * 8 + [1] * 8
    trained = [name for name in named(data)[0] if name.startswith("cat")][:2]
    for name in trained:
        shutil.copy(tmp_path / "photos" / name, other / name)
    with caplog.at_level(logging.WARNING):
        assert not named(measured(other, data.split))[1] & set(trained)
    assert "2 images were in training and are not measured" in caplog.text
    photos(other / "split" / "test", "cat", count=3, start=7000)
    photos(other / "split" / "train", "cat", count=4, start=8000)
    assert len(named(measured(other / "split", data.split))[1]) == 3
    with pytest.raises(
        DataError, match=r"knows the classes \['cat', 'dog'\], .* has \['owl'\] too"
    ):
        measured(tmp_path / "photos", None, "cat dog")


def test_a_test_image_of_which_training_had_a_copy_is_measured_anywhere(tmp_path):
    """The copy was left out of training."""
    root = photos(tmp_path / "data" / "train")
    photos(tmp_path / "data" / "test", count=4, start=500)
    shutil.copy(root / ".." / "test" / "cat" / "001.png", root / "dog" / "copy.png")
    data = load(tmp_path / "data")
    other = shutil.copytree(tmp_path / "data" / "test", tmp_path / "other")
    assert len(named(measured(other, data.split))[1]) == 12


# 3: folders that are parts of a split

PAIRS = [
    ("train", "test"), ("Train", "Test"), ("training", "validation"), ("train", "testing"),
    ("TRAIN", "VAL"), ("train", "dev"), ("train", "eval"), ("trainset", "testset"),
    ("seg_train", "seg_test"), ("train_images", "test_images"), ("train2017", "val2017"),
    ("training_set", "test_set"), ("asl_alphabet_train", "asl_alphabet_test"),
    ("flowers-training", "flowers-valid"), ("Training Data", "Validation Data"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test"), PAIRS)
@pytest.mark.parametrize("nested", [False, True])
def test_parts_of_a_split_are_known_by_their_names(tmp_path, train, test, nested):
    for part, count in ((train, 5), (test, 2)):
        photos(
            tmp_path / part / part if nested else tmp_path / part, count=count, start=100 * count
        )
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog", "owl")
    assert (len(data.train), len(data.test)) == (15, 6)
    place, used = (f"{part}/{part}" if nested else part for part in (train, test))
    assert data.layout == f"{place}/ 3 classes 15 images, {used}/ used as test"


def test_one_part_of_two_is_used_and_the_other_said_to_be_unused(tmp_path):
    photos(tmp_path / "train", count=5)
    photos(tmp_path / "val", count=3, start=100)
    photos(tmp_path / "test", count=2, start=200)
    data = load(tmp_path)
    assert len(data.test) == 6
    assert (len(data.train), len(data.val or ())) == (15, 9)
    said = "train/ 3 classes 15 images, test/ used as test, val/ used as validation"
    assert data.layout == said
    data = load(tmp_path, val=0)
    assert data.val is None
    assert data.layout == said.replace("used as validation", "unused")
    shutil.rmtree(tmp_path / "test")
    photo(tmp_path / "test" / "unlabelled.png", 1)  # as of ImageNet
    photos(tmp_path / "extra", count=1)
    data = load(tmp_path)
    assert len(data.test) == 9
    assert data.layout.endswith(
        "val/ used as test, test/ unused (no class folders), extra/ ignored"
    )


def test_the_layout_of_plain_class_folders_is_said(tmp_path):
    data = load(photos(tmp_path / "photos", count=40))
    said = f"photos/ 3 classes {len(data.train)} images, 20 % of the files held out as test"
    assert data.layout == said


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("train test", "test/, train/ in .* would be classes: put the training images into"),
        ("training validation", "would be classes"),
        ("cat dog test", "test/ in .* would be classes: .*, or rename"),
        ("cat dog validation", "validation/ in .* would be classes"),
        ("cat dog test/cat test/dog", "would be classes"),
        (
            "cat dog train/cat train/dog",
            "stands beside cat, dog: move these away, or rename train/",
        ),
        (
            "train/cat train/dog training/cat training/dog",
            "one training part, got train/, training/",
        ),
        ("test/cat test/dog", "test/ in .* would be classes"),
    ],
)
def test_what_looks_like_a_part_does_not_become_a_class(tmp_path, folders, message):
    for name in folders.split():
        photos(tmp_path / Path(name).parent, Path(name).name, count=2)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "Train", "trains"])
def test_a_class_may_be_called_train(tmp_path, name):
    photos(tmp_path, f"bus {name}", count=5)
    assert set(load(tmp_path).class_names) == {"bus", name}


def test_inside_a_part_any_name_is_a_class(tmp_path):
    photos(tmp_path / "train", "bus test train", count=5)
    photos(tmp_path / "val", "bus test train", count=2, start=50)
    data = load(tmp_path)
    assert data.class_names == ("bus", "test", "train")
    assert (len(data.train), len(data.test)) == (15, 6)


@pytest.mark.parametrize("name", ["train_station", "test tube", "evaluator", "sunset", "devil"])
def test_names_that_only_remind_of_a_part_are_classes(tmp_path, name):
    photos(tmp_path, count=1)
    photos(tmp_path, [name], count=2, start=9000)
    assert name in load(tmp_path).class_names


def test_a_folder_that_only_wraps_is_seen_through(tmp_path):
    photos(tmp_path / "birds" / "birds", count=5)
    photo(tmp_path / "birds" / "birds" / "cat" / "more" / "deep.png", 99)
    data = load(tmp_path / "birds")
    assert data.class_names == ("cat", "dog", "owl")
    assert "cat/more/deep.png" in {
        name.removeprefix("birds/") for part in named(data) for name in part
    }


# 4: whatever Pillow opens is read, the rest is said


@pytest.mark.parametrize(
    "ending", ["tga", "jp2", "avif", "webp", "bmp", "ppm", "tif", "gif", "ico"]
)
def test_every_format_of_pillow_is_read(tmp_path, ending):
    root = photos(tmp_path, count=3)
    photo(root / "cat" / f"other.{ending}", 50)
    photo(root / "cat" / f"CAPITAL.{ending.upper()}", 51)
    names = {name for part in named(load(root)) for name in part}
    assert {f"cat/other.{ending}", f"cat/CAPITAL.{ending.upper()}"} <= names


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_files_of_several_images_are_said_and_the_first_is_used(tmp_path, caplog, ending):
    root = photos(tmp_path, count=5)
    frames = [PHOTO.crop((0, top, 24, top + 24)) for top in (0, 100, 200)]
    file = root / "cat" / f"frames.{ending}"
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
    with caplog.at_level(logging.WARNING):
        data = load(root, image_size=24)
    assert f"1 files hold several images, of which the first is used: cat/frames.{ending}" in (
        caplog.text
    )
    whole = data.train if "cat/frames." + ending in (data.train.names or ()) else data.test
    pixels = whole.gather(torch.tensor([(whole.names or ()).index(f"cat/frames.{ending}")]))[0]
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(frames[0])).mean() < 5
    found = check_folder(DataConfig(name=f"folder:{root}"))
    assert "1 files hold several images, of which the first is used" in found.notes


def test_files_without_an_ending_are_read_by_their_content(tmp_path):
    root = photos(tmp_path, count=3)
    (root / "cat" / "000.png").rename(root / "cat" / "000")
    (root / "cat" / "001.png").rename(root / "cat" / "001.image")
    names = {name for part in named(load(root)) for name in part}
    assert {"cat/000", "cat/001.image"} <= names


def test_folders_that_begin_with_an_underscore_are_classes(tmp_path):
    assert load(photos(tmp_path, "_background cat")).class_names == ("_background", "cat")


def test_what_is_not_read_is_counted_by_its_ending(tmp_path, caplog, monkeypatch):
    root = photos(tmp_path, count=3)
    monkeypatch.setattr(folder_layout, "image_extensions", lambda: frozenset((".png",)))
    for name in ("a.heic", "b.HEIC", "c.mp4", "notes", "labels.txt"):
        (root / "cat" / name).write_bytes(b"\0\0\1\0 no image that Pillow knows \1\2\3" * 9)
    photo(root / "beside.png", 3)
    with caplog.at_level(logging.WARNING):
        assert sum(map(len, named(load(root)))) == 9
    assert all(f"1 {kind}" in caplog.text for kind in (".mp4", ".txt", "without an ending"))
    assert "2 .heic (pip install 'dsonas[formats]')" in caplog.text
    assert "1 images beside the class folders left out: beside.png" in caplog.text


def test_heic_is_read_with_its_package(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    root = photos(tmp_path, count=3)
    photo(root / "cat" / "phone.heic", 50)
    assert "cat/phone.heic" in {name for part in named(load(root)) for name in part}


# 5: links and copies


def test_links_into_themselves_do_not_multiply_images(tmp_path, caplog):
    root = photos(tmp_path / "photos", count=20)
    plain = named(load(root))
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    (root / "dog" / "self.png").symlink_to("self.png")
    (root / "dog" / "again").symlink_to(root / "cat", target_is_directory=True)
    (root / "zebra").symlink_to(root / "owl", target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert named(data) == plain
    assert data.class_names == ("cat", "dog", "owl")
    assert data.skipped == ("dog/self.png",)
    assert "files are linked or named more than once and taken once" in caplog.text


def test_linked_classes_and_files_are_read(tmp_path):
    store = photos(tmp_path / "store", count=6)
    for name in ("cat", "dog"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(store / name, target_is_directory=True)
    (tmp_path / "data" / "owl").mkdir()
    for file in (store / "owl").iterdir():
        (tmp_path / "data" / "owl" / file.name).symlink_to(file)
    data = load(tmp_path / "data")
    assert data.class_names == ("cat", "dog", "owl")
    assert sum(map(len, named(data))) == 18


def test_a_file_that_is_linked_into_both_parts_is_a_test_image(tmp_path, caplog):
    store = photos(tmp_path / "store", count=6)
    for part, numbers in (("train", range(6)), ("test", range(4, 6))):
        for file in store.rglob("*.png"):
            if int(file.stem) in numbers:
                link = tmp_path / "data" / part / file.relative_to(store)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path / "data")
    assert (len(data.train), len(data.test)) == (12, 6)
    assert not contents(data.train) & contents(data.test)
    assert "6 files are linked or named more than once and taken once: train/" in caplog.text


def test_broken_links_are_unreadable_files(tmp_path, caplog):
    root = photos(tmp_path, count=5)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert data.skipped == ("cat/gone.png",)
    assert "1 unreadable image files skipped: cat/gone.png (" in caplog.text
    assert data.split is not None
    assert data.split.rows["cat/gone.png"].part == "unreadable"
    assert "No such file" in data.split.rows["cat/gone.png"].reason


def test_exact_copies_across_the_parts_are_said(tmp_path, caplog):
    photos(tmp_path / "train", count=5)
    photos(tmp_path / "test", count=3, start=500)
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    assert "exact copies" not in caplog.text
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "test/dog/copy.png")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path)
    told = "1 images are left out of training, as exact copies of test or validation images"
    assert told in caplog.text
    assert "train/cat/001.png = test/dog/copy.png" in caplog.text
    assert "1 images are exact copies of images of another class" in caplog.text
    assert not contents(data.train) & contents(data.test)
    assert data.split is not None
    assert data.split.rows["train/cat/001.png"].part == "copy"


# 6: hidden folders and those of systems

HIDDEN = [
    ".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN", ".git",
    "System Volume Information",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_folders_are_skipped_at_any_depth(tmp_path, name):
    root = photos(tmp_path / "photos", count=5)
    plain = named(load(root))
    for place in (root, root / "cat", root / "cat" / "deep" / "deeper"):
        photo(place / name / "copy.png", 1)
        photo(place / name / "inner" / "copy.png", 2)
    photo(root / "dog" / "._001.png", 3)
    (root / "dog" / "Thumbs.db").write_bytes(b"of Windows")
    assert named(load(root)) == plain
    assert len(list_images(root)) == 15
    options = {"image_size": 8, "input_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert sum(len(names) for _, names in load_images([root], **options)) == 15


# and all together


@pytest.mark.parametrize("seed", range(40))
def test_no_test_image_is_ever_in_training(tmp_path, seed):
    """Random trees of splits, links, names and formats: a layout that is right, or one line."""
    rng = np.random.default_rng(seed)
    root = tmp_path / "tree"
    tops = rng.choice(["train", "Test", "val", "a", "b", "seg_train", "_c", ".hidden"], 4, False)
    folders = [root / str(top) / str(name) for top in tops for name in rng.choice(list("xyz"), 2)]
    for number in range(40):
        place = folders[rng.integers(len(folders))]
        place = place.parent if rng.random() < 0.3 else place
        place.mkdir(parents=True, exist_ok=True)
        kind = rng.random()
        if kind < 0.7:
            photo(place / f"{number}.{rng.choice(['png', 'jpg', 'tga', 'avif'])}", number)
        elif kind < 0.8:
            (place / f"{number}.txt").write_text("no image")
        else:
            target = folders[rng.integers(len(folders))]
            (place / f"link{number}").symlink_to(rng.choice([target, target.parent, root]))
    try:
        data = load(root)
    except DataError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    train, test = named(data)
    val = set(data.val.names or ()) if data.val is not None else set()
    real = {name: os.path.realpath(root / name) for name in train | test | val}
    assert len(set(real.values())) == len(real)
    assert not {real[name] for name in train} & {real[name] for name in test | val}
    layout = find_layout(root)
    used = list(layout.parts.values())
    there = {
        str(path) for folder in used for path in folder.rglob("*")
        if path.suffix in (".png", ".jpg", ".tga", ".avif") and path.parent != folder
        and ".hidden" not in path.parts
    }  # fmt: skip
    assert there <= set(real.values()) | {str(root / name) for name in data.skipped}


def test_a_class_without_a_readable_test_image_is_said(make_folder, caplog):
    make_folder("train")
    root = make_folder("test")
    for file in (root / "test" / "a").iterdir():
        file.write_bytes(b"nonsense")
    load_data(DataConfig(name=f"folder:{root}"))
    assert "no test image of 1 classes can be read: a" in caplog.text
