"""Properties of the learning-rate schedules."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from dsonas.train import schedules
from dsonas.train.schedules import Schedule

ALL: dict[str, Schedule] = {
    "constant": schedules.constant(0.1),
    "multi_step": schedules.multi_step(0.1, [2, 5], 7),
    "cosine": schedules.cosine(0.1, 0.001, 60, 5),
    "cosine_restarts": schedules.cosine_restarts(0.1, 0.001, 2, 7, num_epochs=6),
    "linear": schedules.linear(0.1, 0.5, 2, 8, 7),
}


@pytest.mark.parametrize("name", ALL)
def test_no_state(name: str) -> None:
    schedule = ALL[name]
    forwards = [schedule(update) for update in range(80)]
    backwards = [schedule(update) for update in reversed(range(80))]
    assert forwards == backwards[::-1]
    assert all(rate >= 0 for rate in forwards)
    assert forwards[0] > 0


def test_multi_step_changes_at_the_first_update_of_an_epoch() -> None:
    schedule = schedules.multi_step(0.1, [3, 4], 10, factor=0.5)
    assert [schedule(u) for u in (0, 29, 30, 39, 40, 1000)] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_multi_step_resumed_counts_from_the_begin_epoch() -> None:
    whole = schedules.multi_step(0.1, [3, 6], 10)
    rest = schedules.multi_step(whole(40), [3, 6], 10, begin_epoch=4)
    assert [rest(u) for u in range(60)] == pytest.approx([whole(40 + u) for u in range(60)])


@given(
    lr_max=st.floats(1e-3, 10),
    ratio=st.floats(0, 1),
    total=st.integers(2, 200),
    share=st.floats(0, 0.9),
)
def test_cosine_rises_then_falls_between_its_bounds(
    lr_max: float, ratio: float, total: int, share: float
) -> None:
    warmup = min(int(share * total), total - 2)
    schedule = schedules.cosine(lr_max, ratio * lr_max, total, warmup)
    rates = [schedule(update) for update in range(total + 3)]
    rounding = 1e-12 * lr_max
    assert all(a <= b + rounding for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b - rounding for a, b in pairwise(rates[warmup:]))
    assert max(rates) == pytest.approx(lr_max)
    assert rates[warmup] == pytest.approx(lr_max)
    assert rates[total - 1 :] == pytest.approx([ratio * lr_max] * 4)


def test_cosine_of_one_update() -> None:
    assert schedules.cosine(0.1, 0.0, 1)(0) == 0.1


def test_restarts_double_and_never_begin_after_the_plan() -> None:
    schedule = schedules.cosine_restarts(0.05, 1e-4, 10, 390, num_epochs=630)
    starts = [e for e in range(700) if schedule(e * 390) == 0.05]
    assert starts == [0, 10, 30, 70, 150, 310]
    assert {schedule(u) for u in range(629 * 390, 632 * 390)} == {schedule(629 * 390)}
    assert schedules.cosine_restarts(0.05, 1e-4, 10, 390)(630 * 390) == 0.05


def test_warm_up_to_the_top_then_down_to_zero() -> None:
    schedule = schedules.linear(0.1, 0.5, 5, 20, 100)
    rates = [schedule(update) for update in range(2000)]
    top = rates.index(max(rates))
    assert 498 <= top <= 499
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(0.5, abs=1e-3)
    assert rates[-1] == 0 == schedule(5000)
