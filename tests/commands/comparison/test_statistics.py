"""The statistics against their definitions and against scipy."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from dsonas.commands.comparison.results import (
    absolute_t,
    means,
    permutation_p,
    rank_correlation,
    relative_error_reduction,
    summarise,
    welch_p,
)

ERRORS = st.lists(st.floats(1, 20).map(lambda x: round(x, 2)), min_size=2, max_size=6)
OURS, OTHERS = [8.1, 8.4, 7.9, 8.2, 8.0], [9.1, 8.9, 9.4, 9.0, 8.8, 9.6]


def test_a_summary_takes_architectures_as_values():
    summary = summarise([[8.0, 10.0], [11.0], [], [12.0, 12.0, 12.0]])
    assert summary is not None
    assert (summary["mean"], summary["best"]) == (pytest.approx((9 + 11 + 12) / 3), 8.0)
    assert summary["std"] == pytest.approx(np.std([9, 11, 12], ddof=1))
    assert (summary["num_values"], summary["num_trainings"]) == (3, 6)
    assert means([[8.0, 10.0], []]) == [9.0]
    assert summarise([]) is None
    alone = summarise([[3.0]])
    assert alone is not None
    assert alone["std"] is None


def test_the_reduction_of_the_paper():
    assert relative_error_reduction([2.84], [3.58]) == pytest.approx(0.74 / 3.58)
    assert relative_error_reduction([], [3.58]) is None
    assert relative_error_reduction([1.0], [0.0]) is None


@settings(max_examples=30)
@given(ours=ERRORS, others=ERRORS)
def test_welch_follows_its_formula(ours, others):
    a, b = np.var(ours, ddof=1) / len(ours), np.var(others, ddof=1) / len(others)
    if a + b < 1e-9:
        return
    t = (np.mean(ours) - np.mean(others)) / math.sqrt(a + b)
    df = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(others) - 1))
    assert welch_p(ours, others) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-4, abs=1e-6)


def test_the_permutation_test_counts_all_regroupings():
    pool = np.array(OURS + OTHERS)
    observed = absolute_t(np.array(OURS), np.array(OTHERS))
    chosen = list(combinations(range(len(pool)), len(OURS)))
    larger = 0
    for indices in chosen:
        mask = np.zeros(len(pool), bool)
        mask[list(indices)] = True
        larger += absolute_t(pool[mask], pool[~mask]) >= observed * (1 - 1e-9)
    assert permutation_p(OURS, OTHERS) == pytest.approx(larger / len(chosen))


def test_both_tests_see_a_difference_and_its_absence():
    for test in (welch_p, permutation_p):
        apart, alike = test(OURS, OTHERS), test(OURS, OURS[::-1])
        assert apart is not None
        assert apart < 0.01
        assert alike is not None
        assert alike > 0.9
        assert test(OURS, OTHERS) == test(OURS, OTHERS)
        assert test([1.0], OTHERS) is None


def test_values_that_are_all_the_same_are_no_evidence():
    assert welch_p([5.0, 5.0], [5.0, 5.0]) is None
    assert permutation_p([5.0, 5.0], [5.0, 5.0, 5.0]) == 1.0


def test_ties_without_any_spread_give_the_least_exact_p_value():
    assert permutation_p([1.11, 1.11], [1.39, 1.39]) == pytest.approx(1 / 3)


def test_rank_correlation_is_between_opposite_and_equal():
    errors = [3.0, 1.0, 2.0, 5.0, 4.0]
    for other, tau in ((errors, 1.0), ([-e for e in errors], -1.0)):
        found = rank_correlation(errors, other)
        assert found is not None
        assert found["tau"] == pytest.approx(tau)
        assert found["num_architectures"] == 5
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
