"""Choices around which everything is ``Zero`` are no choice."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from dsonas import Budget, LayerChoice, Searcher, Zero
from dsonas.search.dead_ends import find_dead_end
from dsonas.search.knapsack import best_choices

EDGES = ((0, 1), (0, 2), (1, 2))


def candidates() -> dict[str, nn.Module]:
    conv = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    return {"conv": conv, "none": Zero()}


class Cell(nn.Module):
    """Node 2 adds up what comes from the input, and by node 1."""

    def __init__(self) -> None:
        super().__init__()
        edges = {f"{a}{b}": LayerChoice(candidates(), label=f"{a}{b}") for a, b in EDGES}
        self.edges, self.head = nn.ModuleDict(edges), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.edges["02"](x) + self.edges["12"](self.edges["01"](x))
        return self.head(y.mean((2, 3)))


def is_alive(kept: dict[str, str]) -> bool:
    on = {edge for edge, name in kept.items() if name == "conv"}
    return not on or ({"01", "12"} <= on or not {"01", "12"} & on)


@pytest.mark.parametrize("names", list(product(["conv", "none"], repeat=3)))
def test_exactly_the_candidates_for_nobody_are_found(names) -> None:
    torch.manual_seed(0)
    model, kept = Cell(), dict(zip(("01", "02", "12"), names, strict=True))
    model(torch.randn(4, 2, 5, 5))  # normalisations have seen something, and have biases
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before, drawn = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = find_dead_end(model, {k: [n] for k, n in kept.items()}, torch.zeros(1, 2, 5, 5))
    assert (found is None) == is_alive(kept)
    if found is not None:
        assert found >= {(k, "none") for k, name in kept.items() if name == "none"}
        assert all(kept[label] == name for label, name in found)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("table", [False, True])
def test_a_search_ends_without_dead_ends(table: bool) -> None:
    """The best two by their gradients do not fit, and the best one alone leads nowhere."""
    torch.manual_seed(0)
    model, example = Cell(), torch.zeros(1, 2, 5, 5)
    priced = {"cost": lambda c: max(1.0, sum(n == ("conv",) for n in c.values()))} if table else {}
    whole = Searcher(copy.deepcopy(model), example, steps=1)
    one = whole.supernet.cost({"01": ("conv",), "02": ("none",), "12": ("none",)})
    budget = Budget(macs=1.0 if table else one)
    searcher = Searcher(model, example, budget=budget, steps=60, **priced)
    for _ in range(60):
        wanted = {"01": 3.0, "12": 2.0, "02": 1.0}
        loss = -0.01 * sum(wanted[k] * choice.factors[0] for k, choice in model.edges.items())
        (loss + 0 * model(torch.randn(4, 2, 5, 5)).sum()).backward()
        searcher.step()
    found = searcher.finish()
    assert {k: names[0] for k, names in found.choices.items()} == {
        "01": "none", "02": "conv", "12": "none"
    }  # fmt: skip
    assert found.model(torch.randn(4, 2, 5, 5)).std() > 0


def test_a_model_without_zero_is_not_run() -> None:
    layer = LayerChoice([nn.Linear(2, 2), nn.Identity()], label="x")
    assert find_dead_end(layer, {"x": ["0"]}, "no input") is None


def test_candidates_are_kept_apart() -> None:
    options = {"a": ["x", "y"], "b": ["x", "y"]}
    scores = {("a", "x"): 2.0, ("a", "y"): 1.0, ("b", "x"): 2.0, ("b", "y"): 1.5}
    keep = dict.fromkeys(options, 1)
    assert best_choices(options, keep, scores) == {"a": ("x",), "b": ("x",)}
    apart = [{("a", "x"), ("b", "x")}]
    assert best_choices(options, keep, scores, apart=apart) == {"a": ("x",), "b": ("y",)}
    apart += [{("a", "x"), ("b", "y")}, {("a", "gone"), ("b", "x")}]
    assert best_choices(options, keep, scores, apart=apart) == {"a": ("y",), "b": ("x",)}
