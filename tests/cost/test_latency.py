"""Latency: measured once per structure, or by any function; every measure can be bounded."""

from random import Random

import pytest

from dsonas.cost.budgets import (
    Budget,
    InfeasibleBudgetError,
    check_reachable,
    exact_measures,
    fit_width,
    measure_all,
)
from dsonas.cost.latency import LatencyMeter
from dsonas.graph.architecture import Skeleton
from dsonas.graph.spaces import cifar_space
from helpers.builders import random_architecture

SKELETON = Skeleton(image_size=8, blocks=(1, 1), channels=(8, 16))


def test_a_structure_is_measured_once_and_dead_parts_do_not_count():
    architecture = random_architecture(Random(0), SKELETON)
    meter = LatencyMeter(min_seconds=0.01)
    assert meter(architecture) == meter(architecture.clean())
    assert len(meter.measured) == 1


def test_a_wide_network_takes_longer():
    architecture = cifar_space(channels=4, blocks=(1, 1)).complete()
    meter = LatencyMeter(min_seconds=0.05)
    assert meter(architecture.with_channels((64, 128))) > meter(architecture)


def test_a_latency_bound_is_met_by_the_width():
    """The latency function stands for any device; here it grows with the channels."""

    def latency(architecture) -> float:
        return sum(architecture.skeleton.channels) / 100

    measures = exact_measures(latency)
    architecture = random_architecture(Random(1), SKELETON)
    budget = Budget(latency_ms=0.5, params="1M")
    found = fit_width(architecture, budget, measures=measures)
    assert 0.45 < latency(found) <= 0.5
    with pytest.raises(InfeasibleBudgetError, match="latency_ms"):
        check_reachable(architecture, Budget(latency_ms=0.001), measures)


def test_every_measure_can_be_bounded_and_the_first_one_leads():
    architecture = cifar_space(channels=16, blocks=(1, 1)).complete()
    measures = exact_measures()
    whole = measure_all(architecture, measures)
    for name in ("macs", "params", "memory_bytes"):
        budget = Budget(**{name: whole[name] / 2})
        found = measure_all(fit_width(architecture, budget), measures)
        assert 0.4 * whole[name] < found[name] <= 0.5 * whole[name]
        assert budget.leading == name
    assert Budget(params=1, latency_ms=2).leading == "latency_ms"
    assert Budget().leading == "macs"
