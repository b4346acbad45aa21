"""Odd layouts: what wraps, repeats or divides class folders is seen, and nothing is lost unsaid."""

import logging
import shutil
from pathlib import Path

import pytest

from data.test_messy_folders import load, named, photo, photos
from dsonas.data import DataConfig, DataError, Split, check_folder, load_images


def parts(root: Path, names: str, classes: str = "cat dog", count: int = 3) -> Path:
    for number, name in enumerate(names.split()):
        photos(root / name, classes, count, start=5000 * number)
    return root


@pytest.mark.parametrize(
    "place", ["dataset/dataset", "archive/Data", "flowers/flowers-master", "a/b/c", "data/images"]
)
def test_what_only_wraps_is_seen_through(tmp_path, place):
    photos(tmp_path / place, count=6)
    top = tmp_path / Path(place).parts[0]
    (tmp_path / "README.md").write_text("about it")
    (top / "annotations").mkdir()
    (top / "annotations" / "boxes.xml").write_text("<xml/>")
    for root in (tmp_path, top, tmp_path / place):
        assert load(root).class_names == ("cat", "dog", "owl")
    shutil.rmtree(tmp_path / place)
    parts(tmp_path / place, "Training VAL")
    data = load(tmp_path)
    assert data.layout == "Training/ 2 classes 6 images, VAL/ used as test"
    assert data.class_names == ("cat", "dog")


def test_images_in_the_only_folder_make_it_a_class(tmp_path):
    photos(tmp_path, "cat")
    photos(tmp_path / "cat", "old young", start=500)
    with pytest.raises(DataError, match="has 1 classes with images, needs 2"):
        load(tmp_path)


@pytest.mark.parametrize("names", ["fold0 fold1 fold2", "0 1", "split_a split_b", "learn check"])
def test_folders_that_are_divided_alike_are_no_classes(tmp_path, names):
    parts(tmp_path, names)
    with pytest.raises(DataError, match="look like parts of a split, as each holds cat, dog: name"):
        load(tmp_path)
    for name in names.split():  # as the message says
        (tmp_path / "train").mkdir(exist_ok=True)
        shutil.move(tmp_path / name, tmp_path / "train")
    assert set(load(tmp_path).class_names) == set(names.split())


@pytest.mark.parametrize("pair", ["trainA testA", "trainData testData", "1_train 2_test"])
def test_parts_are_known_by_words_run_together(tmp_path, pair):
    train, test = parts(tmp_path, pair), pair.split()[1]
    assert f", {test}/ used as test" in load(train).layout
    for folder in tmp_path.rglob("dog"):
        shutil.rmtree(folder)
    for folder in list(tmp_path.rglob("cat")):  # without class folders: as CycleGAN has them
        for file in folder.iterdir():
            file.rename(folder.parent / file.name)
        folder.rmdir()
    with pytest.raises(DataError, match="must be parts of a split with class folders inside"):
        load(tmp_path)


@pytest.mark.parametrize("place", [".", "train"])
def test_classes_that_are_there_once_more_in_a_folder_are_refused(tmp_path, place):
    photos(tmp_path / place, count=3)
    shutil.copytree(tmp_path / place, tmp_path / "copy")
    shutil.move(tmp_path / "copy", tmp_path / place / "flowers")
    with pytest.raises(DataError, match=r"flowers/ in .* of the names of classes beside it \(cat"):
        load(tmp_path)


def test_a_part_that_is_not_used_is_said(tmp_path):
    root = parts(tmp_path / "photos", "train test")
    assert load(root / "train").layout.endswith("held out as test, test/ beside it unused")
    assert "unused" not in load(root / "train", test=str(root / "test")).layout
    shutil.rmtree(root / "test")
    (root / "test" / "cat").mkdir(parents=True)
    assert load(root).layout.endswith("held out as test, test/ unused (empty)")


