"""Counts against torch's own counter and the paper's numbers."""

from random import Random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dsonas.cost.costs import Cost, architecture_cost, block_cost, operation_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph
from dsonas.graph.spaces import cifar_space, imagenet_space
from dsonas.nn.network import Network
from dsonas.nn.operations import register_operation
from helpers.builders import random_architecture, random_skeleton


def pair(cost: Cost) -> tuple[int, int]:
    return cost.macs, cost.params


def counted(architecture: Architecture) -> tuple[int, int]:
    with torch.device("meta"):
        network = Network(architecture).eval()
        skeleton = architecture.skeleton
        side = skeleton.image_size
        images = torch.empty(1, skeleton.input_channels, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    params = sum(parameter.numel() for parameter in network.parameters())
    return counter.get_total_flops() // 2, params


@pytest.mark.parametrize("shared", [True, False], ids=["share", "full"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("part", range(5))
def test_costs_equal_the_counter_of_torch(stem: str, shared: bool, part: int):
    for seed in range(5 * part, 5 * part + 5):
        rng = Random(f"{stem} {shared} {seed}")
        fields = random_skeleton(rng).__dict__ | {"stem": stem}
        architecture = random_architecture(rng, Skeleton(**fields), shared=shared)
        assert pair(architecture_cost(architecture)) == counted(architecture), architecture


def test_costs_of_the_parts_that_random_cases_may_miss():
    empty = BlockGraph(("max_pool3x3",), 1, (False,))
    skeleton = Skeleton(stem="imagenet", image_size=1, blocks=(1, 1), channels=(1, 1))
    architecture = Architecture(skeleton, (empty, empty), ((False, True),))
    assert pair(architecture_cost(architecture)) == counted(architecture)


@pytest.mark.parametrize(
    ("space", "share", "full", "weights", "giga_macs"),
    [
        (cifar_space, 128, 2980, 9_937_296, 1.4845),
        (imagenet_space, 130, 2858, 12_354_706, 1.5035),
    ],
)
def test_published_counts(space, share: int, full: int, weights: int, giga_macs: float):
    assert space().num_factors == share
    assert space(sharing="full").num_factors == full
    with torch.device("meta"):
        networks = [
            Network(space(sharing=kind).complete(), scaled=True) for kind in ("share", "full")
        ]
    for network, number in zip(networks, (share, full), strict=True):
        assert sum(vector.numel() for vector in network.scaling.parameters()) == number
    counted_weights = sum(
        module.weight.numel()
        for module in networks[0].modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    assert counted_weights == weights
    assert round(architecture_cost(space().complete()).macs / 1e9, 4) == giga_macs


class Gated(nn.Module):
    """Two matrix products, a grouped convolution and loose parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(channels, channels))
        self.conv = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1) @ self.matrix
        return (y @ self.matrix.t()).permute(0, 3, 1, 2) * self.gain


def test_a_registered_operation_is_counted():
    register_operation("gated_for_cost_test", Gated)
    side, channels = 7, 6
    expected_macs = side * side * (channels * 3 + 2 * channels**2)
    expected_params = channels**2 + 3 * channels + channels + 1 + 2 * channels
    found = operation_cost("gated_for_cost_test", channels, side)
    assert pair(found) == (expected_macs, expected_params)
    skeleton = Skeleton(image_size=9, blocks=(2,), channels=(6,))
    architecture = random_architecture(
        Random(4), skeleton, operations=("gated_for_cost_test", "max_pool3x3"), density=1.0
    )
    assert pair(architecture_cost(architecture)) == counted(architecture)


def test_a_block_is_cleaned_before_it_is_counted():
    graph = BlockGraph.complete(("separable_conv3x3",), 2)
    dead_end = graph.prune([pair != (2, 3) for pair in graph.connections])
    alone = BlockGraph(("separable_conv3x3",), 2, (False, False, True, False))
    assert dead_end != dead_end.clean()
    assert block_cost(dead_end, 4, 8, False) == block_cost(alone, 4, 8, False)
    assert block_cost(dead_end, 4, 8, False).macs < block_cost(graph, 4, 8, False).macs


def test_a_cost_adds_up():
    assert sum([Cost(1, 2, 3), Cost(3, 4, 5)], Cost()) == Cost(4, 6, 8)


@pytest.mark.parametrize("channels", [1, 8, 96])
@pytest.mark.parametrize("side", [4, 16])
def test_memory_access_of_operations_is_the_published_formula(channels: int, side: int):
    pixels = side * side
    published = {
        "separable_conv3x3": 4 * pixels + 9 + channels,
        "separable_conv5x5": 4 * pixels + 25 + channels,
        "max_pool3x3": 2 * pixels,
        "average_pool3x3": 2 * pixels,
    }
    for name, per_channel in published.items():
        assert operation_cost(name, channels, side).memory_bytes == 4 * channels * per_channel


def test_memory_access_grows_with_every_connection():
    graph = BlockGraph.complete(("max_pool3x3", "separable_conv3x3"), 2)
    before = block_cost(graph, 8, 8, False).memory_bytes
    for i in range(len(graph.live)):
        smaller = graph.prune([i != j for j in range(len(graph.live))]).clean()
        assert block_cost(smaller, 8, 8, False).memory_bytes < before
