"""Made-up runs and data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from dsonas.data import ImageData
from helpers.run_folders import make_data, make_folder

settings.register_profile("report", deadline=None, derandomize=True, database=None)
settings.load_profile("report")


@pytest.fixture
def data() -> ImageData:
    return make_data()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of a finished run."""
    return partial(make_folder, tmp_path)
