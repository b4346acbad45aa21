import subprocess
import sys

import numpy as np
import pytest

from dsonas._utils import derive_seed


def test_values_are_stable_across_machines_and_versions():
    assert derive_seed(0, "order", 3) == 6254814875441857239
    assert derive_seed(0) == 6197007067532723406


def test_every_part_and_its_type_matters():
    variants = [(0,), (1,), (0, 1), (0, "1"), (0, 1, 2), (0, 12), (0, "1", "2"), (0, "12"), (0, -1)]
    assert len({derive_seed(*variant) for variant in variants}) == len(variants)


def test_range_suits_torch_and_numpy():
    seeds = [derive_seed(7, number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_numpy_integers_equal_plain_ones():
    assert derive_seed(3, np.int64(4)) == derive_seed(3, 4)  # pyright: ignore[reportArgumentType]


def test_other_types_are_refused():
    with pytest.raises(TypeError):
        derive_seed(0, 1.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("module", ["dsonas._utils", "dsonas.data.data_config", "dsonas.data"])
def test_import_does_not_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
