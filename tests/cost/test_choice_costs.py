"""The cost of a model with choices is that of the final network, for every combination."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dsonas
from dsonas import InputChoice, LayerChoice, Zero
from dsonas.cost.choice_costs import count_choices
from dsonas.sparse.applying import choices_of, finalise


def module(generator: random.Random, channels: int, depth: int) -> nn.Module:
    """A random module of one width, with choices in choices."""
    kind = generator.choice(
        ["conv", "depthwise", "skip", "pool", "chain", "choice"][: 4 + 2 * depth]
    )
    if kind == "conv":
        return nn.Conv2d(channels, channels, generator.choice([1, 3]), padding="same")
    if kind == "depthwise":
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    if kind == "skip":
        return generator.choice([nn.Identity(), Zero()])
    if kind == "pool":
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(channels))
    parts = [module(generator, channels, depth - 1) for _ in range(generator.randint(1, 3))]
    if kind == "chain":
        return nn.Sequential(*parts)
    return LayerChoice(parts, normalise=generator.random() < 0.5)


class Random(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = random.Random(seed)
        channels = generator.choice([2, 3, 8])
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.ModuleList(
            LayerChoice([module(generator, channels, 2) for _ in range(3)]) for _ in range(3)
        )
        shared = nn.Conv2d(channels, channels, 1)  # of two candidates
        self.tied = LayerChoice([shared, nn.Sequential(shared, nn.ReLU()), nn.Identity()])
        self.twice = LayerChoice([nn.Linear(8, 8), nn.Identity()], label="twice")
        self.join = InputChoice(4)
        self.head = nn.Linear(channels, 2)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features[-1]))
        x = self.twice(self.twice(self.tied(self.join(features))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(10))
def test_every_combination_costs_what_is_counted(seed: int) -> None:
    torch.manual_seed(seed)
    model, example, generator = Random(seed), torch.rand(1, 3, 8, 8), random.Random(seed)
    costs = count_choices(model, example)
    assert all(p.device.type == "cpu" for p in model.parameters())
    for _ in range(10):
        cut = copy.deepcopy(model)
        left = {}
        for label, places in choices_of(cut).items():
            names = places[0][1].names
            left[label] = generator.sample(names, generator.randint(1, len(names)))
            for _, choice in places:
                choice.drop([name for name in names if name not in left[label]])
        cut(torch.rand(2, 3, 8, 8))
        final = finalise(cut).eval()
        with FlopCounterMode(display=False) as counter:
            final(example)
        assert costs.cost(left) == counter.get_total_flops() / 2
        assert costs.cost(left, "params") == sum(p.numel() for p in final.parameters())


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


class First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)[0]


def test_layers_of_sequences_cost_what_is_counted_on_the_meta_device() -> None:
    """On a CPU the counter of torch misses fused attention and recurrent layers."""
    candidates = [
        Attention(8), nn.Linear(8, 8), First(nn.GRU(8, 8, batch_first=True)), nn.Identity(),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Zero(),
    ]  # fmt: skip
    model = nn.Sequential(LayerChoice(candidates, label="x", keep=None), nn.Linear(8, 3))
    example = torch.zeros(1, 6, 8)
    costs = count_choices(model, example)
    for names in ["0"], ["1"], ["2"], ["3"], ["4"], ["5"], ["0", "2", "3"], ["1", "4"]:
        final = dsonas.apply_choices(model, {"x": names}, example).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            final(example.to("meta"))
        assert costs.cost({"x": names}) == counter.get_total_flops() / 2
        params = sum(parameter.numel() for parameter in final.parameters())
        assert costs.cost({"x": names}, "params") == params
