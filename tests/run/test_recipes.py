"""Every published row has a recipe; its networks have the published sizes and its schedules."""

from dataclasses import replace
from functools import lru_cache
from random import Random
from types import SimpleNamespace

import pytest
import torch

from dsonas.commands.configuring import config_parser, parse, to_config
from dsonas.cost.budgets import fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.graph.spaces import SearchSpace, cifar_space, imagenet_space
from dsonas.nn.network import Network
from dsonas.run.recipes import recipe_names, recipe_path
from dsonas.run.run_config import RunConfig
from dsonas.run.transferring import transfer
from dsonas.search.stages import Searching
from dsonas.train.engine import Engine, EngineConfig
from helpers.builders import random_architecture

ABLATIONS = {
    "no-pretraining": {"pretrain.epochs": 0},
    "no-split": {"data.factor_split": 0},
    "4to1": {"data.factor_split": 0.2},
}
CIFAR10 = [
    "-".join(("cifar10", space, *rest)) for space in ("share", "full")
    for rest in ((), *((name,) for name in ABLATIONS))
]  # fmt: skip
CIFAR100 = ["cifar100-share", "cifar100-full"]
IMAGENET = ["imagenet-share", "imagenet-full", "imagenet-transfer"]
PUBLISHED = [*CIFAR10, *CIFAR100, *IMAGENET]
BUDGETS = {  # of the published rows
    "imagenet-share": {"macs": 586e6},
    "imagenet-full": {"macs": 608e6},
    "imagenet-transfer": {"macs": 571e6},
}


def config_of(name: str) -> RunConfig:
    path = ["--data.name", "folder:somewhere"] if name.startswith("imagenet") else []
    return to_config(parse(config_parser("run", "", ()), ["--config", name, *path]))


def space_of(name: str) -> SearchSpace:
    """The space that a recipe gives for images like those of its data set."""
    size, classes = {"cifar10": (32, 10), "cifar100": (32, 100)}.get(
        name.split("-")[0], (224, 1000)
    )
    images = SimpleNamespace(image_size=size, input_channels=3, num_classes=classes)
    return config_of(name).space(images)  # type: ignore[arg-type]


@lru_cache
def sizes(space: SearchSpace) -> tuple[int, int]:
    """Convolution and linear weights, and scaling factors, of the supernet that is built."""
    with torch.device("meta"):
        network = Network(space.complete(), scaled=True)
    assert network.scaling is not None
    weights = sum(w.numel() for w in network.weights() if w.ndim > 1)
    return weights, sum(vector.numel() for vector in network.scaling.parameters())


def test_every_published_row_has_a_recipe():
    assert set(PUBLISHED) == set(recipe_names()) - {"digits", "fashion-mnist"}


