"""Latency: measured once per structure, or looked up in the user's table."""

from dataclasses import replace
from random import Random

import pytest

from core.builders import random_architecture
from dsonas.architecture import Architecture, Skeleton
from dsonas.budgets import Budget, InfeasibleBudgetError, check_reachable, cost_function, fit_width
from dsonas.latency import LatencyMeter, latency_from_table
from dsonas.latency_table import measure_table
from dsonas.spaces import cifar_space

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


def table_of(*places: str) -> dict[str, float]:
    names = ["separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3", "output"]
    return {"base": 0.5, **{f"{name}@{place}": 0.1 for name in names for place in places}}


def test_a_table_is_added_up_and_a_gap_is_named():
    architecture = cifar_space(channels=4, blocks=(1, 1)).complete()
    latency = latency_from_table(table_of("4x32", "8x16"))
    assert latency(architecture) == pytest.approx(0.5 + 2 * 16 * 0.2)
    with pytest.raises(ValueError, match="@8x16"):
        latency_from_table(table_of("4x32"))(architecture)


def test_a_latency_bound_is_met_by_the_width():
    """The latency function stands for any device; here it grows with the channels."""

    def latency(architecture) -> float:
        return sum(architecture.skeleton.channels) / 100

    cost = cost_function(latency)
    architecture = random_architecture(Random(1), SKELETON)
    budget = Budget(latency_ms=0.5, params="1M")
    found = fit_width(architecture, budget, cost=cost)
    assert 0.45 < latency(found) <= 0.5
    with pytest.raises(InfeasibleBudgetError, match="latency_ms"):
        check_reachable(architecture, Budget(latency_ms=0.001), cost)


def test_every_measure_can_be_bounded_and_the_first_one_leads():
    architecture = cifar_space(channels=16, blocks=(1, 1)).complete()
    whole = cost_function()(architecture)
    for name in ("macs", "params", "memory_bytes"):
        budget = Budget(**{name: whole[name] / 2})
        found = cost_function()(fit_width(architecture, budget))
        assert 0.4 * whole[name] < found[name] <= 0.5 * whole[name]
        assert budget.leading == name
    assert Budget(params=1, latency_ms=2).leading == "latency_ms"
    assert Budget().leading == "macs"


def test_a_measured_table_adds_up_to_about_what_the_network_takes():
    space = cifar_space(channels=8, blocks=(1, 1))
    table = measure_table(space.complete(), rounds=5)
    places = ("8x32", "16x16")
    for name in (*space.operations, "add", "output", "block"):
        assert all(table[f"{name}@{place}"] >= 0 for place in places)
    assert len(table) == 1 + len(places) * (len(space.operations) + 3)
    complete, summed = space.complete(), latency_from_table(table)
    assert 1 / 4 < summed(complete) / LatencyMeter()(complete) < 4  # both are measured


def test_what_a_block_and_its_sums_take_counts_if_the_table_says_so():
    architecture = cifar_space(channels=4, blocks=(1,)).complete()
    plain = table_of("4x32")
    graph = architecture.blocks[0]
    extra = sum(len(graph.inputs[node]) - 1 for node in graph.kept_nodes)
    full = {**plain, "add@4x32": 0.01, "block@4x32": 0.5}
    difference = latency_from_table(full)(architecture) - latency_from_table(plain)(architecture)
    assert difference == pytest.approx(0.5 + 0.01 * extra)
    assert latency_from_table(full)(emptied(architecture)) == full["base"]


def emptied(architecture: Architecture) -> Architecture:
    graphs = [graph.prune([False] * len(graph.live)).clean() for graph in architecture.blocks]
    return replace(architecture, blocks=tuple(graphs))
