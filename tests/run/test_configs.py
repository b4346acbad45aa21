"""Every value out of its range is refused, and the message names the option as a user types it."""

import pytest

from dsonas.graph.spaces import SearchSpace, cifar_space, imagenet_space
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.train.engine import Engine, EngineConfig

NAN = float("nan")
SEARCH = {
    "space": ["both", "", 1],
    "epochs": [0, -1, 1.5, True, None],
    "lr": [0.0, -0.1, NAN, "0.1"],
    "schedule": ["step"],
    "weight_decay": [-1e-9, NAN],
    "batch_size": [1, 0],
    "penalty": [-1e-9, NAN],
    "penalty_kind": ["magic"],
    "rebuild_every": [0],
    "keep_cost": [0.0, -0.5, 1.01, NAN],
    "keep_connections": [0.0, 1.01, NAN, None],
    "hold_from": [0.0, 1.01],
    "normalise": [1, None],
    "recompute": ["yes"],
}
PRETRAIN = {"epochs": [-1], "lr": [0.0, NAN], "batch_size": [1]}
ENGINE = {"precision": ["float16"], "threads": [0, -2]}
CASES = [
    (kind, section, name, value)
    for kind, section, table in (
        (SearchConfig, "search", SEARCH),
        (PretrainConfig, "pretrain", PRETRAIN),
        (EngineConfig, "engine", ENGINE),
    )
    for name, values in table.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "section", "name", "value"), CASES)
def test_values_out_of_range_are_refused_by_name(kind, section: str, name: str, value):
    with pytest.raises(ValueError, match=rf"^{section}\.{name} must be .*got "):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (SearchConfig, SEARCH),
        (PretrainConfig, PRETRAIN),
    ],
)
def test_every_option_has_a_rule(kind, table: dict):
    assert set(kind.__dataclass_fields__) == set(table)


@pytest.mark.parametrize(
    "values",
    [
        {"keep_cost": None, "penalty": 0.0}, {"keep_cost": 1.0, "keep_connections": 1.0},
        {"weight_decay": 0.0}, {"hold_from": 1.0, "rebuild_every": 9},
    ],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_allowed(values: dict):
    config = SearchConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_by_name(device: str):
    with pytest.raises(ValueError, match=rf"engine\.device '{device}' cannot be used here"):
        Engine(EngineConfig(device=device))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sharing": "half"}, "sharing must be one of .*, got 'half'"),
        ({"num_levels": 0}, "needs at least .* one level, got .* and 0"),
        ({"operations": ()}, r"needs at least one operation .*, got \(\)"),
    ],
)
def test_a_space_refuses_by_name(values: dict, told: str):
    with pytest.raises(ValueError, match=told):
        SearchSpace(**values)


@pytest.mark.parametrize("space", [cifar_space, imagenet_space])
@pytest.mark.parametrize("sharing", ["share", "full"])
def test_presets_take_what_they_are_given(space, sharing: str):
    found = space(sharing=sharing, channels=4, blocks=(1, 2), num_classes=7)
    skeleton = found.complete().skeleton
    assert (skeleton.channels, skeleton.blocks, skeleton.num_classes) == ((4, 8), (1, 2), 7)
    assert found.sharing == sharing
    assert (
        found.complete().num_live
        == sum(len(graph.connections) for graph in found.complete().blocks) + 2
    )
