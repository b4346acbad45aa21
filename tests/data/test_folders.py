import logging

import pytest
import torch

from dsonas.data import DataConfig, DataError, FileImages, load_data, sources


def config_of(root, **options):
    return DataConfig(name=f"folder:{root}", **options)


def everything(images):
    return images.gather(torch.arange(len(images)))


def test_one_folder_is_split(make_folder):
    data = load_data(config_of(make_folder(count=100)))
    held_out = torch.bincount(data.test.labels).tolist()
    assert len(data.train) == 200 - sum(held_out)
    assert all(12 <= count <= 28 for count in held_out)  # two standard deviations from 20
    assert data.class_names == ("a", "b")
    assert data.train.image_shape == (3, 32, 32)
    assert data.train_augmentation.crop_padding == 4
    assert data.train_augmentation.flip
    assert data.train.in_memory
    assert data.skipped == ()


def test_held_out_part_is_the_same_for_every_seed(make_folder):
    root = make_folder(count=10)
    one, other = (load_data(config_of(root), seed=seed) for seed in (0, 1))
    assert torch.equal(everything(one.test), everything(other.test))
    assert torch.equal(everything(one.train), everything(other.train))


@pytest.mark.parametrize("part", ["test", "val", "valid", "validation"])
def test_own_test_part_is_used(make_folder, part):
    make_folder("train", count=4)
    root = make_folder(part, count=2)
    data = load_data(config_of(root))
    assert (len(data.train), len(data.test)) == (8, 4)


def test_test_folder_without_classes_gives_way_to_val(make_folder, save_image):
    make_folder("train", count=4)
    root = make_folder("val", count=3)
    save_image(root / "test" / "unlabelled.png")
    assert len(load_data(config_of(root)).test) == 6


def test_train_folder_alone_is_split(make_folder):
    data = load_data(config_of(make_folder("train", count=5)))
    assert (len(data.train), len(data.test)) == (8, 2)


def test_a_class_may_be_called_train(tmp_path, save_image):
    for name in ("bus", "train"):
        for number in range(5):
            save_image(tmp_path / name / f"{number}.png", seed=number)
    assert load_data(config_of(tmp_path)).class_names == ("bus", "train")


def test_statistics_come_from_the_training_part(make_folder):
    data = load_data(config_of(make_folder()))
    values = everything(data.train).double() / 255
    assert data.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-9)


@pytest.mark.parametrize(("side", "expected"), [(28, 32), (48, 64), (159, 64), (160, 224)])
def test_image_size_follows_the_median(make_folder, side, expected):
    root = make_folder(count=3, size=(side, side + 9))
    assert load_data(config_of(root)).image_size == expected


def test_image_size_can_be_set(make_folder):
    data = load_data(config_of(make_folder(), image_size=24))
    assert data.image_size == 24
    assert data.train_augmentation.crop_padding == 3


def test_grey_folders_stay_grey_unless_told(make_folder):
    root = make_folder(mode="L")
    data = load_data(config_of(root))
    assert data.input_channels == 1
    assert len(data.mean) == 1
    with pytest.raises(DataError, match=r"\.png is grey but data.color is rgb \(10 .*color auto"):
        load_data(config_of(root, color="rgb"))


def test_grey_images_among_coloured_ones(make_folder, save_image, caplog):
    root = make_folder()
    save_image(root / "a" / "grey.png", mode="L")
    with caplog.at_level(logging.WARNING):
        assert load_data(config_of(root)).input_channels == 3
    assert "1 grey images of 11 converted to RGB" in caplog.text
    with pytest.raises(DataError, match=r"a/grey\.png is grey"):
        load_data(config_of(root, color="rgb"))
    assert load_data(config_of(root, color="grey")).input_channels == 1


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("workers", [0, 3])
def test_damaged_images_are_skipped_and_logged(make_folder, caplog, truncate, workers):
    root = make_folder(count=10)
    damaged = root / "a" / "3.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2] if truncate else b"no image")
    with caplog.at_level(logging.WARNING):
        data = load_data(config_of(root, workers=workers))
    assert data.skipped == ("a/3.png",)
    assert "1 unreadable image files skipped: a/3.png" in caplog.text
    assert len(data.train) + len(data.test) == 19


