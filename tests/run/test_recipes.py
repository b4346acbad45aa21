"""Every published row has a recipe; its networks have the published sizes and its schedules."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from dsonas.commands.configuring import config_parser, parse, to_config
from dsonas.cost.budgets import fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.graph.spaces import SearchSpace, cifar_space, imagenet_space
from dsonas.nn.network import Network
from dsonas.run.fitting import transfer
from dsonas.run.recipes import recipe_names, recipe_path
from dsonas.run.run_config import RunConfig
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
    path = ["--data.name", "folder:/somewhere"] if name.startswith("imagenet") else []
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
    assert set(PUBLISHED) == set(recipe_names()) - {"digits", "fashion-mnist", "cifar10-small"}


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
def test_no_recipe_repeats_another(name: str):
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert len(settings) <= 5 or name in ("cifar10-share", "imagenet-share")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_what_was_published_and_decided(name: str):
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines if line.startswith("#"))
    for word in ("error", "parameters", "ultiply-adds"):
        assert word in comment
    assert "ecided" in comment or "disagree" in comment


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_sets_what_it_has_always_set(name: str):
    """As when each recipe had every setting in its own file, by the names of now."""
    table = json.loads(Path(__file__).with_name("recipe_settings.json").read_text())
    defaults = {**RunConfig().settings(), **table[name]}
    found = {
        k: list(v) if isinstance(v, tuple) else v for k, v in config_of(name).settings().items()
    }
    assert found == {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}


def published_rates(name: str, epochs: int, steps: int) -> Iterator[float]:
    """The learning rate of every update of step 3, by the published formulas, written out."""
    if name in (*CIFAR10, *CIFAR100):  # SGDR, eq. 5: from 0.05 to 0.0001 in 10, 20, 40, ... epochs
        begin, period = 0, 10
        for epoch in range(epochs):
            if epoch == begin + period:
                begin, period = epoch, 2 * period
            share = (epoch - begin) / period
            yield from [1e-4 + (0.05 - 1e-4) * (1 + math.cos(math.pi * share)) / 2] * steps
    elif name.startswith("imagenet"):  # 0.1 to 0.5 in 5 epochs; then 0.5 / (T - W) less each time
        warmup, total = 5 * steps, epochs * steps
        for update in range(1, total + 1):
            top = 0.1 + min(update, warmup - 1) * 0.4 / warmup
            yield max(0.0, top - max(0, update - (warmup - 1)) * 0.5 / (total - warmup))
    else:  # one epoch up to 0.1, then half a cosine down to 0
        last = epochs * steps - 1 - steps
        for update in range(epochs * steps):
            share = max(0, update - steps) / last
            falling = 0.1 * (1 + math.cos(math.pi * share)) / 2
            yield 0.1 * (update + 1) / steps if update < steps else falling


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("steps", [1, 7])
def test_step_3_has_the_published_learning_rates(name: str, steps: int):
    train = config_of(name).train
    schedule = train.learning_rate(steps)
    found = [schedule(update) for update in range(train.epochs * steps)]
    expected = list(published_rates(name, train.epochs, steps))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


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
