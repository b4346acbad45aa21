"""The Python file: equal outputs, no dsonas, laid out by ruff, any operation and class name."""

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from dsonas.commands.exporting import ExportError, fold_batch_norms, network_source
from dsonas.commands.exporting.deployment import Deployment
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.graph import BlockGraph
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.network import Network
from dsonas.run.runs import Preprocessing
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
        network=fold_batch_norms(network) if fold else network,
        preprocessing=Preprocessing(names, statistics, statistics),
        folded=fold,
        **facts,
    )


def run_source(deployment: Deployment) -> tuple[dict, nn.Module]:
    """The names that the source defines, and its network with the weights."""
    source = network_source(deployment)
    names = {"__name__": "exported", "__file__": "network.py"}
    exec(compile(source.text, "network.py", "exec"), names)
    network = names["Network"]()
    network.load_state_dict(source.weights)
    return names, network.eval()


@torch.no_grad()
def difference(deployment: Deployment, network: nn.Module) -> float:
    x, _ = images(deployment.network.architecture.skeleton)
    return float((network(x) - deployment.network(x)).abs().max())


def test_loaded_source_keeps_its_weights_in_the_faster_layout(tmp_path):
    """In the other one every 3x3 convolution copies its weights for each image."""
    deployment = deploy(random_architecture(Random(0), SMALL))
    source = network_source(deployment)
    torch.save(source.weights, tmp_path / "network.pt")
    names = {"__name__": "exported", "__file__": str(tmp_path / "network.py")}
    exec(compile(source.text, "network.py", "exec"), names)
    loaded = names["load"]()
    layout = torch.channels_last
    assert all(w.is_contiguous(memory_format=layout) for w in loaded.parameters() if w.dim() == 4)
    assert difference(deployment, loaded) <= 1e-6


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_source_computes_what_the_network_computes(seed: int, fold: bool):
    deployment = deploy(random_architecture(Random(seed), shared=seed % 2 == 0), fold)
    assert difference(deployment, run_source(deployment)[1]) <= 1e-6


