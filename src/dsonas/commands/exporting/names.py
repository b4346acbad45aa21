"""Names for what stands in the generated source."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable

RESERVED = {
    "CLASS_NAMES", "IMAGE_SIZE", "INPUT_CHANNELS", "Image", "ImageOps", "MEAN", "Network",
    "Path", "Reduction", "STD", "Tensor", "WEIGHTS", "channels", "conv_bn_relu", "conv_relu",
    "load", "main", "max", "nn", "read_image", "relu", "super", "sys", "torch",
}  # fmt: skip


def attribute_name(operation: str, node: int) -> str:
    """The attribute of an operation of a block.

    Example:
        >>> attribute_name("max_pool3x3", 11)
        'max_pool3x3_11'
    """
    return f"{_plain(operation)}_{node}"


def function_names(operations: Iterable[str]) -> dict[str, str]:
    """A function for each operation, none like another or like a name that is taken.

    Example:
        >>> function_names(["max_pool3x3", "load"])
        {'max_pool3x3': 'max_pool3x3', 'load': 'load_'}
    """
    names: dict[str, str] = {}
    for operation in operations:
        name = _plain(operation)
        while _is_taken(name) or name in names.values():
            name += "_"
        names[operation] = name
    return names


def _is_taken(name: str) -> bool:
    is_block = re.fullmatch(r"Block\d*", name) is not None
    return is_block or keyword.iskeyword(name) or name in RESERVED


def _plain(operation: str) -> str:
    """As Python reads the identifier, and without underscores in front, which would mangle it."""
    return unicodedata.normalize("NFKC", operation).lstrip("_") or "operation"
