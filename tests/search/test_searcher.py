"""The searcher in a user's own loop: what it finds, what it never breaks, and their mistakes."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dsonas
from dsonas import Budget, LayerChoice, SearchConfig, Searcher
from dsonas.graph.architecture import Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.nn.network import Network
from dsonas.sparse.applying import choices_of

CHANNELS = 6


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


def some_fast(number: int, fast: int = 3) -> list[Any]:
    """So many seeds; all but the first are slow together."""
    slow = (pytest.param(seed, marks=pytest.mark.slow) for seed in range(fast, number))
    return [*range(fast), *slow]


def planted() -> nn.Module:
    """Choices between something useful, something expensive and useless, and noise."""

    def choice(i: int) -> LayerChoice:
        useful = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
        expensive = nn.Sequential(
            nn.Conv2d(CHANNELS, 8 * CHANNELS, 1), nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(8 * CHANNELS, CHANNELS, 1), nn.Upsample(8),
        )  # fmt: skip
        return LayerChoice({"noise": Noise(), "expensive": expensive, "useful": useful})

    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1), choice(0), choice(1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * CHANNELS, 10),
    )  # fmt: skip


def small() -> nn.Module:
    """A model with many combinations, that takes no time."""

    def choice(keep: int | None, label: str | None = None) -> LayerChoice:
        return LayerChoice(
            [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4)), nn.Identity()],
            keep=keep, label=label,
        )  # fmt: skip

    return nn.Sequential(
        choice(1), choice(2), choice(None), choice(1, "twice"), choice(1, "twice"), nn.Linear(4, 2)
    )


def digits(seed: int, batch: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))

    def part(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        mine = order[number::2]
        for i in range(0, len(mine) - batch + 1, batch):
            yield x[mine[i : i + batch]], y[mine[i : i + batch]]

    return part


def random_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(16, 4, generator=generator)
        yield x, (x[:, 0] > 0).long()


def train(searcher: Searcher, optimizer, model, batches, steps: int) -> None:
    for _ in range(steps):
        for part in "WF":
            x, y = next(batches)
            loss = F.cross_entropy(model(x), y)
            if part == "W":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                loss.backward()
                searcher.step()


@pytest.mark.parametrize("seed", some_fast(20))
def test_what_is_useful_is_found(seed: int) -> None:
    torch.manual_seed(seed)
    model, part, epochs = planted(), digits(seed, 32), 3
    steps = epochs * len(list(part(0)))
    searcher = Searcher(model, torch.zeros(1, 1, 8, 8), steps=steps, seed=seed)
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for (x, y), (xf, yf) in zip(part(0), part(1), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            F.cross_entropy(model(xf), yf).backward()
            searcher.step()
    result = searcher.finish()
    assert dict(result.choices) == {"1": ["useful"], "2": ["useful"]}
    x, _ = next(part(0))
    model.eval()
    torch.testing.assert_close(result.model.eval()(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", some_fast(50))
def test_budget_and_keep_always_hold(seed: int) -> None:
    torch.manual_seed(seed)
    model, example, draw = small(), torch.zeros(1, 4), random.Random(seed)
    whole = Searcher(copy.deepcopy(model), example, steps=1)
    shares = {name: draw.uniform(0.08, 1) for name in draw.choice((["macs"], ["macs", "params"]))}
    costs = {name: whole.supernet.cost(whole.live, name) for name in ("macs", "params")}
    limits = {name: share * costs[name] for name, share in shares.items()}
    as_shares = draw.random() < 0.5
    given = {name: f"{100 * s}%" if as_shares else limits[name] for name, s in shares.items()}
    searcher = Searcher(model, example, budget=Budget(**given), steps=20, seed=seed)
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05)
    train(searcher, optimizer, model, random_batches(seed), 20)
    result = searcher.finish()
    for name, limit in limits.items():
        assert searcher.supernet.cost(result.structure, name) <= limit * (1 + 1e-9)
    assert sum(p.numel() for p in result.model.parameters()) == searcher.supernet.cost(
        result.structure, "params"
    )
    counts = map(len, result.choices.values())
    assert all(n <= most for n, most in zip(counts, (1, 2, 3, 1), strict=True))
    assert list(result.choices) == ["0", "1", "2", "twice"]


def test_an_unreachable_budget_is_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match=r"budget.macs must be at least 8, the smallest cost"):
        Searcher(small(), torch.zeros(1, 4), budget=Budget(macs=7), steps=10)


@pytest.mark.parametrize("additive", [True, False])
def test_a_cost_of_the_users_own_is_kept(additive: bool) -> None:
    prices = {"0": 5, "1": 1, "2": 3}

    def cost(choices) -> float:
        found = [sum(prices[name] for name in names) for names in choices.values()]
        return sum(found) if additive else max(found)

    model = small()
    searcher = Searcher(model, steps=30, budget=Budget(macs=6 if additive else 3), cost=cost)
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05)
    train(searcher, optimizer, model, random_batches(0), 30)
    result = searcher.finish()
    assert result.cost == cost(result.choices) <= (6 if additive else 3)
    with pytest.raises(ValueError, match="must be at least"):
        Searcher(small(), steps=30, budget=Budget(macs=0.5), cost=cost)


@pytest.mark.parametrize("value", [None, math.nan, torch.ones(2), "dear"])
def test_a_cost_that_is_no_number_is_refused(value: Any) -> None:
    def cost(choices) -> Any:
        return value if "2" in choices["0"] else 1.0

    with pytest.raises(ValueError, match="cost must give a number for every structure, got"):
        Searcher(small(), steps=30, budget=Budget(macs=6), cost=cost)


def test_the_state_of_a_model_with_a_cost_of_its_own_can_be_loaded() -> None:
    own = {"steps": 30, "budget": Budget(macs=6), "cost": lambda choices: 3.0}
    models = [small(), small()]
    searchers = [Searcher(model, torch.zeros(1, 4), **own) for model in models]
    models[0](torch.rand(8, 4))
    models[1].load_state_dict(models[0].state_dict())
    assert searchers[1].cost() == 3


@pytest.mark.parametrize("seed", range(6))
def test_nothing_that_is_at_0_is_left_whatever_the_gradients(seed: int) -> None:
    """By gradients that turn over and over; a choice without a positive factor would be dead."""
    torch.manual_seed(seed)
    layers = [LayerChoice([nn.Linear(2, 2) for _ in range(3)], keep=k) for k in (1, 1, 2, None)]
    model = nn.Sequential(*layers)
    searcher = Searcher(model, torch.zeros(1, 2), steps=60)
    for step in range(60):
        factors = torch.cat([layer.factors for layer in layers])
        turning = torch.sin(1.7 * torch.arange(12) + step / 7)
        loss = ((torch.randn(12) + turning) * factors).sum()
        (loss + 0 * model(torch.rand(8, 2)).sum()).backward()
        searcher.step()
    choices = searcher.finish().choices
    for layer, names in zip(layers, choices.values(), strict=True):
        factors = dict(zip(layer.names, layer.factors.tolist(), strict=True))
        assert all(factors[name] > 0 for name in names)


@pytest.mark.parametrize("penalty", [None, 0.05])
def test_gradients_before_anything_is_pressed_decide(penalty: float | None) -> None:
    """Neither a penalty, nor noise, nor what the loss says of what is pressed."""
    layer = LayerChoice({"better": nn.Linear(2, 2), "other": nn.Linear(2, 2)}, label="layer")
    model = nn.Sequential(layer)
    config = SearchConfig(penalty=penalty)
    searcher = Searcher(model, torch.zeros(1, 2), steps=200, config=config)
    for step in range(200):
        better, other = layer.factors
        early = 0.01 * (other - better) + 0.1 * math.sin(step) * other
        late = 0.1 * (better - other)
        ((early if step < 100 else late) + 0 * model(torch.rand(8, 2)).sum()).backward()
        searcher.step()
        if step < 99:
            assert searcher.live == {"layer": ("better", "other")}
            assert 0.9 < layer.factors.min() < layer.factors.max() < 1.1
    assert dict(searcher.finish().choices) == {"layer": ["better"]}
    assert searcher.removals.by_penalty == 1


def start(steps: int = 20, **options: Any):
    torch.manual_seed(0)
    model = small()
    searcher = Searcher(model, torch.zeros(1, 4), steps=steps, **options)
    return model, searcher, torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)


def test_a_search_goes_on_where_it_was_saved() -> None:
    def whole(stop: int | None) -> Any:
        model, searcher, optimizer = start(60)
        batches = random_batches(1)
        train(searcher, optimizer, model, batches, stop or 60)
        if stop is None:
            return model, searcher
        saved = copy.deepcopy([searcher.state_dict(), model.state_dict(), optimizer.state_dict()])
        model, searcher, optimizer = start(60)
        searcher.load_state_dict(saved[0])
        model.load_state_dict(saved[1])
        optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)
        optimizer.load_state_dict(saved[2])
        train(searcher, optimizer, model, batches, 60 - stop)
        return model, searcher

    model, searcher = whole(None)
    for stop in (1, 25, 50):
        again, other = whole(stop)
        assert other.live == searcher.live
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, values in model.state_dict().items():
            torch.testing.assert_close(state[name], values, rtol=0, atol=0)


@pytest.mark.parametrize(("lacks", "has"), [("ranking", ()), ("staying", ("former",))])
def test_a_state_of_another_version_is_refused_in_one_line(lacks: str, has: tuple[str, ...]):
    _, searcher, _ = start()
    state = searcher.state_dict() | dict.fromkeys(has, 0)
    del state[lacks]
    differing = ", ".join(sorted((lacks, *has)))
    with pytest.raises(ValueError, match=rf"^the state must be of this version.*\({differing}\)"):
        start()[1].load_state_dict(state)


def test_weight_batches_do_not_move_factors_nor_factor_batches_weights() -> None:
    model, searcher, optimizer = start()
    batches = random_batches(0)
    x, y = next(batches)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    xf, yf = next(batches)
    other, second, _ = start()
    other.load_state_dict(model.state_dict())
    for net, search in ((model, searcher), (other, second)):
        F.cross_entropy(net(xf), yf).backward()
        search.step()
    for (label, places), others in zip(
        choices_of(model).items(), choices_of(other).values(), strict=True
    ):
        torch.testing.assert_close(places[0][1].factors, others[0][1].factors, msg=label)
    assert all(weight.grad is None for weight in searcher.weights())


def test_gradients_of_several_backward_passes_add_up() -> None:
    model, searcher, _ = start()
    other, second, _ = start()
    x, y = next(random_batches(0))
    model.eval(), other.eval()
    F.cross_entropy(model(x), y).backward()
    for some, answers in zip(x.chunk(2), y.chunk(2), strict=True):
        (F.cross_entropy(other(some), answers) / 2).backward()
    searcher.step()
    second.step()
    for mine, theirs in zip(choices_of(model).values(), choices_of(other).values(), strict=True):
        torch.testing.assert_close(mine[0][1].factors, theirs[0][1].factors)


def test_removed_weights_leave_the_users_optimizer() -> None:
    model, searcher, optimizer = start(60)
    before = sum(len(group["params"]) for group in optimizer.param_groups)
    train(searcher, optimizer, model, random_batches(0), 60)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) < before
    assert {id(p) for p in held} == {id(p) for p in searcher.weights()}
    assert set(optimizer.state) <= set(held)


def test_our_blocks_are_searched_by_the_same_searcher() -> None:
    torch.manual_seed(0)
    skeleton = Skeleton(input_channels=1, image_size=8, blocks=(1,), channels=(8,))
    space = SearchSpace(skeleton=skeleton, num_levels=2)
    network, part = Network(space.complete(), scaled=True), digits(0, 64)
    searcher = Searcher(network, steps=2 * len(list(part(0))), config=SearchConfig(epochs=4))
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for (x, y), (xf, yf) in zip(part(0), part(1), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            F.cross_entropy(network(xf), yf).backward()
            searcher.step()
    result = searcher.finish()
    assert searcher.live.num_live < space.complete().num_live
    assert result.cost == searcher.cost()
    x, _ = next(part(0))
    torch.testing.assert_close(result.model.eval()(x), network.eval()(x))


class Branches(nn.Module):
    """Sums of a useful convolution, a useless expensive one, and the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.useful = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in "12")
        self.useless = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3) for _ in "12")
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in "12")
        self.head = nn.Linear(16 * CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for useful, useless, norm in zip(self.useful, self.useless, self.norms, strict=True):
            x = norm(x + useful(x).relu() + useless(x.mean((2, 3), keepdim=True).expand_as(x)))
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


def test_a_traced_model_is_searched_by_the_same_searcher() -> None:
    torch.manual_seed(0)
    example, part, epochs = torch.zeros(2, 1, 8, 8), digits(0, 64), 4
    model = dsonas.scale_connections(Branches(), example)
    budget, steps = Budget(macs="40%"), epochs * len(list(part(0)))
    searcher = Searcher(model, example, budget=budget, steps=steps)
    whole = searcher.cost()
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for (x, y), (xf, yf) in zip(part(0), part(1), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            F.cross_entropy(model(xf), yf).backward()
            searcher.step()
    result = searcher.finish()
    assert result.cost <= 0.4 * whole
    assert not [name for names in result.choices.values() for name in names if "useless" in name]
    x, _ = next(part(0))
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=0, atol=1e-5)
    fresh = dsonas.scale_connections(Branches(), example)
    with pytest.raises(ValueError, match=r"budget\.macs must be at least"):
        Searcher(fresh, example, budget=Budget(macs=10), steps=1)


def test_a_sum_of_which_nothing_stays_is_not_normalised():
    example = torch.zeros(2, 1, 8, 8)
    searcher = Searcher(dsonas.scale_connections(Branches(), example), example, steps=20)
    vectors = searcher.supernet.vectors()
    with torch.no_grad():
        for vector in vectors:
            vector.copy_(torch.linspace(0.1, 0.2, len(vector)))
    before = [vector.tolist() for vector in vectors]
    staying = tuple((i > 0,) * len(vector) for i, vector in enumerate(vectors))
    searcher.supernet.normalise(searcher.optimizer, staying)
    assert vectors[0].tolist() == before[0]
    for vector in vectors[1:]:
        assert float(vector.detach().square().mean()) == pytest.approx(1, abs=1e-5)


class TestMistakes:
    """Each gets one clear line."""

    def test_a_step_without_backward(self) -> None:
        model, searcher, optimizer = start()
        with pytest.raises(ValueError, match="must follow the backward pass"):
            searcher.step()
        x, y = next(random_batches(0))
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with pytest.raises(ValueError, match="must follow the backward pass"):
            searcher.step()

    def test_an_optimizer_that_holds_factors(self) -> None:
        model, _, _ = searcher = start()
        wrong = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = next(random_batches(0))
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(ValueError, match=r"searcher\.weights\(\)"):
            wrong.step()
        del searcher

    def test_a_label_with_different_candidates(self) -> None:
        model = nn.Sequential(
            LayerChoice([nn.Identity()], label="x"), LayerChoice({"a": nn.Identity()}, label="x")
        )
        with pytest.raises(ValueError, match="'0' and '1' have the label 'x'"):
            Searcher(model, torch.zeros(1, 4), steps=1)

    def test_a_step_after_the_end(self) -> None:
        model, searcher, _ = start(1)
        for _ in range(1):
            x, y = next(random_batches(0))
            F.cross_entropy(model(x), y).backward()
            searcher.step()
        with pytest.raises(ValueError, match="all 1 steps are done"):
            searcher.step()
        searcher.finish()
        with pytest.raises(ValueError, match=r"finish\(\) was called"):
            searcher.step()

    @pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Sequential()])
    def test_a_model_without_choices(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match="neither LayerChoice nor InputChoice"):
            Searcher(model, torch.zeros(1, 4), steps=1)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_gradients_that_are_not_finite(self, value: float) -> None:
        model, searcher, _ = start()
        (model(next(random_batches(0))[0]).sum() * value).backward()
        with pytest.raises(ValueError, match="finite numbers"):
            searcher.step()

    def test_a_budget_that_only_the_width_can_meet(self) -> None:
        skeleton = Skeleton(input_channels=1, image_size=8, blocks=(1,), channels=(8,))
        network = Network(SearchSpace(skeleton=skeleton, num_levels=2).complete(), scaled=True)
        with pytest.raises(ValueError, match=r"budget\.params .*fit_width"):
            Searcher(network, budget=Budget(params=10), steps=1)

    def test_no_steps(self) -> None:
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            Searcher(small(), torch.zeros(1, 4), steps=0)

    def test_no_example(self) -> None:
        with pytest.raises(ValueError, match="example must be an input"):
            Searcher(small(), steps=1)

    def test_a_measure_that_is_not_counted(self) -> None:
        with pytest.raises(ValueError, match=r"budget\.latency_ms is not counted"):
            Searcher(small(), torch.zeros(1, 4), budget=Budget(latency_ms=1), steps=1)


def test_a_searcher_that_is_forgotten_watches_no_optimizers() -> None:
    model, searcher, _ = start()
    del searcher
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # nobody minds


def test_the_library_names_are_there() -> None:
    assert {"LayerChoice", "InputChoice", "Zero", "Searcher", "apply_choices"} <= set(dir(dsonas))