def test_the_source_is_as_ruff_formats_it_and_has_nothing_to_complain_of(tmp_path: Path):
    rng = Random(0)
    for number in range(40):
        facts = {"seed": number, "test_error": 3.2, "data": "folder " + "x" * number}
        names = tuple("class" * rng.randint(0, 5) + str(i) for i in range(12))
        architecture = random_architecture(rng, num_levels=rng.randint(1, 5))
        count = architecture.skeleton.num_classes
        deployment = deploy(architecture, number % 2 > 0, names=names[:count], **facts)
        (tmp_path / f"network{number}.py").write_text(network_source(deployment).text)
    ruff = [sys.executable, "-m", "ruff"]
    rules = [
        "--select",
        "E,F,I,B,UP,SIM,RUF,D,PT",
        "--ignore",
        "E501,D105,D107,D203,D213,D401",
    ]
    for arguments in (["format", "--check"], ["check", "--no-cache", *rules]):
        command = [*ruff, *arguments, "--isolated", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_shared_graph_is_one_class():
    architecture = random_architecture(Random(3), LARGE, shared=True, num_levels=2, density=0.9)
    text = network_source(deploy(architecture)).text
    assert re.findall(r"^class (\w+)\(", text, re.MULTILINE)[0] == "Block"
    assert text.count("class Block") == 1
    assert text.count(" = Block(") == LARGE.num_blocks


def test_every_distinct_graph_is_one_class_and_blocks_without_operations_are_none():
    operations = ("max_pool3x3", "separable_conv3x3")
    complete = BlockGraph.complete(operations, 2)
    some = complete.prune([i != 0 for i in range(len(complete.live))]).clean()
    empty = complete.prune([False] * len(complete.live)).clean()
    architecture = Architecture(LARGE, (some, complete, empty, some), ((True, False),))
    deployment = deploy(architecture)
    names, network = run_source(deployment)
    assert {"Block1", "Block2"} <= names.keys()
    assert not {"Block", "Block3", "Reduction"} & names.keys()
    assert "Blocks 1 and 4: " in names["Block1"].__doc__
    assert type(network.block1) is type(network.block4) is names["Block1"]
    assert type(network.block3) is nn.Sequential  # its shortcut
    assert difference(deployment, network) <= 1e-6


ODD_NAMES = (
    "it's", 'say "cheese"', "it's \"both\" 'here'", "two\nlines", "back\\slash", "\\'", "{brace}$x",
    "größe 猫 🐈", "\ud800 alone", "\x00\x1b", '"""', "", "tab\t", "\u202e", "%s", "#",
)  # fmt: skip


def test_any_class_name_survives(tmp_path: Path):
    skeleton = Skeleton(image_size=8, num_classes=len(ODD_NAMES), blocks=(1,), channels=(3,))
    architecture = Architecture.complete(skeleton, ("max_pool3x3",), 1)
    deployment = deploy(architecture, names=ODD_NAMES, data='folder a"""b\\\n\x00c')
    names, _ = run_source(deployment)
    assert names["CLASS_NAMES"] == ODD_NAMES
    assert "folder a'''b/ ?c" in names["__doc__"]
    path = tmp_path / "network.py"
    path.write_bytes(network_source(deployment).text.encode())
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", str(path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_constants_are_those_of_the_run():
    deployment = deploy(Architecture.complete(SMALL, ("max_pool3x3",), 1), test_error=1.25, seed=7)
    names, _ = run_source(deployment)
    mean = torch.tensor(names["MEAN"])
    assert torch.equal(mean, torch.tensor(deployment.preprocessing.mean))
    assert (names["IMAGE_SIZE"], names["INPUT_CHANNELS"]) == (8, 3)
    for fact in ("1.25 %", "seed 7", f"{deployment.macs:,} multiply-adds"):
        assert fact in names["__doc__"]


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
    "grouped": lambda c: nn.Sequential(nn.GroupNorm(1, c), nn.LeakyReLU(0.2)),
    "twice": lambda c: nn.Sequential(*[nn.Conv2d(c, c, 3, padding=1)] * 2),  # one, called twice
    "three": lambda c: nn.Conv2d(c, c, 3, padding=1),  # of 3 channels, too
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", [*INCLUDED, *OWN])
@pytest.mark.parametrize("channels", [(3, 3), (4, 6)])
def test_an_operation_of_torch_modules_is_written_out(register, name, fold, channels):
    skeleton = Skeleton(image_size=8, num_classes=3, blocks=(1, 1), channels=channels)
    operations = (register(OWN[name]) if name in OWN else name, "max_pool3x3")
    deployment = deploy(Architecture.complete(skeleton, operations, 2), fold)
    assert difference(deployment, run_source(deployment)[1]) <= 1e-6


def test_numbers_that_only_happen_to_equal_the_channels_stay_numbers(register):
    skeleton = Skeleton(image_size=8, num_classes=3, blocks=(1,), channels=(3,))
    operation = register(OWN["three"])
    text = network_source(deploy(Architecture.complete(skeleton, (operation,), 1))).text
    assert "nn.Conv2d(channels, channels, 3, padding=1)" in text


@pytest.mark.parametrize(
    "name", ["class", "load", "Block", "Block1", "relu", "__hidden", "_", "ﬁlter", "n1"]
)
def test_an_operation_may_have_any_name(register, name):
    operations = (register(OWN["dilated"], name), register(OWN["three"], "filter"))
    deployment = deploy(Architecture.complete(SMALL, operations, 2))
    assert difference(deployment, run_source(deployment)[1]) <= 1e-6


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Learned(nn.Conv2d):
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
        (hooked, "ReLU"),
        (lambda c: nn.Conv2d(c, c, 3 if c < 5 else 5, padding=1 if c < 5 else 2), "kernel_size"),
        (lambda c: nn.Sequential(*[nn.ReLU()] * c), "differ"),
    ],
)
def test_an_operation_that_cannot_be_written_out_is_refused_by_name(register, builder, reason):
    architecture = Architecture.complete(SMALL, (register(builder),), 1)
    with pytest.raises(ExportError, match=f"'own_operation' cannot be written.*{reason}.*onnx,pt2"):
        network_source(deploy(architecture))
