"""Choices around which everything is ``Zero`` are no choice."""

import copy
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from dsonas import Budget, LayerChoice, Searcher, Zero
from dsonas.search.dead_ends import find_dead_end
from dsonas.search.knapsack import best_choices


@dataclass
class Output:
    logits: Tensor


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
    return {"01", "12"} <= on or on == {"02"}


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


def candidates_of_vectors() -> dict[str, nn.Module]:
    return {"fc": nn.Linear(4, 4), "none": Zero()}


def test_what_stays_in_a_candidate_that_goes_is_no_dead_end() -> None:
    inner = LayerChoice(candidates_of_vectors(), label="inner")
    outer = LayerChoice({"deep": nn.Sequential(nn.Linear(4, 4), inner), "id": nn.Identity()})
    model, example = nn.Sequential(outer, nn.Linear(4, 2)), torch.zeros(1, 4)
    assert find_dead_end(model, {"0": ["id"], "inner": ["none"]}, example) is None
    found = find_dead_end(model, {"0": ["deep"], "inner": ["none"]}, example)
    assert found == {("0", "deep"), ("inner", "none")}


class Fields(nn.Module):
    """Gives what torch does not know, and cannot run on the numbers of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.first, self.second = (LayerChoice(candidates_of_vectors()) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Output:
        return Output(self.head(self.second(self.first(self.embed(tokens).mean(1)))))


@pytest.mark.parametrize("share", ["100%", "1%"])
def test_a_search_goes_on_where_nothing_comes_through(share: str, caplog) -> None:
    """Every gradient says that none is best; a budget may leave nothing else."""
    torch.manual_seed(0)
    model, tokens = Fields(), torch.randint(10, (1, 5))
    floor = Searcher(copy.deepcopy(model), tokens, steps=1).supernet.cost(
        {"first": ("none",), "second": ("none",)}
    )
    budget = Budget(macs="100%" if share == "100%" else floor)
    searcher = Searcher(model, tokens, budget=budget, steps=24)
    for _ in range(24):
        unwanted = model.first.factors[0] + model.second.factors[0]
        (0.1 * unwanted + 0 * model(torch.randint(10, (8, 5))).logits.sum()).backward()
        searcher.step()
    left = {label: names[0] for label, names in searcher.finish().choices.items()}
    name = "fc" if share == "100%" else "none"
    assert left == {"first": name, "second": name}
    told = "no better combination was found: first: none, second: none; raise the budget"
    assert (told in caplog.text) == (name == "none")


def whole_numbers(kind: str) -> tuple[nn.Module, Tensor]:
    """What turns an example of integers that are all 0 into zeros alone."""
    layers = [LayerChoice(candidates_of_vectors(), label=label) for label in "ab"]
    if kind == "padding":
        start = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.LayerNorm(4))
        return nn.Sequential(start, *layers), torch.zeros(3, dtype=torch.long)
    return nn.Sequential(Pixels(), *layers), torch.zeros(2, 4, dtype=torch.uint8)


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 255


@pytest.mark.parametrize("kind", ["padding", "pixels"])
def test_integers_that_are_all_0_show_dead_ends(kind: str) -> None:
    model, example = whole_numbers(kind)
    found = find_dead_end(model, {"a": ["fc"], "b": ["none"]}, example)
    assert found == {("a", "fc"), ("b", "none")}
    assert find_dead_end(model, {"a": ["fc"], "b": ["fc"]}, example) is None


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = (LayerChoice(candidates_of_vectors()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_choice_that_is_never_run_is_told(caplog) -> None:
    Searcher(Unused(), torch.zeros(1, 4), steps=4)
    assert "choice 'unused' at 'unused' is not run on the example" in caplog.text
    assert "'used'" not in caplog.text


def test_an_example_that_fails_on_its_numbers_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="example must be an input that the model can run on"):
        Searcher(Fields(), torch.full((1, 5), 10), steps=4)


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
