"""What the scaling factors stand for, and the zeros that are written into them."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import Network
from dsonas.nn.scaling import ScalingFactors
from dsonas.sparse.proximal import ProximalNAG
from helpers.builders import images, random_architecture, randomise, write_zeros

SKELETON = Skeleton(image_size=8, blocks=(1, 2), channels=(4, 8))
OPERATIONS = ("separable_conv3x3", "max_pool3x3")


def complete(sharing: str = "share") -> Architecture:
    return Architecture.complete(SKELETON, OPERATIONS, 2, sharing)


def factors_with(sharing: str, zeros: float, seed: int) -> ScalingFactors:
    scaling = ScalingFactors.ones(complete(sharing))
    generator = torch.Generator().manual_seed(seed)
    for vector in scaling.parameters():
        values = torch.rand(vector.shape, generator=generator)
        vector.data.copy_(torch.where(values < zeros, 0.0, values))
    return scaling


@pytest.mark.parametrize(("sharing", "sets"), [("share", 1), ("full", 3)])
def test_start_values_are_1_where_live(sharing: str, sets: int):
    architecture = random_architecture(Random(3), SKELETON, shared=sharing == "share", density=0.5)
    scaling = ScalingFactors.ones(architecture)
    assert len(scaling.blocks) == sets
    for i, graph in enumerate(architecture.blocks):
        assert scaling.for_block(i).tolist() == [float(alive) for alive in graph.live]
    pairs = zip(scaling.reductions, architecture.reductions, strict=True)
    assert all(vector.tolist() == [float(alive) for alive in live] for vector, live in pairs)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from(["share", "full"]))
def test_architecture_is_what_is_positive_and_live_cleaned(seed, zeros, sharing):
    scaling = factors_with(sharing, zeros, seed)
    supernet = random_architecture(
        Random(seed), SKELETON, shared=sharing == "share",
        operations=OPERATIONS, num_levels=2, density=0.8,
    )  # fmt: skip
    found = scaling.architecture(supernet)
    assert found.clean() == found
    for i, graph in enumerate(supernet.blocks):
        positive = [value > 0 for value in scaling.for_block(i).tolist()]
        assert found.blocks[i] == graph.prune(positive).clean()
    for vector, live, kept in zip(
        scaling.reductions, supernet.reductions, found.reductions, strict=True
    ):
        expected = tuple(a and v > 0 for a, v in zip(live, vector.tolist(), strict=True))
        if any(expected):
            assert kept == expected
        else:
            assert sum(kept) == 1
            assert live[kept.index(True)]


def test_a_reduction_keeps_one_live_convolution_when_both_are_zero():
    scaling = ScalingFactors.ones(complete())
    scaling.reductions[0].data.zero_()
    assert scaling.architecture(complete()).reductions == ((True, False),)
    second = replace(complete(), reductions=((False, True),))
    assert scaling.architecture(second).reductions == ((False, True),)
    scaling.reductions[0].data.copy_(torch.tensor([0.7, 0.0]))
    assert scaling.architecture(second).reductions == ((False, True),)


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_written_zeros_have_no_momentum_and_stay(sharing: str):
    scaling = factors_with(sharing, 0.0, 1)
    groups = [{"params": [vector]} for vector in scaling.parameters()]
    optimizer = ProximalNAG(groups, lr=0.1, penalty=0.01)
    for vector in scaling.parameters():
        vector.grad = torch.full_like(vector, -1.0)
    optimizer.step()
    before = [vector.detach().clone() for vector in scaling.parameters()]
    architecture = random_architecture(
        Random(2), SKELETON, shared=sharing == "share",
        operations=OPERATIONS, num_levels=2, density=0.5,
    )  # fmt: skip
    write_zeros(scaling, architecture, optimizer)
    graphs = architecture.blocks[:1] if sharing == "share" else architecture.blocks
    flags = [*(graph.live for graph in graphs), *architecture.reductions]
    assert not all(all(live) for live in flags)
    for vector, old, live in zip(scaling.parameters(), before, flags, strict=True):
        mask = torch.tensor(live)
        momentum = optimizer.state[vector]["momentum_buffer"]
        assert torch.equal(vector.detach(), torch.where(mask, old, 0.0))
        assert ((momentum != 0) == mask).all()
        vector.grad = torch.zeros_like(vector)
    optimizer.step()
    for vector, live in zip(scaling.parameters(), flags, strict=True):
        assert ((vector > 0) == torch.tensor(live)).all()


def test_zeros_are_written_before_the_first_step_too():
    scaling = ScalingFactors.ones(complete())
    optimizer = ProximalNAG(scaling.parameters())
    empty = [graph.prune([False] * len(graph.live)) for graph in complete().blocks]
    write_zeros(scaling, Architecture(SKELETON, tuple(empty), ((True, False),), "share"), optimizer)
    assert scaling.blocks[0].sum() == 0
    assert scaling.reductions[0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_normalised_factors_have_a_mean_square_of_1(seed: int, sharing: str, float64):
    network = drawn_network(seed, sharing, SKELETON)
    architecture, optimizer = network.architecture, ProximalNAG(network.scaling.parameters())
    old = [vector.detach().clone() for vector in network.scaling.parameters()]
    torch.manual_seed(seed)
    momenta = [torch.randn_like(vector) * (vector > 0) for vector in old]
    for vector, momentum in zip(network.scaling.parameters(), momenta, strict=True):
        optimizer.state[vector]["momentum_buffer"] = momentum.clone()
    network.scaling.normalise(architecture, optimizer)
    for i, graph in enumerate(architecture.blocks):
        values = network.scaling.for_block(i).tolist()
        for target in {pair.target for pair in graph.connections}:
            squares = [
                value**2
                for pair, value, alive in zip(graph.connections, values, graph.live, strict=True)
                if alive and pair.target == target
            ]
            assert not squares or sum(squares) / len(squares) == pytest.approx(1)
    count = len(network.scaling.blocks)
    for vector, start in zip(network.scaling.reductions, old[count:], strict=True):
        assert torch.equal(vector, start)  # their scale is not free
    for vector, start in zip(network.scaling.parameters(), old, strict=True):
        assert ((vector == 0) == (start == 0)).all()


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_momenta_are_scaled_and_lose_what_points_along_the_vector(seed, sharing, float64):
    network = drawn_network(seed, sharing, SKELETON)
    optimizer = ProximalNAG(network.scaling.parameters())
    torch.manual_seed(seed)
    old = [vector.detach().clone() for vector in network.scaling.blocks]
    momenta = [torch.randn_like(vector) * (vector > 0) for vector in old]
    for vector, momentum in zip(network.scaling.blocks, momenta, strict=True):
        optimizer.state[vector]["momentum_buffer"] = momentum.clone()
    network.scaling.normalise(network.architecture, optimizer)
    for place, graph in enumerate(network.architecture.blocks[: len(old)]):
        vector = network.scaling.blocks[place].detach()
        left = optimizer.state[network.scaling.blocks[place]]["momentum_buffer"]
        for target in {pair.target for pair in graph.connections}:
            mine = [
                i
                for i, pair in enumerate(graph.connections)
                if graph.live[i] and pair.target == target
            ]
            if mine:
                assert left[mine] @ vector[mine] == pytest.approx(0, abs=1e-12)
                before = momenta[place][mine] * (vector[mine] / old[place][mine])
                along = before @ vector[mine] / vector[mine].square().sum()
                torch.testing.assert_close(left[mine] + along * vector[mine], before)


def test_a_target_with_one_input_is_not_pulled_down_to_zero(float64):
    """Without gradient, whatever momentum and penalty it has: the scale of its vector is free."""
    graph = complete().blocks[0]
    target = max(pair.target for pair in graph.connections)
    place = next(i for i, pair in enumerate(graph.connections) if pair.target == target)
    only = [i == place for i in range(len(graph.connections))]
    lone = complete().with_cell(0, graph.prune(only))
    scaling = ScalingFactors.ones(lone)
    optimizer = ProximalNAG(scaling.parameters(), lr=0.03, penalty=0.1, momentum=0.9)
    vector = scaling.blocks[0]
    write_zeros(scaling, lone, optimizer)
    vector.grad = torch.zeros_like(vector)
    optimizer.step()
    optimizer.state[vector]["momentum_buffer"][place] = -0.15
    for _ in range(50):
        optimizer.step()
        scaling.normalise(lone, optimizer)
        assert vector[place].item() == pytest.approx(1)


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_the_scale_of_the_factors_of_a_block_is_free(seed: int, sharing: str, float64):
    """Of a reduction block it is not: see the levels that read the next block's input too."""
    network = drawn_network(seed, sharing, Skeleton(image_size=8, blocks=(3,), channels=(4,)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-14
    x, _ = images(network.architecture.skeleton, 8, seed)
    before, old = network(x).detach(), network.scaling.blocks[0].detach().clone()
    network.scaling.normalise(network.architecture)
    assert not torch.allclose(network.scaling.blocks[0].detach(), old, atol=0.01)
    torch.testing.assert_close(network(x).detach(), before, rtol=1e-8, atol=1e-8)


def drawn_network(seed: int, sharing: str, skeleton: Skeleton) -> Network:
    architecture = random_architecture(
        Random(seed), skeleton, shared=sharing == "share",
        operations=OPERATIONS, num_levels=2, density=0.8,
    )  # fmt: skip
    return randomise(Network(architecture, scaled=True), seed).train()


def test_vectors_of_zeros_stay_zeros():
    scaling = ScalingFactors.ones(complete())
    for vector in scaling.parameters():
        vector.data.zero_()
    scaling.normalise(complete())
    assert not any(vector.any() for vector in scaling.parameters())
