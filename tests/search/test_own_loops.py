"""The searcher in the loops that people have: scaled, wrapped, compiled, in several processes."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dsonas
from dsonas import InputChoice, LayerChoice, Searcher, Zero
from dsonas.search.searcher import Removals
from dsonas.sparse.applying import Choices, choices_of

HERE = Path(__file__).parent


def net(**options) -> nn.Module:
    def layer() -> LayerChoice:
        return LayerChoice([nn.Linear(4, 4), nn.Identity(), nn.ReLU()], **options)

    torch.manual_seed(0)
    return nn.Sequential(layer(), layer(), nn.Linear(4, 2))


def loss_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(model(x).float(), (x[:, 0] > 0).long())


def loop(model: nn.Module, searcher: Searcher, steps: int) -> None:
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, 2 * step).backward()
        optimizer.step()
        loss_of(model, 2 * step + 1).backward()
        searcher.step()


def factors(model: nn.Module) -> torch.Tensor:
    places = choices_of(model).values()
    return torch.cat([found[0][1].factors.detach().clone() for found in places])


class TestGradScaler:
    """`scaler.step(searcher)`, as `scaler.step(optimizer)`."""

    def test_it_unscales(self) -> None:
        first, second = net(), net()
        plain = Searcher(first, torch.zeros(1, 4), steps=4)
        scaled = Searcher(second, torch.zeros(1, 4), steps=4)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        loss_of(first).backward()
        plain.step()
        scaler.scale(loss_of(second)).backward()
        scaler.step(scaled)
        scaler.update()
        torch.testing.assert_close(factors(first), factors(second))
        assert scaled.done == 1

    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    def test_a_batch_that_overflows_is_skipped(self, value: float) -> None:
        model = net()
        searcher = Searcher(model, torch.zeros(1, 4), steps=4)
        optimizer = torch.optim.SGD(searcher.weights(), lr=0.05)
        scaler, before = torch.amp.GradScaler("cpu", init_scale=1024.0), factors(model)
        for seed, factor in enumerate((value, 1.0)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, seed)).backward()
            scaler.step(optimizer)
            scaler.scale(loss_of(model, seed) * factor).backward()
            scaler.step(searcher)
            scaler.update()
            assert searcher.done == seed  # the first is skipped, the second is not
            assert torch.equal(factors(model), before) == (seed == 0)
        assert scaler.get_scale() == 512.0
        searcher.finish()

    def test_a_whole_search_in_half_precision(self) -> None:
        model = net()
        searcher = Searcher(model, torch.zeros(1, 4), steps=30, budget=dsonas.Budget(macs=24))
        optimizer = torch.optim.SGD(searcher.weights(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        for step in range(30):
            for one in (optimizer, searcher):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = loss_of(model, step)
                scaler.scale(loss).backward()
                scaler.step(one)
                scaler.update()
        assert searcher.finish().cost <= 24


@pytest.mark.parametrize(("done", "told"), [(0, True), (9, True), (20, False)])
def test_a_search_that_ends_too_early_is_told(done: int, told: bool, caplog) -> None:
    model = net()
    searcher = Searcher(model, torch.zeros(1, 4), steps=20, budget=dsonas.Budget(macs=24))
    loop(model, searcher, done)
    assert searcher.finish().cost <= 24
    assert (f"finish() came after {done} of 20 steps" in caplog.text) == told


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_searched(wrap) -> None:
    plain, inner = net(), net()
    wrapped = wrap(inner)
    for model in (plain, wrapped):
        searcher = Searcher(model, torch.zeros(1, 4), steps=30, budget=dsonas.Budget(macs=24))
        loop(model, searcher, 30)
        result = searcher.finish()
        assert list(result.choices) == ["0", "1"]
        assert type(result.model) is nn.Sequential
        again = dsonas.apply_choices(copy.deepcopy(model), result.choices)
        again.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(factors(inner), factors(plain))


class Keeps(nn.Module):
    """Called by keywords; what it has computed, and a weight, stay in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 4), Zero(), nn.utils.weight_norm(nn.Linear(4, 4))])
        self.head = nn.Linear(4, 2)

    def forward(self, *, x, shift):
        self.seen = {"features": [x + self.layer(x)]}
        return self.head(self.seen["features"][0]) + shift


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_frozen_model_that_keeps_what_it_computes_and_is_called_by_keywords() -> None:
    model, example = Keeps(), {"x": torch.zeros(1, 4), "shift": torch.ones(1)}
    model.requires_grad_(False)
    searcher = Searcher(model, example, budget=dsonas.Budget(macs="70%"), steps=12)
    for step in range(12):
        loss_of(lambda x: model(x=x, shift=0), step).backward()
        searcher.step()
    result, x = searcher.finish(), torch.randn(3, 4)
    expected = model.eval()(x=x, shift=1)
    torch.testing.assert_close(result.model.eval()(x=x, shift=1), expected)
    again = dsonas.apply_choices(Keeps(), dict(result.choices), example)
    again.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(again.eval()(x=x, shift=1), expected)


