"""The Python file: equal outputs, any operation of torch's layers, any class name; no dsonas."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from runpy import run_path

import pytest
import torch
from torch import nn

from dsonas.commands.exporting import FORMATS, Deployment, ExportError, fuse_bn
from dsonas.cost import architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.network import Network
from dsonas.run.network_files import Preprocessing, Shape
from dsonas.search.baselines import INVERTED_BOTTLENECK
from helpers.builders import images, random_architecture, randomise

LARGE = Skeleton(image_size=12, num_classes=3, blocks=(2, 2), channels=(4, 6))
SMALL = Skeleton(image_size=8, num_classes=3, blocks=(1, 1), channels=(4, 6))


def deploy(architecture: Architecture, fold: bool = False, **facts) -> Deployment:
    network = randomise(Network(architecture), seed=1).eval().requires_grad_(False)
    skeleton = architecture.skeleton
    names = facts.pop("names", tuple(map(str, range(skeleton.num_classes))))
    statistics = (0.1234567890123,) * skeleton.input_channels
    return Deployment(
        network=fuse_bn(network) if fold else network,
        preprocessing=Preprocessing(names, statistics, statistics),
        shape=Shape.of(skeleton),
        macs=architecture_cost(architecture).macs,
        folded=fold,
        **facts,
    )


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Deployment], nn.Module]:
    """Write a network as Python and load it again."""

    def write_and_load(deployment: Deployment) -> nn.Module:
        path, *_ = FORMATS["python"].write(deployment, tmp_path)
        return run_path(str(path))["load"]()

    return write_and_load


@torch.no_grad()
def difference(deployment: Deployment, network: nn.Module) -> float:
    x, _ = images(deployment.network.architecture.skeleton)
    network.to(memory_format=torch.contiguous_format)  # that of the other network
    return float((network(x) - deployment.network(x)).abs().max())


def test_a_loaded_network_keeps_its_weights_in_the_faster_layout(loaded):
    """In the other one every 3x3 convolution copies its weights for each image."""
    deployment = deploy(random_architecture(Random(0), SMALL))
    network = loaded(deployment)
    layout = torch.channels_last
    assert all(w.is_contiguous(memory_format=layout) for w in network.parameters() if w.dim() == 4)
    assert difference(deployment, network) <= 1e-6


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_file_computes_what_the_network_computes(loaded, seed: int, fold: bool):
    deployment = deploy(random_architecture(Random(seed), shared=seed % 2 == 0), fold)
    assert difference(deployment, loaded(deployment)) <= 1e-6


def test_it_is_made_of_torch_alone_and_goes_on_learning(loaded):
    deployment = deploy(random_architecture(Random(1), SMALL))
    network = loaded(deployment).train()
    kinds = {type(module).__module__.split(".")[0] for module in network.modules()}
    assert kinds == {"torch", "<run_path>"}
    x, labels = images(SMALL)
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    nn.functional.cross_entropy(network(x), labels).backward()
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def test_blocks_without_operations_and_single_reductions(loaded):
    operations = ("max_pool3x3", "separable_conv3x3")
    complete = BlockGraph.complete(operations, 2)
    some = complete.prune([i != 0 for i in range(len(complete.live))]).clean()
    empty = complete.prune([False] * len(complete.live)).clean()
    for reduction in ((True, False), (False, True)):
        deployment = deploy(Architecture(LARGE, (some, complete, empty, some), (reduction,)))
        network = loaded(deployment)
        assert len(network.blocks[2].nodes) == 0  # its shortcut alone
        assert list(network.reductions[0].branches) == ["conv1x1" if reduction[0] else "conv3x3"]
        assert difference(deployment, network) <= 1e-6


ODD_NAMES = (
    "it's", 'say "cheese"', "it's \"both\" 'here'", "two\nlines", "back\\slash", "\\'", "{brace}$x",
    "größe 猫 🐈", "\ud800 alone", "\x00\x1b", '"""', "", "tab\t", "\u202e", "%s", "#",
)  # fmt: skip


def test_any_class_name_survives(loaded, tmp_path: Path):
    skeleton = Skeleton(image_size=8, num_classes=len(ODD_NAMES), blocks=(1,), channels=(3,))
    architecture = Architecture.complete(skeleton, ("max_pool3x3",), 1)
    network = loaded(deploy(architecture, names=ODD_NAMES, data='folder a"""b\\\n\x00c'))
    assert tuple(network.notes["class_names"]) == ODD_NAMES
    assert network.notes["data"] == 'folder a"""b\\\n\x00c'
    assert (tmp_path / "network.json").read_text("ascii").count("\n") < 80


