"""Removing what is zero changes nothing, in training and in evaluation mode."""

import copy
from dataclasses import replace
from random import Random

import pytest
import torch

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import Network
from dsonas.search.shrinking import shrink
from helpers.builders import (
    SMALL,
    images,
    optimizers,
    outputs,
    random_architecture,
    randomise,
    supernet,
    train,
    write_zeros,
)

SHARINGS = ["share", "full"]


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("zeros", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(8))
def test_outputs_stay_equal_in_float64(seed: int, zeros: float, sharing: str, float64):
    outputs_stay_equal(seed, zeros, sharing, 1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_outputs_stay_equal_in_float32(seed: int):
    outputs_stay_equal(seed, 0.6, "share", 1e-5)


def outputs_stay_equal(seed: int, zeros: float, sharing: str, tolerance: float) -> None:
    network = supernet(seed, sharing, zeros)
    x, _ = images(SMALL, 8)
    whole = network.architecture
    live = network.scaling.architecture(whole)
    assert live.num_live < whole.num_live
    twin = copy.deepcopy(network)
    expected = outputs(twin, x, False), outputs(twin, x, True)
    shrink(network, live)
    write_zeros(network.scaling, live)
    for found, before in zip(
        (outputs(network, x, False), outputs(network, x, True)), expected, strict=True
    ):
        torch.testing.assert_close(found, before, rtol=tolerance, atol=tolerance)
    assert network.architecture == live
    with torch.no_grad():
        fresh = Network(live, scaled=True)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_the_constant_of_an_unfed_operation_goes_into_the_running_mean(float64):
    """Without that correction the outputs in evaluation mode would differ."""
    skeleton = Skeleton(image_size=7, blocks=(1,), channels=(4,))
    whole = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 2)
    network = randomise(Network(whole, scaled=True), 0)
    graph = whole.blocks[0]
    unfed = [pair.target == 3 for pair in graph.connections]
    network.scaling.blocks[0].data[torch.tensor(unfed)] = 0
    network.blocks[0].nodes["3"].bn.bias.data.fill_(0.5)
    network.blocks[0].nodes["3"].bn.running_mean.zero_()
    x, _ = images(skeleton)
    before = outputs(network, x, False)
    mean = network.blocks[0].output_bn.running_mean.clone()
    live = network.scaling.architecture(whole)
    assert 3 not in live.blocks[0].kept_nodes
    shrink(network, live)
    shift = mean - network.blocks[0].output_bn.running_mean
    assert shift.abs().max() > 1e-3
    torch.testing.assert_close(outputs(network, x, False), before, rtol=1e-10, atol=1e-10)
    network.blocks[0].output_bn.running_mean.copy_(mean)
    assert not torch.allclose(outputs(network, x, False), before, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(training: bool):
    network = supernet(3, "share", 0.6).train(training)
    shrink(network, network.scaling.architecture(network.architecture))
    assert all(module.training == training for module in network.modules())


def test_a_block_that_loses_everything_is_its_shortcut(float64):
    network = supernet(2, "full", 0.0)
    pair = optimizers(network)
    train(network, pair, [0])
    network.scaling.blocks[1].data.zero_()
    live = network.scaling.architecture(network.architecture)
    shrink(network, live, pair[0])
    assert [bool(graph.kept_nodes) for graph in live.blocks] == [True, False, True]
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(network.blocks[1](x, network.scaling.for_block(1)), x)
    assert not list(network.blocks[1].parameters())
    train(network, pair, [1])


@pytest.mark.parametrize("kept", [(True, False), (False, True)])
def test_reduction_branches(kept: tuple[bool, bool], float64):
    network = supernet(4, "share", 0.0)
    pair = optimizers(network)
    train(network, pair, [0])
    live = replace(network.architecture, reductions=(kept,))
    write_zeros(network.scaling, live, pair[1])
    x, _ = images(SMALL, 8)
    before = outputs(network, x, False)
    gone = list(network.reductions[0].branches[("conv1x1", "conv3x3")[kept[0]]].parameters())
    shrink(network, live, pair[0])
    torch.testing.assert_close(outputs(network, x, False), before, rtol=1e-12, atol=1e-12)
    listed = {id(p) for group in pair[0].param_groups for p in group["params"]}
    assert not listed & {id(p) for p in gone}
    assert not any(p in pair[0].state for p in gone)
    assert len(network.reductions[0].branches) == 1


def test_architectures_that_are_not_contained_are_refused():
    small = random_architecture(
        Random(0), SMALL, shared=True, operations=("max_pool3x3", "average_pool3x3"),
        num_levels=2, density=0.6,
    )  # fmt: skip
    small = replace(small, reductions=((True, False),))
    whole = Architecture.complete(SMALL, small.operations, 2)
    shrunk = Network(whole, scaled=True)
    shrink(shrunk, small)
    others = [
        whole,
        replace(small, reductions=((True, True),)),
        replace(small, reductions=((False, True),)),
        small.with_channels((3, 6)),
        Architecture.complete(SMALL, small.operations, 3),
        random_architecture(
            Random(0), SMALL, shared=True, operations=("average_pool3x3", "max_pool3x3"),
            num_levels=2, density=0.6,
        ),
    ]  # fmt: skip
    before = {k: v.clone() for k, v in shrunk.state_dict().items()}
    for other in others:
        with pytest.raises(ValueError, match=r"architecture must be contained"):
            shrink(shrunk, other)
    after = shrunk.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
