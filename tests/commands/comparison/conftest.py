"""A study of digits that is tiny but complete."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dsonas.commands.comparison.study import Study, StudyConfig
from dsonas.cost.budgets import Budget
from dsonas.data import DataConfig, ImageData, load_data
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.train.engine import EngineConfig
from dsonas.train.training import TrainConfig

RUN = RunConfig(
    data=DataConfig(name="digits", max_train_images=200, max_test_images=50),
    network=NetworkConfig(levels=2, blocks=(1, 1), channels=4),
    pretrain=PretrainConfig(epochs=2, batch_size=16),
    search=SearchConfig(epochs=4, batch_size=16),
    train=TrainConfig(epochs=2, batch_size=16),
    engine=EngineConfig(threads=1),
)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(RUN.data)


@pytest.fixture(scope="session")
def run_config() -> RunConfig:
    return RUN


@pytest.fixture
def study(digits: ImageData) -> Callable[..., Study]:
    """Make a study; keywords of ``StudyConfig`` override the tiny defaults."""

    def make(**changes: Any) -> Study:
        config = StudyConfig(
            run=RUN,
            budgets=(Budget(macs="30k"), Budget(macs="60k")),
            spaces=("share", "full"),
            seeds=2,
            random=3,
            random_factors=2,
            hand_made=2,
        )
        return Study(replace(config, **changes), digits)

    return make
