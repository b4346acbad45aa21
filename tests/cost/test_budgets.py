"""The width meets the budget from below, closely, and grows with it."""

from dataclasses import asdict, replace
from random import Random

import pytest
from hypothesis import assume, given, settings, strategies as st

from dsonas.cost.budgets import (
    Budget,
    InfeasibleBudgetError,
    check_reachable,
    fit_width,
    parse_count,
    smallest_architecture,
)
from dsonas.cost.costs import Cost, architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from helpers.builders import random_architecture, random_skeleton

seeds = st.integers(0, 10**6)
measures = st.sampled_from(["macs", "params"])


def wide(seed: int, least: int = 8) -> Architecture:
    rng = Random(seed)
    skeleton = random_skeleton(rng)
    channels = tuple(rng.randint(least, 4 * least) for _ in skeleton.channels)
    return random_architecture(rng, replace(skeleton, channels=channels))


def narrowest(architecture: Architecture) -> Architecture:
    return architecture.with_channels([1] * len(architecture.skeleton.channels))


def cost(architecture: Architecture, measure: str) -> int:
    return getattr(architecture_cost(architecture), measure)


@settings(max_examples=20)
@given(seeds, st.floats(0.1, 3), measures)
def test_the_budget_is_used_up_from_below_at_the_same_shape(seed, target, measure):
    architecture = wide(seed)
    bound = target * cost(architecture, measure)
    assume(bound >= cost(narrowest(architecture), measure))
    found = fit_width(architecture, Budget(**{measure: bound}))
    assert cost(found, measure) <= bound
    assert (found.blocks, found.reductions) == (architecture.blocks, architecture.reductions)
    widths, base = found.skeleton.channels, architecture.skeleton.channels
    assert cost(found.with_channels([width + 1 for width in widths]), measure) > bound
    pairs = [(w, b) for w, b in zip(widths, base, strict=True) if w > 1]
    multipliers = [((w - 2) / b, (w + 2) / b) for w, b in pairs]  # -1 to 2 steps off the floor
    assert max([m[0] for m in multipliers], default=0) < min([m[1] for m in multipliers], default=1)


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("target", [0.1, 0.3, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_within_3_percent_at_realistic_widths(seed: int, target: float, measure: str):
    rng = Random(seed)
    skeleton = Skeleton(image_size=rng.choice((28, 32)), blocks=(2, 2, 2), channels=(32, 64, 128))
    architecture = random_architecture(rng, skeleton, density=0.5)
    bound = target * cost(architecture, measure)
    found = cost(fit_width(architecture, Budget(**{measure: bound})), measure)
    assert 0.97 * bound <= found <= bound


@settings(max_examples=30)
@given(seeds, st.floats(0.1, 3), st.floats(0.1, 3), measures)
def test_a_larger_budget_never_gives_a_cheaper_network(seed, one, two, measure):
    architecture = wide(seed)
    bounds = [target * cost(architecture, measure) for target in sorted((one, two))]
    assume(bounds[0] >= cost(narrowest(architecture), measure))
    found = [fit_width(architecture, Budget(**{measure: bound})) for bound in bounds]
    assert cost(found[0], measure) <= cost(found[1], measure)


@settings(max_examples=20)
@given(seeds, st.floats(0.2, 2), st.floats(0.2, 2))
def test_every_bound_holds(seed: int, macs: float, params: float):
    architecture = wide(seed)
    base = architecture_cost(architecture)
    budget = Budget(macs=macs * base.macs, params=params * base.params)
    assume(budget.use(asdict(architecture_cost(narrowest(architecture)))) <= 1)
    found = architecture_cost(fit_width(architecture, budget))
    assert found.macs <= budget.macs
    assert found.params <= budget.params
    assert budget.use(asdict(found)) <= 1


@settings(max_examples=20)
@given(seeds, measures)
def test_the_smallest_network_is_reached_and_below_it_is_refused(seed: int, measure: str):
    architecture = wide(seed)
    smallest = narrowest(architecture)
    least = cost(smallest, measure)
    assert fit_width(architecture, Budget(**{measure: least})) == smallest
    with pytest.raises(InfeasibleBudgetError, match=rf"\b{least} {measure}\b"):
        fit_width(architecture, Budget(**{measure: least - 0.5}))


@settings(max_examples=20)
@given(seeds, measures)
def test_unreachable_budgets_are_refused_before_any_training(seed: int, measure: str):
    """No random network of the space is cheaper than what is called the smallest."""
    supernet = Architecture.complete(wide(seed).skeleton, ("separable_conv3x3", "max_pool3x3"), 2)
    least = cost(smallest_architecture(supernet), measure)
    check_reachable(supernet, Budget(**{measure: least}))
    with pytest.raises(InfeasibleBudgetError, match=rf"\b{least} {measure}\b"):
        check_reachable(supernet, Budget(**{measure: least - 0.5}))
    other = random_architecture(
        Random(seed), supernet.skeleton, shared=True,
        operations=supernet.operations, num_levels=2, density=0.5,
    )  # fmt: skip
    if other.blocks[0].kept_nodes:
        assert cost(narrowest(other), measure) >= least


def test_without_bounds_nothing_changes():
    architecture = wide(0)
    assert fit_width(architecture, Budget()) is architecture
    assert Budget().use(asdict(Cost(10**12, 10**12))) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5M", 1.5e6), ("1.5m", 1.5e6), (" 2k ", 2e3), ("3G", 3e9), ("3B", 3e9), ("7", 7.0),
        (12, 12.0), (1.5, 1.5), ("1e6", 1e6), ("1e3k", 1e6), ("2 M", 2e6),
    ],
)  # fmt: skip
def test_counts(text, value: float):
    assert parse_count(text) == pytest.approx(value)
    assert Budget(params=text).bounds == {"params": pytest.approx(value)}


@pytest.mark.parametrize(
    "text", ["", " ", "M", "x", "-1", "0", 0, -5, "1.5MM", "nan", "inf", "1T", "1,5M", None, True]
)
def test_counts_that_are_refused_by_name(text):
    with pytest.raises(ValueError, match=r"^here must be a positive number.*got"):
        parse_count(text, "here")


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_budget_names_its_wrong_bound(name: str):
    with pytest.raises(ValueError, match=rf"budget\.{name} must be .*'5 apples'"):
        Budget(**{name: "5 apples"})


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1, 10**6))
def test_use_is_the_tightest_bound(macs, params, used_macs, used_params):
    use = Budget(macs=macs, params=params).use(asdict(Cost(used_macs, used_params)))
    assert use == pytest.approx(max(used_macs / macs, used_params / params))


def test_a_share_of_nothing_is_told() -> None:
    with pytest.raises(ValueError, match=r"budget\.macs must not be a share.* 0, got 50%"):
        Budget(macs="50%").of(lambda name: 0.0)
