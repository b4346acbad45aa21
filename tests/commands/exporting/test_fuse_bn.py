"""Fusing keeps the outputs and leaves no BN behind a convolution."""

from random import Random

import pytest
import torch
from torch import nn

from dsonas.commands.exporting import fuse_bn
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import Network
from helpers.builders import images, random_architecture, randomise

SKELETON = Skeleton(image_size=8, num_classes=3, blocks=(1, 1), channels=(4, 6))


def made(architecture: Architecture, seed: int = 0) -> Network:
    return randomise(Network(architecture), seed).eval().requires_grad_(False)


def executed(network: Network) -> list[nn.Module]:
    """The convolutions and BNs in the order in which they are called."""
    order: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    for module in network.modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(lambda module, inputs: order.append(module))
    network(images(network.architecture.skeleton)[0])
    return order


@pytest.mark.parametrize("seed", range(10))
def test_outputs_stay_and_the_network_itself_is_left_alone(seed: int):
    network = made(random_architecture(Random(seed), shared=seed % 2 == 0), seed)
    x, _ = images(network.architecture.skeleton)
    before = network(x)
    fused = fuse_bn(network)
    scale = max(1.0, float(before.abs().max()))
    assert float((fused(x) - before).abs().max()) <= 1e-5 * scale
    assert torch.equal(network(x), before)


def test_only_norms_that_follow_no_convolution_remain():
    operations = ("separable_conv3x3", "max_pool3x3")
    network = fuse_bn(made(Architecture.complete(SKELETON, operations, 2)))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 2 + 1  # behind the pools of each block, and before the classifier
    assert all(m.bias is not None for m in executed(network) if isinstance(m, nn.Conv2d)
               and m.groups == 1)  # fmt: skip


def test_norms_inside_an_operation_are_fused_too(register):
    own = register(
        lambda c: nn.Sequential(
            nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)
        )
    )
    network = made(Architecture.complete(SKELETON, (own,), 1))
    fused = fuse_bn(network)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1
    x, _ = images(SKELETON)
    torch.testing.assert_close(fused(x), network(x), atol=1e-4, rtol=1e-4)


def test_a_norm_without_statistics_stays(register):
    own = register(
        lambda c: nn.Sequential(
            nn.Conv2d(c, c, 1), nn.BatchNorm2d(c, track_running_stats=False), nn.ReLU()
        )
    )
    network = made(Architecture.complete(SKELETON, (own,), 1))
    x, _ = images(SKELETON)
    torch.testing.assert_close(fuse_bn(network)(x), network(x), atol=1e-4, rtol=1e-4)


class Raised(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_a_convolution_with_code_of_its_own_keeps_its_norm(register):
    own = register(lambda c: Raised(c, c, 1))
    network = made(Architecture.complete(SKELETON, (own,), 1))
    x, _ = images(SKELETON)
    torch.testing.assert_close(fuse_bn(network)(x), network(x), atol=1e-4, rtol=1e-4)


def test_a_network_in_training_is_refused():
    network = Network(Architecture.complete(SKELETON, ("max_pool3x3",), 1))
    with pytest.raises(ValueError, match="evaluation mode"):
        fuse_bn(network)
