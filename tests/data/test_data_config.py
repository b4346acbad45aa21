from pathlib import Path

import pytest

import dsonas.data
from dsonas.data import DataConfig
from dsonas.data.data_config import SOURCE_NAMES
from dsonas.data.loading import SOURCES


def test_every_source_name_has_a_reader():
    assert set(SOURCES) == set(SOURCE_NAMES)


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(name="folder:my/images"),
        DataConfig(name="folder", path="my/images"),
        DataConfig(path="my/images/"),
        DataConfig(name="folder:my/images", path="my/images"),
    ],
)
def test_ways_to_name_a_folder(config):
    assert (config.source, config.root) == ("folder", Path("my/images"))


def test_path_of_a_named_data_set_is_its_root():
    config = DataConfig(name="cifar10", path="~/sets")
    assert (config.source, config.root) == ("cifar10", Path.home() / "sets")


def test_defaults_are_digits_without_a_path():
    assert (DataConfig().source, DataConfig().root) == ("digits", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "mnist"),
        ("name", "folder"),
        ("name", "folder:"),
        ("path", ""),
        ("image_size", 3),
        ("image_size", 32.5),
        ("color", "blue"),
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("test_fraction", float("nan")),
        ("lambda_fraction", -0.1),
        ("lambda_fraction", 1.0),
        ("crop_padding", -1),
        ("cutout", -1),
        ("cutout", None),
        ("workers", -1),
        ("memory_limit", -1),
        ("max_train_images", 0),
        ("max_test_images", 0),
    ],
)
def test_bad_values_are_refused_with_name_value_and_remedy(field, value):
    with pytest.raises(ValueError, match=r"data\.\w+ must be .*, got .*: \w+") as caught:
        DataConfig(**{field: value})
    assert "\n" not in str(caught.value)
    if field != "path":
        assert f"data.{field}" in str(caught.value)
        assert repr(value) in str(caught.value)


def test_two_different_folders_are_refused():
    with pytest.raises(ValueError, match=r"data\.path"):
        DataConfig(name="folder:one", path="two")


def test_edge_values_are_allowed():
    DataConfig(lambda_fraction=0, crop_padding=0, memory_limit=0, image_size=4, max_test_images=1)


def test_package_lists_and_loads_its_names():
    assert dir(dsonas.data) == sorted(dsonas.data.__all__)
    assert all(getattr(dsonas.data, name) is not None for name in dsonas.data.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = dsonas.data.nothing  # pyright: ignore[reportAttributeAccessIssue]
