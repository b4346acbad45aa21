"""Learning rates against the published schedulers."""

import numpy as np
import pytest

from dsonas.train import schedules
from dsonas.train.schedules import Schedule
from helpers import golden_cases as golden

RATES, META = golden.read("sched")
# Published constants: pi is 3.1415926, and each step of the linear one subtracts 1e-12 as well.
COSINE_PI = 1e-7
LINEAR_STEP = 1e-12


def build(name: str) -> Schedule:
    meta = META[name]
    steps = meta["epoch_size"]
    match name.split("_")[0]:
        case "multi":
            return schedules.multi_step(
                meta["lr"],
                meta["step"],
                steps,
                factor=meta["factor"],
                begin_epoch=meta["begin_epoch"],
            )
        case "cosine":
            return schedules.cosine_restarts(
                meta["lr_max"], meta["lr_min"], meta["lr_t"], steps, factor=meta["lr_multi"]
            )
        case "linear":
            return schedules.linear(
                meta["lr"], meta["lr_max"], meta["warm_epoch"], meta["total_epoch"], steps
            )
    raise AssertionError(f"no schedule is called {name}")


def updates(name: str) -> list[int]:
    """Our number, from 0, of each stored learning rate.

    MXNet numbers the first update 1; the stored series say where they start. Its cosine changes at
    a multiple of the epoch in that numbering, one update early, which we do not copy.
    """
    first = META[name].get("first_num_update", 0)
    offset = 0 if name.startswith("cosine") else 1
    return [max(0, number - offset) for number in range(first, first + len(RATES[name]))]


@pytest.mark.parametrize("name", [name for name in RATES if name[:4] != "poly"])  # unused
def test_every_update_has_the_published_learning_rate(name: str) -> None:
    schedule, stored = build(name), RATES[name]
    found = [schedule(update) for update in updates(name)]
    atol = {"cosine": COSINE_PI * max(stored), "linear": LINEAR_STEP * len(stored)}
    np.testing.assert_allclose(found, stored, rtol=1e-14, atol=atol.get(name, 1e-16))