@pytest.mark.parametrize("name", ["mine", "test"])
def test_a_given_part_inside_of_the_folder_is_no_class(tmp_path, name, caplog):
    root = photos(tmp_path, count=6)
    photos(root / name, count=2, start=500)
    with caplog.at_level(logging.WARNING):
        data = load(root, test=str(root / name))
    assert caplog.text == ""
    assert data.class_names == ("cat", "dog", "owl")
    assert (len(data.train), len(data.test)) == (18, 6)


def test_parts_of_the_same_images_are_refused(tmp_path):
    root = photos(tmp_path / "photos")
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / name).symlink_to(root)
    for place, options in ((root, {"test": str(root)}), (tmp_path / "data", {})):
        with pytest.raises(DataError, match=r"all images of .* are those of .* too: give each"):
            load(place, **options)
    with pytest.raises(DataError, match=r"cat must hold test images .* no images in class folders"):
        load(root, test=str(root / "cat"))


def test_a_link_to_what_a_class_lies_in_brings_nothing_in(tmp_path):
    root = photos(tmp_path / "photos")
    photo(tmp_path / "stray.png", 99)
    plain = named(load(root))
    (root / "cat" / "up").symlink_to(tmp_path)
    (root / "all").symlink_to(root)
    assert named(load(root)) == plain
    options = {"image_size": 8, "input_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert sum(len(names) for _, names in load_images([root], **options)) == 30


@pytest.mark.parametrize("names", [("Cat", "cat"), ("big cat", "big_cat"), ("cat ", "cat")])
def test_classes_that_look_alike_are_said(tmp_path, caplog, names):
    photos(tmp_path, ["dog", *names])
    with caplog.at_level(logging.WARNING):
        assert set(load(tmp_path).class_names) == {"dog", *names}
    assert "differ in case, spaces or dashes alone" in caplog.text
    assert "'dog'" not in caplog.text


# every file that is not used is listed


def test_files_that_are_not_used_are_listed_with_the_reason(tmp_path, caplog):
    root = parts(tmp_path, "train test")
    photo(root / "beside.png", 70)
    photo(root / "train" / "loose.png", 71)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "test" / "dog" / "a,b.npy").write_bytes(b"no image")
    (root / "train" / "cat" / "again.png").symlink_to(root / "train" / "cat" / "001.png")
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert data.split is not None
    assert data.split.ignored == {
        "beside.png": "beside the class folders",
        "train/loose.png": "beside the class folders",
        "train/cat/notes.txt": "no image",
        "test/dog/a,b.npy": "no image",
        "train/cat/again.png": f"the file is {root}/train/cat/001.png",
    }
    assert Split.from_csv(data.split.to_csv()) == data.split
    assert "1 images beside the class folders left out: beside.png" in caplog.text
    found = check_folder(DataConfig(name=f"folder:{root}"))
    assert found.ignored == data.split.ignored


def test_a_file_that_is_not_used_changes_no_run(tmp_path):
    root = photos(tmp_path)
    before = load(root)
    (root / "cat" / "notes.txt").write_text("no image")
    after = load(root)
    assert after.identity == before.identity
    assert before.split is not None
    assert after.split is not None
    assert before.split.changes(after.split) == ""


def test_a_layout_is_one_line_whatever_folders_are_called(tmp_path):
    root = parts(tmp_path, "train test")
    photos(root / "n\nl", "cat", count=1, start=900)
    layout = load(root).layout
    assert layout.isprintable()
    assert layout.endswith(r"n\nl/ ignored")


def test_classes_without_a_held_out_image_are_said(tmp_path, caplog):
    photos(tmp_path, "cat dog", count=9)
    photos(tmp_path, "owl", count=1, start=900)
    photos(tmp_path, "elk", count=2, start=950)
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, val=0.2)
    assert "1 classes are too small for a test image: owl" in caplog.text
    assert "2 classes are too small for a val image: elk, owl" in caplog.text
    assert data.class_names == ("cat", "dog", "elk", "owl")
