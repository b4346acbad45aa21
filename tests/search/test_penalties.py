"""Penalties follow what a block still costs."""

from dataclasses import replace
from random import Random

import pytest

from dsonas.cost.costs import architecture_cost, operation_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.search.penalties import AdaptiveMacs, Uniform, penalty_of

SKELETON = Skeleton(image_size=8, blocks=(1, 2), channels=(4, 8))
OPERATIONS = ("separable_conv3x3", "max_pool3x3")
WHOLE = Architecture.complete(SKELETON, OPERATIONS, 2)
EMPTY = WHOLE.blocks[0].prune([False] * len(WHOLE.blocks[0].live))
SHARED = replace(WHOLE, sharing="share")
HALF = WHOLE.blocks[0].prune([1 not in pair for pair in WHOLE.blocks[0].connections]).clean()


def values(rows: list[list[float]]) -> list[float]:
    """The one value of each row."""
    assert all(len(set(row)) == 1 for row in rows)
    return [row[0] for row in rows]


@pytest.mark.parametrize(("whole", "sets"), [(SHARED, 1), (WHOLE, 3)])
def test_uniform_is_1_and_a_complete_network_gets_1(whole: Architecture, sets: int):
    empty = replace(whole, blocks=(EMPTY,) * 3)
    assert values(Uniform().weights(whole, empty)) == [1.0] * sets
    found = AdaptiveMacs().weights(whole, whole)
    assert [len(row) for row in found] == [len(EMPTY.live)] * sets
    assert values(found) == pytest.approx([1.0] * sets)
    assert values(AdaptiveMacs().weights(whole, empty)) == [0.0] * sets


def test_adaptive_is_in_proportion_to_the_live_cost():
    """Costs of blocks from differences of whole networks, in which all else is equal."""

    def of_block(graph, place: int) -> int:
        blocks = [EMPTY] * 3
        bare = architecture_cost(replace(WHOLE, blocks=tuple(blocks))).macs
        blocks[place] = graph
        return architecture_cost(replace(WHOLE, blocks=tuple(blocks))).macs - bare

    current = replace(WHOLE, blocks=(HALF, WHOLE.blocks[0], EMPTY))
    shares = [of_block(g, i) / of_block(WHOLE.blocks[0], i) for i, g in enumerate(current.blocks)]
    found = values(AdaptiveMacs().weights(WHOLE, current))
    assert found == pytest.approx(shares)
    assert 0 < shares[0] < 1
    halves = replace(SHARED, blocks=(HALF,) * 3)
    now = sum(of_block(HALF, i) for i in range(3))
    whole = sum(of_block(WHOLE.blocks[0], i) for i in range(3))
    assert values(AdaptiveMacs().weights(SHARED, halves)) == pytest.approx([now / whole])


@pytest.mark.parametrize("seed", range(8))
def test_with_many_channels_adaptive_is_the_published_count_of_units(seed: int):
    """The published code counts units, (n + 1) / (6M + 1): the two separable convolutions of the
    first level, those of later levels that have an input, and the live connections to the output.
    With many channels all of these cost C^2 h w, and what else costs something vanishes.
    """
    names = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")
    levels, rng = 4, Random(seed)
    skeleton = Skeleton(image_size=16, blocks=(1,), channels=(8192,))
    whole = Architecture.complete(skeleton, names, levels)
    graph, density = whole.blocks[0], rng.uniform(0.1, 0.9)
    kept = {node for node in graph.kept_nodes if graph.level(node) > 1 and rng.random() > density}
    live = [target in (graph.output_node, *kept) for _, target in graph.connections]
    current = graph.prune(live).clean()
    kept &= {*current.kept_nodes}
    convolutions = sum(graph.operation(node).startswith("separable") for node in kept)
    outputs = len(current.inputs[graph.output_node])
    published = (2 + convolutions + outputs + 1) / (6 * levels + 1)
    (found,) = values(AdaptiveMacs().weights(whole, replace(whole, blocks=(current,))))
    assert found == pytest.approx(published, abs=1 / (6 * levels + 1))


def test_memory_penalties_are_the_published_constants():
    """At 96 channels and 16x16: separable 3x3 0.986, 5x5 1, pools 0.447, outputs 0.448 or more.

    The published output branch counts one weight per channel; ours counts all of its C.
    """
    names = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")
    skeleton = Skeleton(image_size=16, blocks=(1,), channels=(96,))
    whole = Architecture.complete(skeleton, names, 2, "share")
    graph = whole.blocks[0]
    (row,) = penalty_of("adaptive_memory").weights(whole, whole)
    published = dict(zip(range(5, 9), (0.986, 1.0, 0.447, 0.447), strict=True))
    for value, (_, target) in zip(row, graph.connections, strict=True):
        if target < graph.output_node:
            assert value == pytest.approx(published[target], abs=5e-4)
        else:
            assert value == pytest.approx((2 * 256 + 96) / 1145)


def test_memory_penalties_of_the_full_space_compare_all_blocks():
    rows = penalty_of("adaptive_memory").weights(WHOLE, WHOLE)
    target = WHOLE.blocks[0].target_index[0]
    name = WHOLE.blocks[0].operation(target)
    bytes_ = [operation_cost(name, c, s).memory_bytes for c, s in ((4, 8), (8, 4), (8, 4))]
    assert [row[0] / rows[0][0] for row in rows] == pytest.approx([b / bytes_[0] for b in bytes_])
    assert max(max(row) for row in rows) == pytest.approx(1.0)


def test_the_connection_whose_removal_saves_most_time_is_punished_most():
    def latency(architecture: Architecture) -> float:
        return architecture_cost(architecture).macs

    current = replace(SHARED, blocks=(HALF,) * 3)
    (row,) = penalty_of("adaptive_latency", latency).weights(SHARED, current)
    live = [i for i, alive in enumerate(HALF.live) if alive]
    assert all(row[i] == 1.0 for i in range(len(row)) if i not in live)

    def without(i: int) -> float:
        smaller = HALF.prune([j != i for j in range(len(HALF.live))]).clean()
        return latency(replace(current, blocks=(smaller,) * 3))

    times = {i: without(i) for i in live}
    span = max(times.values()) - min(times.values())
    for i, value in times.items():
        expected = 0.5 + 0.5 * (max(times.values()) - value) / span
        assert row[i] == pytest.approx(expected)


def test_adaptive_latency_needs_a_latency():
    with pytest.raises(ValueError, match="latency must be given"):
        penalty_of("adaptive_latency")
