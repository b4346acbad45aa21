"""What a set of test errors says: spread, difference, significance, rank correlation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

Errors = Sequence[float]
RESAMPLES = 99_999  # all regroupings of up to 5 and 20 values, or 8 and 10


@dataclass(frozen=True)
class Summary:
    """Test errors of networks of one kind, in percent.

    Args:
        mean: over architectures, each the mean of its trainings.
        std: standard deviation between architectures (n - 1); None for a single one.
        best: lowest error of a single training; chosen on the test images, so for information.
        num_values: independent values.
        num_trainings: trained networks.
    """

    mean: float
    std: float | None
    best: float
    num_values: int
    num_trainings: int


def summarise(trainings: Sequence[Errors]) -> Summary | None:
    """Summarise test errors.

    Args:
        trainings: for each architecture the errors of its trainings, in percent.

    Returns:
        The summary; None without any error.

    Example:
        >>> summarise([[8.0, 10.0], [11.0, 11.0]])
        Summary(mean=10.0, std=1.4142135623730951, best=8.0, num_values=2, num_trainings=4)
    """
    units = means(trainings)
    if not units:
        return None
    every = [error for errors in trainings for error in errors]
    spread = stdev(units) if len(units) > 1 else None
    return Summary(fmean(units), spread, min(every), len(units), len(every))


def means(trainings: Sequence[Errors]) -> list[float]:
    """The mean of each architecture that has been trained: the independent values of a test."""
    return [fmean(errors) for errors in trainings if errors]


def relative_error_reduction(ours: Errors, others: Errors) -> float | None:
    """The share of the others' mean error that is avoided; 0.1 is 10 %. None without values.

    Example:
        >>> round(relative_error_reduction([2.84], [3.58]), 3)
        0.207
    """
    if not ours or not others or fmean(others) == 0:
        return None
    return 1 - fmean(ours) / fmean(others)


def welch_p(ours: Errors, others: Errors) -> float | None:
    """Two-sided p-value of Welch's t-test: equal means, variances free.

    Returns:
        None if a side has fewer than two values, or nothing varies.
    """
    from scipy import stats  # takes half a second

    if min(len(ours), len(others)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all the same
        return _number(stats.ttest_ind(ours, others, equal_var=False).pvalue)  # pyright: ignore


def permutation_p(ours: Errors, others: Errors, seed: int = 0) -> float | None:
    """Two-sided p-value of the permutation test on Welch's statistic.

    The statistic is studentised, so that the test stays right when the two sides vary differently.
    All regroupings are taken if there are at most ``RESAMPLES``, otherwise so many random ones.

    Args:
        ours: errors of one side.
        others: errors of the other side.
        seed: of the random regroupings.

    Returns:
        None if a side has fewer than two values.
    """
    from scipy import stats

    if min(len(ours), len(others)) < 2:
        return None
    result = stats.permutation_test(
        (ours, others),
        _absolute_statistic,
        permutation_type="independent",
        alternative="greater",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=10_000,
        rng=np.random.default_rng(seed),
    )
    return _number(float(result.pvalue))


def welch_statistic(ours: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
    """Difference of the means over its standard error; infinite if there is no spread."""
    difference = np.mean(ours, axis) - np.mean(others, axis)
    variance = sum(np.var(x, axis, ddof=1) / np.shape(x)[axis] for x in (ours, others))
    # differences of rounding size are none
    difference = np.where(np.abs(difference) < 1e-12, 0.0, difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / np.sqrt(variance))


def _absolute_statistic(ours: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
    # an infinite statistic would count as larger than itself in a permutation test
    return np.minimum(np.abs(welch_statistic(ours, others, axis)), 1e12)


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b of two rankings, its two-sided p-value, and the number of pairs ranked."""

    tau: float
    p_value: float
    num_architectures: int


def rank_correlation(first: Errors, second: Errors) -> RankCorrelation | None:
    """How well one set of errors ranks another, item by item.

    Returns:
        None below three items, or if one side is constant.

    Example:
        >>> rank_correlation([1, 2, 3, 4], [5, 6, 8, 7]).tau
        0.6666666666666669
    """
    from scipy import stats

    if len(first) < 3:
        return None
    found = stats.kendalltau(first, second)
    tau, p_value = _number(found.statistic), _number(found.pvalue)  # pyright: ignore
    return None if tau is None or p_value is None else RankCorrelation(tau, p_value, len(first))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
