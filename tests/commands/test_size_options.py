"""The size of a data set without its images."""

import pytest

from dsonas.commands.size_options import blank_data
from dsonas.data import DataConfig, DataError, load_data


def test_blank_data_have_the_size_of_the_data():
    config = DataConfig(name="digits", max_train_images=300)
    data, blank = load_data(config), blank_data(config)
    assert (len(blank.train), len(blank.test)) == (len(data.train), len(data.test))
    assert (blank.image_size, blank.input_channels) == (data.image_size, data.input_channels)
    assert blank.num_classes == data.num_classes
    assert blank.train_augmentation == data.train_augmentation


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_the_validation_part_is_taken_out_of_training(name, digit_folder):
    place = f"folder:{digit_folder(classes=2, each=20)}" if name == "folder" else name
    config = DataConfig(name=place, val=0.25, image_size=8)
    data, blank = load_data(config), blank_data(config)
    assert blank.summary == data.summary
    stated = blank_data(config, images=100, classes=4)
    assert "75 training, 25 validation and 20 test images" in stated.summary


def test_stated_images_need_their_size_and_classes():
    config = DataConfig(name="folder:nowhere", image_size=32)
    data = blank_data(config, images=1000, classes=7)
    assert (len(data.train), len(data.test), data.num_classes) == (1000, 200, 7)
    with pytest.raises(DataError, match="--classes"):
        blank_data(config, images=1000)
    with pytest.raises(DataError, match="or state --images"):
        blank_data(config)


def test_images_are_not_stored_for_each():
    data = blank_data(DataConfig(name="cifar100"))
    assert (len(data.train), len(data.test), data.num_classes) == (50_000, 10_000, 100)
    assert data.train.image_shape == (3, 32, 32)
    assert data.train._images.numel() < 1_000_000


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"images": 8}, "images must be at least 10, got 8"),
        ({"test_images": 0}, "test-images must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"images": -5}, "images must be at least 10, got -5"),
    ],
)
def test_numbers_that_cannot_be_are_refused(sizes, words):
    with pytest.raises(DataError, match=words):
        blank_data(DataConfig(name="cifar10"), **sizes)
