"""The size of a data set without its images."""

import pytest

from dsonas.commands.planning import find_shape
from dsonas.data import DataConfig, DataError, load_data


def test_published_sizes_are_those_of_the_data():
    data = load_data(DataConfig(name="digits"))
    shape = find_shape(DataConfig(name="digits"))
    assert (shape.num_train, shape.num_test) == (len(data.train), len(data.test))
    assert (shape.image_size, shape.input_channels) == (data.image_size, data.input_channels)
    assert shape.num_classes == data.num_classes


def test_stated_images_need_their_size_and_classes():
    config = DataConfig(name="folder:nowhere", image_size=32)
    shape = find_shape(config, images=1000, classes=7)
    assert (shape.num_train, shape.num_test, shape.num_classes) == (1000, 200, 7)
    with pytest.raises(DataError, match="--classes"):
        find_shape(config, images=1000)
    with pytest.raises(DataError, match="or state --images"):
        find_shape(config)


def test_blank_images_have_the_shape_and_are_not_stored_for_each():
    shape = find_shape(DataConfig(name="cifar100"))
    data = shape.blank(DataConfig(name="cifar100"))
    assert (len(data.train), len(data.test), data.num_classes) == (50_000, 10_000, 100)
    assert data.train.image_shape == (3, 32, 32)
    assert data.train._images.numel() < 1_000_000
