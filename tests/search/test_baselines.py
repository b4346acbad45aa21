"""Random architectures: valid, reproducible, uniform as promised; hand-made ones: what they are."""

from itertools import islice

import pytest
import torch
from hypothesis import given, strategies as st
from scipy import stats

from dsonas.cost.budgets import Budget, InfeasibleBudgetError, fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.nn.network import build
from dsonas.search.baselines import (
    HAND_MADE,
    RANDOM_KINDS,
    blocks_macs,
    hand_made,
    random_architecture,
    random_architectures,
)

SKELETON = Skeleton(input_channels=1, image_size=8, blocks=(1, 2), channels=(4, 8))
OPERATIONS = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3")


def space(sharing: str = "share", levels: int = 2, operations=OPERATIONS) -> SearchSpace:
    return SearchSpace(skeleton=SKELETON, operations=operations, num_levels=levels, sharing=sharing)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(RANDOM_KINDS),
    sharing=st.sampled_from(("share", "full")),
    levels=st.integers(1, 3),
)
def test_random_architectures_are_valid(seed, kind, sharing, levels):
    where = space(sharing, levels)
    net = random_architecture(where, generator(seed), kind)
    assert net == net.clean() == random_architecture(where, generator(seed), kind)
    assert net.skeleton == where.skeleton
    assert any(graph.kept_nodes for graph in net.blocks)
    assert sharing == "full" or len(set(net.blocks)) == 1
    fitted = fit_width(net, Budget(macs="50k"))
    assert 25_000 < architecture_cost(fitted).macs <= 50_000
    assert fitted.blocks == net.blocks


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_a_share_of_the_cost_is_met(seed, share):
    """Unless one operation less would leave nothing."""
    where = space("full")
    net = random_architecture(where, generator(seed), "cost", share=share)
    whole = blocks_macs(where.complete())
    left = [graph for graph in net.blocks if graph.kept_nodes]
    least = len(left) == 1 and not any(
        left[0].without_node(node).kept_nodes for node in left[0].kept_nodes
    )
    assert blocks_macs(net) <= share * whole or least
    assert all(all(flags) for flags in net.reductions)


def test_every_set_of_connections_is_equally_likely():
    """One level of two operations and a conditioned cleaning leave three equally likely graphs."""
    where = space(levels=1, operations=OPERATIONS[:2])
    drawn = [random_architecture(where, generator(seed)) for seed in range(600)]
    for choices in ([net.blocks[0].live for net in drawn], [net.reductions for net in drawn]):
        counts = [choices.count(value) for value in set(choices)]
        assert len(counts) == 3
        assert stats.chisquare(counts).pvalue > 0.01


def test_connections_are_live_half_of_the_time():
    """The connections into the output are left by cleaning unless their operation is cut off."""
    where = space("full", levels=1)
    nets = [random_architecture(where, generator(seed)) for seed in range(300)]
    live = [flag for net in nets for graph in net.blocks for flag in graph.live]
    assert stats.binomtest(sum(live), len(live), 0.5).pvalue > 0.01


def test_shares_of_the_cost_are_uniform():
    """But for the last removal, which overshoots by less than one operation."""
    where = space(levels=3)
    whole = blocks_macs(where.complete())
    shares = [
        blocks_macs(random_architecture(where, generator(seed), "cost")) / whole
        for seed in range(200)
    ]
    largest_step = 1 / 6  # of nine operations three are pools; a convolution has an output too
    assert stats.kstest(shares, "uniform", alternative="greater").statistic < largest_step
    assert stats.kstest(shares, "uniform", alternative="less").pvalue > 0.01


def test_a_sequence_takes_the_kinds_in_turn_and_begins_alike():
    first = list(islice(random_architectures(space(), 0), 4))
    assert first == list(islice(random_architectures(space(), 0), 6))[:4]
    assert first != list(islice(random_architectures(space(), 1), 4))
    assert len(set(first)) == 4
    only = list(islice(random_architectures(space(), 0, ("cost",)), 2))
    assert only[1] == first[1]
    assert only[0] != first[0]


def test_what_is_not_accepted_is_drawn_anew():
    everything = list(islice(random_architectures(space(), 0), 6))
    limit = sorted(net.num_live for net in everything)[2]
    few = list(islice(random_architectures(space(), 0, accept=lambda n: n.num_live <= limit), 6))
    assert all(net.num_live <= limit for net in few)
    same = [a == b for a, b in zip(few, everything, strict=True)]
    assert same == [net.num_live <= limit for net in everything]


def test_a_budget_that_none_meets_is_refused():
    with pytest.raises(ValueError, match="raise the budget"):
        next(random_architectures(space(levels=1), 0, accept=lambda net: False))


@pytest.mark.parametrize("kind", HAND_MADE)
def test_hand_made_networks_have_the_same_chain_everywhere(kind):
    net = hand_made(space("full"), kind)
    assert net == net.clean()
    assert len(set(net.blocks)) == 1
    graph = net.blocks[0]
    assert [graph.inputs[node] for node in (*graph.kept_nodes, graph.output_node)] == [
        (i,) for i in range(len(graph.kept_nodes) + 1)
    ]
    fitted = fit_width(net, Budget(macs="100k"))
    cost = architecture_cost(fitted)
    network = build(fitted)
    assert sum(p.numel() for p in network.parameters()) == cost.params
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_inverted_bottleneck_expands_sixfold():
    """1x1 to 6 C, 9 weights for each of these, 1x1 back; and the block's own 1x1."""
    net = hand_made(space(), "mobile")
    pixels = (8 * 8, 4 * 4, 4 * 4)
    channels = (4, 8, 8)
    expected = sum(p * (12 * c * c + 54 * c + c * c) for p, c in zip(pixels, channels, strict=True))
    assert blocks_macs(net) == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random_architecture(space(), generator(0), "odd"), "kind must be one of"),
        (lambda: random_architecture(space(), generator(0), "cost", share=2), "share must be"),
        (lambda: hand_made(space(), "odd"), "kind must be one of"),
        (lambda: fit_width(hand_made(space(), "mobile"), Budget(macs=9)), "below the smallest"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert isinstance(caught.value, InfeasibleBudgetError) == ("below" in words)