def test_what_is_noted_is_what_is_known_of_the_run(loaded):
    architecture = Architecture.complete(SMALL, ("max_pool3x3",), 1)
    deployment = deploy(architecture, test_error=1.25, seed=7)
    notes = loaded(deployment).notes
    expected = json.loads(json.dumps(deployment.metadata()))
    assert {key: notes[key] for key in expected} == expected
    assert (notes["image_size"], notes["input_channels"], notes["test_error"]) == (8, 3, 1.25)
    assert notes["mean"] == list(deployment.preprocessing.mean)


def test_a_line_for_each_layer_of_an_operation(loaded, tmp_path: Path):
    loaded(deploy(Architecture.complete(SMALL, ("separable_conv3x3",), 1)))
    lines = [line.strip() for line in (tmp_path / "network.json").read_text().splitlines()]
    assert '"1": {"operation": "separable_conv3x3", "inputs": [0]}' in lines
    assert (
        '"0": ["Conv2d", {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, '
        '"groups": 4, "bias": false}],'
    ) in lines


INCLUDED = (*PAPER_OPERATIONS, INVERTED_BOTTLENECK)
OWN = {
    "dilated": lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2, groups=c, bias=False),
    "bottleneck": lambda c: nn.Sequential(
        nn.Conv2d(c, max(1, c // 4), 1),
        nn.Sequential(nn.Hardswish(), nn.Conv2d(max(1, c // 4), 2 * c, (1, 3), padding=(0, 1))),
        nn.BatchNorm2d(2 * c),
        nn.PReLU(2 * c),
        nn.Conv2d(2 * c, c, 3, padding=1, padding_mode="reflect"),
    ),
    "average": lambda c: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "nothing": lambda c: nn.Identity(),
    "empty": lambda c: nn.Sequential(),
    "grouped": lambda c: nn.Sequential(nn.GroupNorm(1, c), nn.LeakyReLU(0.2)),
    "pairs": lambda c: nn.Upsample(scale_factor=(1.0, 1.0), mode="bilinear"),
    "same": lambda c: nn.Conv2d(c, c, (3, 5), padding="same", bias=False),
    "twice": lambda c: nn.Sequential(*[nn.Conv2d(c, c, 3, padding=1)] * 2),  # one, called twice
    "three": lambda c: nn.Conv2d(c, c, 3, padding=1),  # of 3 channels, too
    "other kernels": lambda c: nn.Conv2d(c, c, 3 if c < 5 else 5, padding=1 if c < 5 else 2),
    "other lengths": lambda c: nn.Sequential(*[nn.ReLU()] * c),
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", [*INCLUDED, *OWN])
@pytest.mark.parametrize("channels", [(3, 3), (4, 6)])
def test_an_operation_of_torch_layers_is_described(register, loaded, name, fold, channels):
    skeleton = Skeleton(image_size=8, num_classes=3, blocks=(1, 1), channels=channels)
    operations = (register(OWN[name]) if name in OWN else name, "max_pool3x3")
    deployment = deploy(Architecture.complete(skeleton, operations, 2), fold)
    assert difference(deployment, loaded(deployment)) <= 1e-6


@pytest.mark.parametrize("name", ["class", "load", "Block", "__hidden", "_", "ﬁlter", "n1"])
def test_an_operation_may_have_any_name(register, loaded, name):
    operations = (register(OWN["dilated"], name), register(OWN["three"], "filter"))
    deployment = deploy(Architecture.complete(SMALL, operations, 2))
    assert difference(deployment, loaded(deployment)) <= 1e-6


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Learned(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class InTurn(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(channels: int) -> nn.Module:
    module = nn.ReLU()
    module.register_forward_hook(lambda module, inputs, output: output + 1)
    return module


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (lambda c: nn.Sequential(nn.ReLU(), Doubled()), "Doubled"),
        (lambda c: Learned(c, c, 1), "Learned"),
        (lambda c: InTurn(nn.ReLU()), "InTurn"),
        (hooked, "ReLU"),
        (lambda c: nn.Fold((8, 8), 1, padding=torch.zeros(1)), "padding.*not JSON"),
    ],
)
def test_an_operation_that_cannot_be_described_is_refused_by_name(
    register, loaded, tmp_path, builder, reason
):
    architecture = Architecture.complete(SMALL, (register(builder),), 1)
    with pytest.raises(ExportError, match=f"'own_operation' cannot be written.*{reason}.*onnx,pt2"):
        loaded(deploy(architecture))
    assert not list(tmp_path.iterdir())
