"""Settings and numbers that must be refused in words, at once rather than hours later.

The seed of null was found by ``benchmarks/fuzz.py``, the others while it was written. What it found
in checkpoints is in ``tests/commands/test_faults.py``.
"""

import json
import math
import re
from dataclasses import fields

import pytest

from dsonas.data import DataConfig
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.jsonvalues import ArchitectureError
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.train.engine import EngineConfig
from dsonas.train.training import TrainConfig

CONFIGS = {
    "data": DataConfig,
    "pretrain": PretrainConfig,
    "search": SearchConfig,
    "train": TrainConfig,
    "engine": EngineConfig,
}
FLOATS = [
    (group, entry.name)
    for group, config in CONFIGS.items()
    for entry in fields(config)
    if re.match("float|.*Float|Share|HalfOpen", str(entry.type))
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("group", "name"), FLOATS)
def test_every_number_of_a_configuration_is_finite(group, name, value):
    with pytest.raises(ValueError, match=rf"{group}.{name} must be a .*number.*, got"):
        CONFIGS[group](**{name: value})


def test_a_seed_of_null_is_refused():
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got None"):
        RunConfig(seed=None)  # pyright: ignore[reportArgumentType]


def test_more_threads_than_a_system_can_have_are_refused():
    with pytest.raises(ValueError, match=r"engine.threads must be .* <= 1024 or null, got 1000000"):
        EngineConfig(threads=10**6)


def test_a_supernet_that_its_own_file_could_not_hold_is_refused():
    with pytest.raises(ValueError, match=r"network.levels times the operations must be at most"):
        NetworkConfig(levels=10**6)
    NetworkConfig(levels=1000, operations=("separable_conv3x3",))


@pytest.mark.parametrize("key", ["input_channels", "image_size", "num_classes"])
def test_numbers_beyond_those_of_a_tensor_are_refused(key):
    with pytest.raises(ArchitectureError, match=rf"{key} must be <= 2147483647, got"):
        Skeleton(**{key: 10**30})
    complete = Architecture.complete(Skeleton(blocks=(1,), channels=(4,)), ("max_pool3x3",), 1)
    value = json.loads(complete.to_json())
    value["skeleton"]["channels"] = [2**31]
    with pytest.raises(ArchitectureError, match="channels must be <= 2147483647"):
        Architecture.from_json(json.dumps(value))


@pytest.mark.parametrize("schedule", ["cosine", "restarts", "linear"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_a_schedule_that_is_accepted_can_be_followed(schedule, epochs):
    config = TrainConfig(schedule=schedule, epochs=epochs, lr=0.5)
    rates = [config.learning_rate(3)(update) for update in range(3 * epochs)]
    assert all(0 <= rate <= 0.5 for rate in rates)
