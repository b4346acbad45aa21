"""Random inputs for ``fuzz.py``: damaged bytes and texts, wrong values, real files."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

SPECIAL_NUMBERS = (
    0, -1, 1, 2, 3, 8, 0.5, 1e-9, 1e9, 1e308, -0.0, 2**31, 2**63, 10**30, float("nan"),
    float("inf"), float("-inf"),
)  # fmt: skip
SPECIAL_TEXTS = (
    "", " ", "digits", "folder", "folder:images", "folder:", "share", "full", "cosine", "linear",
    "restarts", "cifar", "imagenet", "auto", "cpu", "cuda", "bfloat16", "grey", "rgb", "null",
    "true", "1.5M", "1e999", "nan", "[1,", "{", "[1,1]", "[[1]]", "0x10", "1_000", "'", '"', "é",
    "!!python/object/apply:os.system [x]", "&a [*a]", "*a", "- 1", "a: 1", "%", "#", "--", "-1",
)  # fmt: skip
SMALL = st.sampled_from("abé01.,:[]{}-_ '\"\n")  # nothing that leads out of the folder

plain_values = st.one_of(
    st.sampled_from(SPECIAL_NUMBERS),
    st.sampled_from(SPECIAL_TEXTS),
    st.integers(-3, 12),
    st.floats(-2, 2),
    st.booleans(),
    st.none(),
    st.text(SMALL, max_size=8),
)
values = st.recursive(
    plain_values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(SMALL, max_size=4), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def damaged_bytes(draw: Callable[..., Any], bases: Sequence[bytes]) -> bytes:
    """Real content with a few edits: bytes set, put in, left out, repeated; or cut off."""
    content = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.integers(1, 16))
        edit = draw(st.sampled_from(("set", "put in", "leave out", "repeat", "cut off")))
        if edit == "set":
            content[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif edit == "put in":
            content[at:at] = draw(st.binary(min_size=1, max_size=size))
        elif edit == "leave out":
            del content[at : at + size]
        elif edit == "repeat":
            content[at:at] = content[at : at + size] * draw(st.integers(1, 50))
        else:
            del content[at:]
    return bytes(content)


@st.composite
def damaged_text(draw: Callable[..., Any], bases: Sequence[str]) -> str:
    """Real text with a few edits."""
    text = draw(st.sampled_from(bases))
    for _ in range(draw(st.integers(1, 5))):
        at, size = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        new = draw(st.one_of(st.text(SMALL, max_size=6), plain_values.map(str)))
        text = text[:at] + new + text[at + size :]
    return text


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside nested dicts and lists."""
    items = list(value.items()) if isinstance(value, dict) else []
    items += list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        yield value, key
        yield from places(inner)


@st.composite
def changed_value(
    draw: Callable[..., Any], bases: Sequence[Any], others: st.SearchStrategy[Any] = values
) -> Any:
    """A nested value in which a few parts are others, or missing, or twice there."""
    value = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        edit = draw(st.sampled_from(("change", "change", "leave out", "twice")))
        if edit == "leave out":
            del container[key]
        elif edit == "twice" and isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[key] = draw(others)
    return value


tensors = st.one_of(
    values,
    st.lists(st.integers(0, 5), max_size=3).map(torch.zeros),
    st.sampled_from([torch.tensor(float("nan")), torch.ones(3, dtype=torch.int64)]),
)


@st.composite
def settings_text(draw: Callable[..., Any], keys: Sequence[str], bases: Sequence[str]) -> str:
    """A YAML file: wrong values for real options, or a real file with edits."""
    if draw(st.booleans()):
        return draw(damaged_text(bases))
    nested: dict[str, Any] = {}
    for key, value in draw(st.dictionaries(st.sampled_from(keys), values, max_size=5)).items():
        group, dot, name = key.partition(".")
        if dot and isinstance(nested.setdefault(group, {}), dict):
            nested[group][name] = value
        elif not dot:
            nested[key] = value
    return yaml.safe_dump(nested, sort_keys=False)


@st.composite
def options(draw: Callable[..., Any], keys: Sequence[str]) -> list[str]:
    """Arguments of a command line: real options with wrong values, and tokens out of place."""
    arguments: list[str] = []
    for _ in range(draw(st.integers(1, 5))):
        key = draw(st.sampled_from(keys))
        value = draw(st.one_of(plain_values.map(str), values.map(str)))
        form = draw(st.sampled_from(("apart", "apart", "joined", "misspelt", "alone", "stray")))
        arguments += {
            "apart": [f"--{key}", value],
            "joined": [f"--{key}={value}"],
            "misspelt": [f"--{key[:-1]}", value],
            "alone": [f"--{key}"],
            "stray": [value],
        }[form]
    return arguments


def image_files() -> list[tuple[str, bytes]]:
    """One small picture in many formats and modes, as (suffix, content)."""
    pixels = np.arange(20 * 24 * 4, dtype=np.uint8).reshape(20, 24, 4)
    whole = Image.fromarray(pixels)
    deep = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (".png", whole, {}), (".png", whole.convert("L"), {}), (".png", deep, {}),
        (".png", whole.convert("P"), {"transparency": 3}), (".png", whole.convert("1"), {}),
        (".jpg", whole.convert("RGB"), {"exif": exif}), (".jpg", whole.convert("L"), {}),
        (".jpg", whole.convert("RGB"), {"progressive": True}),
        (".jpg", whole.convert("CMYK"), {}), (".gif", whole.convert("P"), {}),
        (".bmp", whole.convert("RGB"), {}), (".ppm", whole.convert("RGB"), {}),
        (".tif", whole.convert("RGB"), {}), (".tif", deep, {"compression": "tiff_lzw"}),
        (".webp", whole.convert("RGB"), {}),
    ]  # fmt: skip
    found = []
    for suffix, image, how in kinds:
        buffer = io.BytesIO()
        name = {"jpg": "jpeg", "tif": "tiff"}.get(suffix[1:], suffix[1:])
        image.save(buffer, format=name, **how)
        found.append((suffix, buffer.getvalue()))
    return found
