"""The measured worth of an operation is the loss without it, and measuring leaves no trace."""

import copy
from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F

from dsonas.cost.edits import without_node
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import Network
from dsonas.search.sensitivity import loss_without
from helpers.builders import images, random_architecture, randomise

SKELETON = Skeleton(image_size=6, num_classes=4, blocks=(1, 1), channels=(4, 5))
OPERATIONS = ("separable_conv3x3", "max_pool3x3")


def case(seed: int, sharing: str):
    whole = Architecture.complete(SKELETON, OPERATIONS, 2)
    network = randomise(Network(whole, sharing=sharing), seed)
    current = random_architecture(
        Random(seed), SKELETON, shared=sharing == "share",
        operations=OPERATIONS, num_levels=2, density=0.7,
    )  # fmt: skip
    return network, replace(current, reductions=whole.reductions)


def loss_of(network: Network, architecture: Architecture, batch) -> float:
    twin = copy.deepcopy(network).train()
    for vector, graph in zip(twin.scaling.blocks, architecture.blocks, strict=False):
        vector.data.mul_(torch.tensor(graph.live))
    return F.cross_entropy(twin(batch[0]), batch[1]).item()


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("seed", range(4))
def test_worth_is_the_growth_of_the_loss(seed: int, sharing: str, float64):
    network, current = case(seed, sharing)
    batch = images(SKELETON, 16, seed)
    found = loss_without(network, current, *batch)
    start = loss_of(network, current, batch)
    graphs = current.blocks[:1] if sharing == "share" else current.blocks
    expected = {}
    for place, graph in enumerate(graphs):
        for node in graph.kept_nodes:
            rest = without_node(graph, node)
            blocks = [
                rest if sharing == "share" or i == place else old
                for i, old in enumerate(current.blocks)
            ]
            less = replace(current, blocks=tuple(blocks))
            expected[place, node] = max(0.0, loss_of(network, less, batch) - start)
    assert found == pytest.approx(expected, abs=2e-6)  # the loss is float32


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training: bool):
    network, current = case(1, "full")
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    momenta = [m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    loss_without(network, current, *images(SKELETON, 8))
    assert all(torch.equal(value, before[k]) for k, value in network.state_dict().items())
    assert all(module.training == training for module in network.modules())
    assert momenta == [m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(p.grad is None for p in network.parameters())
