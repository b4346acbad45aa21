import gzip
import hashlib

import numpy as np
import pytest
import torch

from dsonas.data import (
    DataConfig,
    DataError,
    load_data,
    sources as sources_module,
    split_for_search,
)
from helpers.image_files import write_cifar


def everything(images):
    return images.gather(torch.arange(len(images)))


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DSONAS_DATA", raising=False)


def write_idx(path, values, pack=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if pack else content)


def write_fashion_mnist(folder, pack=True):
    suffix = ".gz" if pack else ""
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", pixels, pack)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10, pack)


def test_settings_that_change_nothing_are_said(tmp_path, caplog):
    write_fashion_mnist(tmp_path)
    load_data(DataConfig(name=f"fashion-mnist:{tmp_path}"))
    load_data(DataConfig(name="digits", test=0.5))
    assert not caplog.records
    load_data(DataConfig(name=f"fashion-mnist:{tmp_path}", test=0.5, fit="crop:0.875"))
    assert "data.test 0.5 changes nothing: fashion-mnist has a test part of its own" in caplog.text
    assert "data.fit crop:0.875 changes nothing: it is for folders and shards" in caplog.text


def test_digits_are_scaled_exactly():
    from sklearn.datasets import load_digits

    data = load_data(DataConfig())
    assert (data.num_classes, data.input_channels, data.image_size) == (10, 1, 8)
    own = np.asarray(load_digits(return_X_y=True)[0])
    ours = torch.cat([everything(data.train), everything(data.test)])
    assert sorted(ours.numpy().flatten().tolist()) == sorted(
        np.rint(own * 255 / 16).astype(int).flatten().tolist()
    )
    augmentation = data.train_augmentation
    assert (augmentation.crop_padding, augmentation.flip) == (1, False)


def test_held_out_digits_are_the_same_for_every_seed_and_version():
    data = [load_data(DataConfig(), seed=seed) for seed in (0, 1)]
    assert torch.equal(everything(data[0].test), everything(data[1].test))
    digest = hashlib.sha256(everything(data[0].test).numpy().tobytes()).hexdigest()
    assert digest[:16] == "32c1f3c217503d37"
    shares = torch.bincount(data[0].test.labels) / torch.bincount(data[0].train.labels)
    assert bool(((shares - 0.25).abs() < 0.01).all())


def test_digits_statistics_come_from_the_training_part():
    data = load_data(DataConfig())
    values = everything(data.train).double() / 255
    assert data.mean[0] == pytest.approx(float(values.mean()), abs=1e-9)
    assert data.std[0] == pytest.approx(float(values.std(correction=0)), abs=1e-9)


def test_search_parts():
    train = load_data(DataConfig()).train
    weights, scaling = split_for_search(train, 0.2, seed=1)
    assert (len(weights), len(scaling)) == (1150, 288)
    assert split_for_search(train, 0, seed=1) == (train, train)


def test_subsets_are_stratified_and_test_does_not_depend_on_the_seed():
    config = DataConfig(max_train_images=50, max_test_images=20)
    one, other = load_data(config, seed=0), load_data(config, seed=1)
    assert torch.bincount(one.train.labels, minlength=10).min() >= 4
    assert len(one.train) == 50
    assert len(one.test) == 20
    assert torch.equal(everything(one.test), everything(other.test))
    assert not torch.equal(everything(one.train), everything(other.train))
    assert torch.equal(everything(one.train), everything(load_data(config, seed=0).train))


def test_fewer_training_images_than_classes_is_an_error():
    with pytest.raises(DataError, match=r"got 9 for 10 classes.*max_train_images 9"):
        load_data(DataConfig(max_train_images=9))


def test_augmentation_settings_override_the_defaults():
    config = DataConfig(flip=True, cutout=5)
    data = load_data(config)
    augmentation = data.train_augmentation
    assert (augmentation.crop_padding, augmentation.flip, augmentation.cutout) == (1, True, 5)
    assert (data.search_augmentation.crop_padding, data.search_augmentation.cutout) == (1, 0)


def test_resized_digits():
    data = load_data(DataConfig(image_size=16))
    assert data.train.image_shape == (1, 16, 16)
    assert data.train_augmentation.crop_padding == 2


def test_resizing_beyond_the_memory_limit_is_an_error(monkeypatch):
    monkeypatch.setattr(sources_module, "MEMORY_LIMIT", 1000)
    with pytest.raises(DataError, match=r"1840128 bytes, more than 1000: lower data\.image_size"):
        load_data(DataConfig(image_size=32))


