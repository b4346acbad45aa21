"""The size of a run's data where the images are not here: options that state it."""

from __future__ import annotations

from collections.abc import Mapping

from jsonargparse import Namespace

from dsonas.commands.configuring import OptionParser, UsageError, to_config
from dsonas.commands.planning import DataShape, find_shape
from dsonas.data import PLACED
from dsonas.run import RunConfig

SIZES = {
    "images": "training images, if the data set is not here or will have another size",
    "test-images": "test images (default: data.test_fraction of --images)",
    "classes": "classes",
}
_PLACE = "images"  # of a folder that is stated, not given


def add_options(parser: OptionParser, texts: Mapping[str, str], metavar: str) -> None:
    """Add options as texts, so that a wrong one is refused in our own words."""
    for name, text in texts.items():
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        parser.add_argument(*spellings, type=str, default=None, metavar=metavar, help=text)


def stated_run(values: Namespace) -> tuple[RunConfig, DataShape]:
    """The run, and the size of its data; stated images need no place.

    Args:
        values: of a parser with all groups of a run and with ``SIZES``.

    Raises:
        UsageError: if a size is no whole number.
    """
    images = whole_number(values, "images")
    if images and values.data.name in PLACED:
        values.data.name += f":{_PLACE}"
    config = to_config(values)
    test_images, classes = whole_number(values, "test-images"), whole_number(values, "classes")
    sizes = {"test_images": test_images, "classes": classes}
    return config, find_shape(config.data, images=images, **sizes)


def whole_number(values: Namespace, name: str) -> int | None:
    """The value of an option, None if it is left out.

    Raises:
        UsageError: if it is no whole number of at least 1.
    """
    text = values[name.replace("-", "_")]
    if text is not None and not (text.isdecimal() and int(text)):
        raise UsageError(f"{name} must be a whole number of at least 1, got {text!r}: see --help")
    return None if text is None else int(text)
