"""Malformed architecture files: always an ArchitectureError, and it names the key."""

import copy
import json
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.jsonvalues import ArchitectureError
from helpers.builders import random_architecture

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def document() -> dict:
    """Two stages of one block, two levels of two operations (nodes 1 to 4, output 5)."""
    skeleton = Skeleton(blocks=(1, 1), channels=(4, 8))
    return json.loads(Architecture.complete(skeleton, ("a", "b"), 2).to_json())


def changed(path: tuple, value) -> dict:
    value_of = document()
    place = value_of
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return value_of


def removed(path: tuple) -> dict:
    value = document()
    place = value
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return value


def refusal(value) -> str:
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_json(value if isinstance(value, str) else json.dumps(value))
    return str(caught.value)


def test_the_document_itself_is_valid():
    assert Architecture.from_json(json.dumps(document())).num_live == 2 * 10 + 2


KEYS = "format", "version", "skeleton", "operations", "num_levels", "blocks", "reductions"
SKELETON_KEYS = "stem", "input_channels", "image_size", "num_classes", "blocks", "channels"
PATHS = [
    *[(key,) for key in KEYS],
    *[("skeleton", key) for key in SKELETON_KEYS],
    ("blocks", 1, "operations"),
    ("blocks", 0, "output"),
]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_missing_key_is_named(path: tuple):
    assert repr(path[-1]) in refusal(removed(path))


@pytest.mark.parametrize("path", [(), ("skeleton",), ("blocks", 1)], ids=str)
def test_unknown_key_is_named(path: tuple):
    assert "'colour'" in refusal(changed((*path, "colour"), 1))


@pytest.mark.parametrize("path", [*PATHS, ("blocks", 0), ("reductions", 0)], ids=str)
@pytest.mark.parametrize("value", [None, True, -1, 0, 1.5, "x", {"x": 1}, [None], [[]]], ids=repr)
def test_wrong_type_or_range_is_named(path: tuple, value):
    name = next(step for step in reversed(path) if isinstance(step, str))
    assert name in refusal(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("format",), "other", "format"),
        (("version",), 2, "version"),
        (("version",), True, "version"),
        (("version",), 1.0, "version"),
        (("skeleton", "stem"), "resnet", "stem"),
        (("skeleton", "num_classes"), 1, "num_classes"),
        (("skeleton", "channels"), [4], "channels"),
        (("skeleton", "channels"), [4, 0], "channels[1]"),
        (("skeleton", "blocks"), [1, 2], "blocks"),
        (("skeleton", "blocks"), [], "blocks"),
        (("operations",), ["a"], "blocks[0]"),
        (("operations",), ["a", 1], "operations[1]"),
        (("num_levels",), 1, "blocks[0]"),
        (("num_levels",), 10**5, "num_levels"),
        (("num_levels",), 10**12, "num_levels"),
        (("blocks",), [], "blocks"),
        (("blocks", 0, "output"), [9], "blocks[0]"),
        (("blocks", 0, "output"), [0], "blocks[0].output"),
        (("blocks", 1, "output"), [1, 1], "blocks[1].output"),
        (("blocks", 0, "operations", "3"), [4], "blocks[0]"),
        (("blocks", 0, "operations", "3"), [3], "blocks[0]"),
        (("blocks", 0, "operations", "3"), [], "blocks[0]"),
        (("blocks", 0, "operations", "3"), [0, 0], "blocks[0].operations.3"),
        (("blocks", 0, "operations", "3"), ["0"], "blocks[0].operations.3"),
        (("blocks", 0, "operations", "5"), [0], "blocks[0].operations.5"),
        (("blocks", 0, "operations", "0"), [0], "blocks[0].operations.0"),
        (("blocks", 0, "operations", "x"), [0], "blocks[0].operations.x"),
        (("blocks", 0, "operations", "-1"), [0], "blocks[0].operations.-1"),
        (("blocks", 0, "operations", "03"), [0], "blocks[0].operations.03"),
        (("blocks", 0, "operations", "9" * 5000), [0], "blocks[0].operations"),
        (("reductions",), [], "reductions"),
        (("reductions", 0), [], "reduction"),
        (("reductions", 0), ["conv7x7"], "reductions[0]"),
        (("reductions", 0), ["conv1x1", "conv1x1"], "reductions[0]"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(path: tuple, value, name: str):
    assert name in refusal(changed(path, value))


def test_connections_to_operations_that_are_not_kept_are_refused():
    value = document()
    del value["blocks"][0]["operations"]["3"]
    assert "blocks[0]" in refusal(value)
    value = document()
    value["blocks"][0] = {"operations": {"1": [0], "2": [0], "3": [1]}, "output": [1, 2]}
    assert "blocks[0]" in refusal(value)


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "[1,", "nul", "\ufeff{}", "1" * 5000, '{"format": ' + "1" * 5000 + "}"],
    ids=lambda text: repr(text[:12]),
)
def test_text_that_is_not_json_is_refused(text: str):
    refusal(text)


@pytest.mark.parametrize("depth", [*range(900, 1010, 3), 100_000])
@pytest.mark.parametrize("around", ["{}", '{{"format": {}}}'])
def test_deep_nesting_is_refused(depth: int, around: str):
    refusal(around.format("[" * depth + "]" * depth))


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_deep_nesting_in_a_key_is_refused(depth: int):
    text = json.dumps(changed(("num_levels",), "DEEP"))
    refusal(text.replace('"DEEP"', "[" * depth + "]" * depth))


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    path = tmp_path / "net.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ArchitectureError, match=r"net\.json"):
        Architecture.load(path)
    path.write_text("{}")
    with pytest.raises(ArchitectureError, match=r"net\.json.*format"):
        Architecture.load(path)


@settings(max_examples=200)
@given(json_values)
def test_any_json_value_is_refused_cleanly(value):
    refusal(value)


def places(value, path=()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


def accepted_or_refused_cleanly(value) -> None:
    """What is accepted must be a value that round-trips; anything else is ArchitectureError."""
    try:
        architecture = Architecture.from_json(json.dumps(value))
    except ArchitectureError:
        return
    assert json.loads(architecture.to_json()) == normalised(value)


def normalised(value: dict) -> dict:
    """Sources and reductions may be listed in any order."""
    value = copy.deepcopy(value)
    for block in value["blocks"]:
        block["output"].sort()
        for sources in block["operations"].values():
            sources.sort()
    for names in value["reductions"]:
        names.sort()
    return value


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.data())
def test_any_single_change_is_refused_cleanly_or_means_what_it_says(seed: int, data):
    value = json.loads(random_architecture(Random(seed)).to_json())
    *parents, last = data.draw(st.sampled_from(places(value)))
    place = value
    for step in parents:
        place = place[step]
    kind = data.draw(st.sampled_from(["remove", "replace", "insert"]))
    if kind == "remove":
        del place[last]
        if last == "sharing":  # files of version 0.1 have none
            Architecture.from_json(json.dumps(value))
            return
    elif kind == "replace":
        place[last] = data.draw(json_values | st.integers(0, 9))
    elif isinstance(place, dict):
        place[data.draw(st.text(max_size=3) | st.sampled_from("123456789"))] = place[last]
    else:
        place.insert(0, data.draw(json_values | st.integers(0, 9)))
    accepted_or_refused_cleanly(value)