@pytest.mark.parametrize("name", [*CIFAR10, *CIFAR100])
def test_cifar_supernets_have_the_published_size(name: str):
    full, classes = "-full" in name, 100 if name in CIFAR100 else 10
    space = space_of(name)
    assert space == cifar_space(sharing="full" if full else "share", num_classes=classes)
    more = (classes - 10) * 192  # the figures are those of ten classes
    assert sizes(space) == (9_937_296 + more, 2980 if full else 128)
    macs = architecture_cost(space.complete()).macs - more
    assert macs / 1e9 == pytest.approx(1.4845, abs=5e-5)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_supernets_have_the_published_size(name: str):
    full = "-full" in name
    space = space_of(name)
    assert space == imagenet_space(sharing="full" if full else "share")
    assert sizes(space) == (12_354_706, 2858 if full else 130)
    macs = architecture_cost(space.complete()).macs
    assert macs / 1e9 == pytest.approx(1.5035, abs=5e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_bounds_what_was_published_and_nothing_else(name: str):
    assert config_of(name).budget.bounds == BUDGETS.get(name, {"params": 3.0e6})


@pytest.mark.parametrize("name", ["cifar10-share", "imagenet-full", "imagenet-transfer"])
def test_networks_of_the_published_size_can_be_built(name: str):
    config, skeleton = config_of(name), space_of(name).skeleton
    shared = "full" not in name
    source = cifar_space().skeleton if name == "imagenet-transfer" else skeleton
    found = random_architecture(
        Random(name), source, shared=shared, operations=config.network.operations, num_levels=4,
        density=0.25,
    )  # fmt: skip
    fitted = fit_width(transfer(found, skeleton) if shared else found, config.budget)
    assert fitted.skeleton.blocks == skeleton.blocks
    assert 0.97 < config.budget.use(vars(architecture_cost(fitted))) <= 1
    with torch.device("meta"):
        network = Network(
            fitted, auxiliary=config.train.auxiliary > 0, dropout=config.train.dropout
        )
    assert network.auxiliary is not None
    inference = [w for key, w in network.named_parameters() if not key.startswith("auxiliary.")]
    assert sum(w.numel() for w in inference) == architecture_cost(fitted).params


@pytest.mark.parametrize("space", ["share", "full"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_differs_in_what_it_is_named_after(space: str, ablation: str):
    whole = config_of(f"cifar10-{space}").settings()
    part = config_of(f"cifar10-{space}-{ablation}").settings()
    assert {key: part[key] for key in part if part[key] != whole[key]} == ABLATIONS[ablation]


@pytest.mark.parametrize("name", PUBLISHED)
def test_sparsity_comes_from_the_published_penalty_alone(name: str):
    if name == "imagenet-transfer":
        return  # it searches nothing
    search = config_of(name).search
    assert (search.keep_cost, search.normalise) == (None, False)
    assert search.penalty == (0.01 if name in IMAGENET else 0.001)
    assert search.penalty_kind == "adaptive_macs"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_what_was_published_and_decided(name: str):
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines if line.startswith("#"))
    for word in ("error", "parameters", "ultiply-adds"):
        assert word in comment
    assert "ecided" in comment or "disagree" in comment


def test_training_on_cifar_restarts_its_learning_rate():
    schedule = config_of("cifar10-share").train.learning_rate(steps_per_epoch=2)
    starts = [0, 10, 30, 70, 150, 310]
    assert [schedule(2 * epoch) for epoch in starts] == [0.05] * 6
    ends = [schedule(2 * epoch - 1) for epoch in (*starts[1:], 630)]
    assert all(1e-4 < lr < 2e-3 for lr in ends)
    assert ends[-1] < 1.1e-4  # the longest period comes closest


def test_training_on_imagenet_warms_up_and_falls_to_nothing():
    schedule = config_of("imagenet-share").train.learning_rate(steps_per_epoch=10)
    assert schedule(0) == pytest.approx(0.1 + 0.4 / 50)
    assert schedule(48) == pytest.approx(0.492)
    assert max(map(schedule, range(2400))) == schedule(48)
    assert schedule(2399) == 0


class _Count:
    """As many batches as it says."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_the_imagenet_search_of_the_published_code_falls_at_three_epochs():
    config = config_of("imagenet-share").search
    longer = replace(config, epochs=120, schedule="steps")
    network = Network(cifar_space(channels=4, blocks=(1,)).complete(), scaled=True)
    engine = Engine(EngineConfig(device="cpu", threads=1))
    for chosen, expected in ((config, [0.1]), (longer, [0.1, 0.01, 0.001, 1e-4])):
        stage = Searching(network, _Count(8), _Count(2), chosen, engine, ratio=4)  # type: ignore[arg-type]
        assert (stage.num_batches, stage.kinds.count("factors")) == (10, 2)
        last = 10 * chosen.epochs - 1
        assert [stage.schedule(update) for update in (0, 299)] == [0.1, 0.1]
        assert sorted({stage.schedule(update) for update in range(last + 1)}) == pytest.approx(
            sorted(expected)
        )
        assert stage.schedule(last) == pytest.approx(expected[-1])