def test_grey_data_are_refused_where_rgb_is_demanded():
    with pytest.raises(DataError, match=r"digits is grey.*use --data.color auto"):
        load_data(DataConfig(color="rgb"))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist_layouts(tmp_path, pack, place):
    write_fashion_mnist(tmp_path / place, pack)
    data = load_data(DataConfig(name=f"fashion-mnist:{tmp_path}"))
    assert (len(data.train), len(data.test), data.num_classes) == (30, 20, 10)
    assert data.train.image_shape == (1, 28, 28)
    assert data.class_names[9] == "Ankle boot"
    assert (data.mean, data.std) == ((0.2860,), (0.3530,))
    expected = np.random.default_rng(30).integers(0, 256, (30, 28, 28))
    assert np.array_equal(everything(data.train)[:, 0].numpy(), expected)
    assert data.train.labels[:11].tolist() == [*range(10), 0]
    assert data.train_augmentation.crop_padding == 2
    assert data.train_augmentation.flip


@pytest.mark.parametrize("use_environment", [True, False])
def test_fashion_mnist_from_environment_or_cache(tmp_path, monkeypatch, use_environment):
    folder = tmp_path / "elsewhere" if use_environment else tmp_path / "home" / ".cache" / "dsonas"
    if use_environment:
        monkeypatch.setenv("DSONAS_DATA", str(folder))
    write_fashion_mnist(folder)
    assert len(load_data(DataConfig(name="fashion-mnist")).train) == 30


@pytest.mark.skipif(
    not sources_module.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist not installed"
)
def test_fashion_mnist_of_debian():
    data = load_data(DataConfig(name="fashion-mnist"))
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    values = everything(data.train.subset(torch.arange(0, 60_000, 10))).double() / 255
    assert float(values.mean()) == pytest.approx(data.mean[0], abs=0.005)
    assert float(values.std()) == pytest.approx(data.std[0], abs=0.005)


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    for config in (
        DataConfig(name="fashion-mnist"),
        DataConfig(name=f"fashion-mnist:{tmp_path / 'empty'}"),
    ):
        with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as caught:
            load_data(config)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "unpacked short", "not packed", "wrong kind"])
def test_damaged_fashion_mnist_is_named(tmp_path, damage):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = {
        "truncated": path.read_bytes()[:1000],
        "unpacked short": gzip.compress(gzip.decompress(path.read_bytes())[:-1]),
        "not packed": b"<html>not found</html>",
        "wrong kind": (tmp_path / "train-labels-idx1-ubyte.gz").read_bytes(),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz.*download it again"):
        load_data(DataConfig(name=f"fashion-mnist:{tmp_path}"))


def test_fashion_mnist_with_labels_of_another_part(tmp_path):
    write_fashion_mnist(tmp_path)
    other = (tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(other)
    with pytest.raises(DataError, match="30 images but 20 labels"):
        load_data(DataConfig(name=f"fashion-mnist:{tmp_path}"))


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, monkeypatch, classes):
    write_cifar(tmp_path, monkeypatch, classes)
    monkeypatch.setenv("DSONAS_DATA", str(tmp_path))
    data = load_data(DataConfig(name=f"cifar{classes}"))
    assert data.train.image_shape == (3, 32, 32)
    assert data.num_classes == classes
    assert data.class_names[3] == "class 3"
    assert len(data.test) == classes
    first = np.random.default_rng(0).integers(0, 256, (classes, 3072), dtype=np.uint8)
    assert np.array_equal(everything(data.train)[0].numpy(), first[0].reshape(3, 32, 32))
    published = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
    assert data.mean == published[classes]
    assert data.train_augmentation.crop_padding == 4
    assert data.train_augmentation.flip


def test_grey_cifar_has_statistics_of_its_own(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    data = load_data(DataConfig(name=f"cifar10:{tmp_path}", color="grey"))
    assert data.train.image_shape == (1, 32, 32)
    assert len(data.mean) == len(data.std) == 1


@pytest.mark.parametrize("classes", [10, 100])
def test_missing_cifar_says_how_to_get_it(tmp_path, classes):
    config = DataConfig(name=f"cifar{classes}:{tmp_path}")
    with pytest.raises(DataError, match=rf"https://.*cifar-{classes}-python.tar.gz") as caught:
        load_data(config)
    assert str(tmp_path / "cifar-") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["labels", "test"])
def test_a_home_that_nobody_has_is_said(make_folder, place):
    config = DataConfig(name=f"folder:{make_folder(count=4)}", **{place: "~nobody-of-this-name/x"})
    with pytest.raises(DataError, match="~nobody-of-this-name/x"):
        load_data(config)


def test_a_home_of_data_sets_that_nobody_has_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("DSONAS_DATA", "~nobody-of-this-name")
    monkeypatch.setattr(sources_module, "DEBIAN_FASHION_MNIST", tmp_path)  # it may be installed
    with pytest.raises(DataError, match="~nobody-of-this-name"):
        load_data(DataConfig(name="fashion-mnist"))
