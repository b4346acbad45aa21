from pathlib import Path

import pytest

import dsonas.data
from dsonas.data import DataConfig
from dsonas.data.data_config import SOURCE_NAMES
from dsonas.data.loading import SOURCES


def test_every_source_name_has_a_reader():
    assert set(SOURCES) == set(SOURCE_NAMES)


@pytest.mark.parametrize("source", ["folder", "cifar10", "cifar100", "fashion-mnist"])
def test_a_name_says_the_place(source):
    config = DataConfig(name=f"{source}:~/sets")
    assert (config.source, config.root) == (source, Path.home() / "sets")


@pytest.mark.parametrize("name", ["my/images", "."])
def test_a_folder_without_its_prefix_is_suggested_with_it(name):
    with pytest.raises(ValueError, match=f"did you mean folder:{name}?"):
        DataConfig(name=name)


def test_defaults_are_digits_without_a_path():
    assert (DataConfig().source, DataConfig().root) == ("digits", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "mnist"),
        ("name", "folder"),
        ("name", "folder:"),
        ("name", "digits:my/images"),
        ("image_size", 3),
        ("image_size", 32.5),
        ("color", "blue"),
        ("test", 0.0),
        ("test", 1.0),
        ("val", float("nan")),
        ("factor_split", -0.1),
        ("factor_split", 1.0),
        ("augment", "jitter"),
        ("augment", "vary.py"),
        ("cutout", -1),
        ("cutout", None),
        ("workers", -1),
        ("max_train_images", 0),
        ("max_test_images", 0),
    ],
)
def test_bad_values_are_refused_with_name_value_and_remedy(field, value):
    with pytest.raises(ValueError, match=r"data\.\w+ must be .*, got .*: \w+") as caught:
        DataConfig(**{field: value})
    assert "\n" not in str(caught.value)
    assert f"data.{field}" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_edge_values_are_allowed():
    DataConfig(factor_split=0, image_size=4, max_test_images=1)


def test_package_lists_and_loads_its_names():
    assert dir(dsonas.data) == sorted(dsonas.data.__all__)
    assert all(getattr(dsonas.data, name) is not None for name in dsonas.data.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = dsonas.data.nothing  # pyright: ignore[reportAttributeAccessIssue]