def test_a_module_compiled_inside_keeps_its_choices() -> None:
    model = net()
    model[0] = torch.compile(model[0], backend="eager")
    searcher = Searcher(model, torch.zeros(1, 4), steps=20)
    loop(model, searcher, 20)
    assert [len(names) for names in searcher.finish().choices.values()] == [1, 1]


@pytest.mark.slow
def test_two_processes_of_a_plain_loop_come_to_the_same(tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(HERE / "ddp_loop.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["cost"] <= 0.4 * first["whole"]
    assert len(first["passed"]) > 2
    for key in ("choices", "passed", "cost"):
        assert first[key] == second[key]
    for name, values in first["weights"].items():
        assert torch.equal(values, second["weights"][name]), name


class Twice(nn.Module):
    """One choice that runs twice in a call, and one inside a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice({"a": nn.Linear(4, 4), "b": nn.Identity()})
        self.list = nn.ModuleList([nn.ModuleDict({"x": InputChoice(2, keep=1)})])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer(x)
        return self.head(self.list[0]["x"]([self.layer(y), y]))


def test_a_choice_that_runs_twice_in_a_call() -> None:
    model = Twice()
    searcher = Searcher(model, torch.zeros(1, 4), steps=20)
    assert searcher.cost() == 2 * 16 + 8
    assert searcher.supernet.cost(searcher.live, "params") == 20 + 2 * 8 + 10
    loop(model, searcher, 20)
    result, x = searcher.finish(), torch.randn(3, 4)
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


def test_results_are_copied_and_pickled() -> None:
    model = net()
    searcher = Searcher(model, torch.zeros(1, 4), steps=10)
    loop(model, searcher, 10)
    result, x = searcher.finish(), torch.randn(3, 4)
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other.choices == result.choices
        assert other.choices.features == result.choices.features
        assert torch.equal(other.model.eval()(x), result.model.eval()(x))
    again = copy.deepcopy(model)
    assert torch.equal(again.eval()(x), model.eval()(x))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 7), (5, 4, 6, 6), (5, 4, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_features_of_any_rank_and_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = nn.Sequential(LayerChoice([nn.Identity(), nn.Tanh()], keep=2), nn.Flatten())
    model.to(dtype)
    searcher = Searcher(model, torch.zeros(1, *shape[1:], dtype=dtype), steps=4)
    for seed in range(4):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        model(x).square().mean().backward()
        searcher.step()
    result = searcher.finish()
    atol = 1e-5 if dtype != torch.bfloat16 else 5e-2
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=0, atol=atol)


class LongThanWide(nn.Module):
    """Reads a value, which no meta device has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice([nn.Linear(4, 4), nn.Identity()])

    def forward(self, x):
        return self.layer(x) if x.sum().item() >= 0 else x


def test_a_model_that_reads_values_is_counted_all_the_same() -> None:
    assert Searcher(LongThanWide(), torch.zeros(1, 4), steps=1).cost() == 16


class TestCandidates:
    """What a candidate gives is checked, with one clear line."""

    @pytest.mark.parametrize("normalise", [True, False])
    def test_tuples(self, normalise: bool) -> None:
        model = LayerChoice({"lstm": nn.LSTM(4, 4), "skip": nn.Identity()}, normalise=normalise)
        for call in (lambda: model(torch.zeros(2, 3, 4)), lambda: Searcher(
            nn.Sequential(model), torch.zeros(2, 3, 4), steps=1
        )):  # fmt: skip
            with pytest.raises(TypeError, match="'lstm' must give one tensor, got tuple"):
                call()

    @pytest.mark.parametrize("other", [Zero(), nn.Identity(), nn.AdaptiveAvgPool2d(1)])
    def test_shapes_that_differ(self, other: nn.Module) -> None:
        model = nn.Sequential(LayerChoice([nn.Conv2d(3, 3, 3, 2, 1), other], normalise=False))
        for call in (lambda: model(torch.zeros(2, 3, 8, 8)), lambda: Searcher(
            model, torch.zeros(1, 3, 8, 8), steps=1
        )):  # fmt: skip
            with pytest.raises(ValueError, match="one shape"):
                call()

    def test_inputs_of_other_shapes(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            InputChoice(2)([torch.zeros(2, 3), torch.zeros(2, 1)])

    def test_a_rank_that_nothing_normalises(self) -> None:
        with pytest.raises(ValueError, match="normalise=False"):
            LayerChoice([nn.Identity()])(torch.zeros(3))

    def test_complex_numbers(self) -> None:
        with pytest.raises(ValueError, match="normalise=False"):
            LayerChoice([nn.Identity()])(torch.zeros(3, 4, dtype=torch.complex64))
        plain = LayerChoice([nn.Identity()], normalise=False)
        assert plain(torch.zeros(3, 4, dtype=torch.complex64)).is_complex()


class TestNotebook:
    """What a notebook shows of a result."""

    def test_choices_and_cost(self) -> None:
        model = nn.Sequential(LayerChoice({"<b>": nn.Linear(4, 4), "skip": nn.Identity()}))
        budget = dsonas.Budget(macs="50%", params=1000)
        searcher = Searcher(model, torch.zeros(1, 4), steps=2, budget=budget)
        result = searcher.finish()
        page = result._repr_html_()
        assert "&lt;b&gt;" in page
        assert "<b>" not in page.replace("<b>0</b>", "")
        assert "0 % of the budget 8, 0 % of the supernet 16" in page

    def test_blocks_are_drawn(self) -> None:
        skeleton = dsonas.Skeleton(input_channels=1, image_size=8, blocks=(1,), channels=(4,))
        space = dsonas.SearchSpace(skeleton=skeleton, num_levels=2)
        network = dsonas.Network(space.complete(), scaled=True)
        page = Searcher(network, steps=1).finish()._repr_html_()
        assert "level 1" in page

    def test_traced_models_and_results_made_by_hand(self) -> None:
        model = dsonas.scale_connections(Sum(), torch.zeros(1, 4))
        assert "multiply-adds" in Searcher(model, torch.zeros(1, 4), steps=1).finish()._repr_html_()
        chosen = dsonas.SearchResult(nn.Identity(), Choices({"x": ["a"]}), 2.0, None, Removals())
        assert "no budget" in chosen._repr_html_()


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Shared(nn.Module):
    """A module that stands in two choices, and would come first in the one that drops it."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(4, 4)
        cheap = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
        self.first = dsonas.LayerChoice({"shared": shared, "none": dsonas.Zero()})
        self.middle = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4))
        self.second = dsonas.LayerChoice({"shared": shared, "cheap": cheap})
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.middle(x + self.first(x))))


def test_a_module_in_two_places_learns_on_where_it_stays_and_resumes() -> None:
    def begin() -> tuple[nn.Module, dsonas.Searcher]:
        torch.manual_seed(0)
        model = Shared()
        return model, dsonas.Searcher(model, torch.zeros(1, 4), steps=12)

    def some(
        model: nn.Module, searcher: Searcher, optimizer: torch.optim.Optimizer, steps: range
    ) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss_of(model, 2 * step).backward()
            optimizer.step()
            loss_of(model, 2 * step + 1).backward()
            searcher.step()
            if step == 2:  # what a search may come to
                searcher._remove({"first": ("none",), "second": ("shared",)})

    model, searcher = begin()
    optimizer = torch.optim.Adam(searcher.weights(), lr=0.01)
    some(model, searcher, optimizer, range(6))
    states = copy.deepcopy([part.state_dict() for part in (searcher, model, optimizer)])
    before = model.second["shared"].weight.clone()
    some(model, searcher, optimizer, range(6, 12))
    assert not model.second["shared"].weight.equal(before)

    again, resumed = begin()
    resumed.load_state_dict(states[0])
    again.load_state_dict(states[1])
    optimizer = torch.optim.Adam(resumed.weights(), lr=0.01)
    optimizer.load_state_dict(states[2])
    some(again, resumed, optimizer, range(6, 12))
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].equal(value)


@pytest.mark.parametrize("budget", [None, dsonas.Budget(macs="70%"), dsonas.Budget(params="60%")])
def test_what_ends_at_exactly_0_is_not_in_the_result(budget: dsonas.Budget | None) -> None:
    searcher = Searcher(model := net(keep=None), torch.zeros(1, 4), budget=budget, steps=10)
    with torch.no_grad():
        for layer in model[:2]:
            layer.factors.copy_(torch.tensor([0.0, 0.0, 1.0]))
    result = searcher.finish()
    assert result.choices == {"0": ["2"], "1": ["2"]}
    assert result.removals.by_penalty == 4