@pytest.mark.parametrize("content", [b"no image", None])
def test_nothing_but_damaged_images_is_an_error(make_folder, content):
    root = make_folder()
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:70] if content is None else content)
    with pytest.raises(DataError, match=r"none of the|0 for 2 classes|or all alike"):
        load_data(config_of(root))


def test_a_class_without_a_readable_image_is_an_error(make_folder):
    root = make_folder(classes="abc")
    for path in (root / "b").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 classes have no readable training image.*'b'"):
        load_data(config_of(root))


def test_test_part_without_a_readable_image_is_an_error(make_folder):
    make_folder("train")
    root = make_folder("test")
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 10 test images can be read"):
        load_data(config_of(root))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="gone not found: give the path of"):
        load_data(config_of(tmp_path / "gone"))


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="has no class folders"):
        load_data(config_of(tmp_path))


def test_images_without_class_folders(tmp_path, save_image):
    save_image(tmp_path / "image.png")
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(DataError, match="has no class folders: it must hold one folder"):
        load_data(config_of(tmp_path))


def test_class_folders_without_images(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="0 classes with images, needs 2"):
        load_data(config_of(tmp_path))


def test_one_class_only(make_folder):
    with pytest.raises(DataError, match="1 classes with images, needs 2"):
        load_data(config_of(make_folder(classes="a")))


def test_folders_without_images_are_ignored_and_logged(make_folder, caplog):
    root = make_folder(classes="acd")
    (root / "b").mkdir()
    (root / "b" / "notes.txt").write_text("no image")
    (root / "c" / "._0.png").write_text("left by another system")
    with caplog.at_level(logging.WARNING):
        data = load_data(config_of(root))
    assert data.class_names == ("a", "c", "d")
    assert data.skipped == ()
    assert len(data.train) + len(data.test) == 15
    assert "1 folders without images ignored: b" in caplog.text


def test_different_classes_in_train_and_test(make_folder):
    make_folder("train", classes="abc")
    root = make_folder("test", classes="abd")
    with pytest.raises(DataError, match=r"first \['c'\], only in the second \['d'\]"):
        load_data(config_of(root))


def test_fewer_training_images_than_classes(make_folder):
    with pytest.raises(DataError, match="got 2 for 3 classes"):
        load_data(config_of(make_folder(classes="abc"), max_train_images=2))


def test_too_few_images_to_hold_any_out(make_folder):
    with pytest.raises(DataError, match=r"data\.test 0\.1 of 2 images, one in each class"):
        load_data(config_of(make_folder(count=1), test=0.1))


def test_of_every_class_something_is_held_out_and_something_is_not(make_folder):
    for fraction in (0.01, 0.99):
        data = load_data(config_of(make_folder(count=2), test=fraction))
        assert data.test.labels.tolist() == data.train.labels.tolist() == [0, 1]


def test_subsets(make_folder):
    config = config_of(make_folder(count=20), max_train_images=10, max_test_images=4)
    one, other = load_data(config, seed=0), load_data(config, seed=1)
    assert torch.bincount(one.train.labels).tolist() == [5, 5]
    assert torch.equal(everything(one.test), everything(other.test))
    assert len(one.test) == 4
    assert not torch.equal(everything(one.train), everything(other.train))


def test_large_folders_are_streamed_with_the_same_result(make_folder, monkeypatch):
    root = make_folder(count=10)
    (root / "a" / "3.png").write_bytes(b"no image")
    loaded = load_data(config_of(root))
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 1000)
    streamed = load_data(config_of(root))
    assert isinstance(streamed.train, FileImages)
    assert not streamed.test.in_memory
    assert torch.equal(everything(loaded.train), everything(streamed.train))
    assert torch.equal(loaded.test.labels, streamed.test.labels)
    assert (loaded.mean, loaded.std) == (streamed.mean, streamed.std)
    assert streamed.skipped == ("a/3.png",)


def test_errors_are_one_line(tmp_path, make_folder):
    for root in (tmp_path / "gone", make_folder(classes="a")):
        with pytest.raises(DataError) as caught:
            load_data(config_of(root))
        assert "\n" not in str(caught.value)
