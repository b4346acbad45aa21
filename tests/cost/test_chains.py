"""One search meets any budget: the chain's structures, at any width."""

import json
from dataclasses import asdict, replace
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from dsonas.cost.budgets import Budget, InfeasibleBudgetError, fit_width, smallest_architecture
from dsonas.cost.chains import chain_from_json, chain_to_json, distinct, fit_chain, is_chain
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.jsonvalues import ArchitectureError
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.search.removal import follow_plan
from dsonas.search.search_config import SearchConfig

seeds = st.integers(0, 10**6)
measures = st.sampled_from(["macs", "params", "memory_bytes"])


def searched(seed: int, *, shared: bool | None = None) -> list[Architecture]:
    """The chain of a search that was not trained."""
    rng = Random(seed)
    shared = rng.random() < 0.5 if shared is None else shared
    stages = rng.randint(1, 3)
    skeleton = Skeleton(
        image_size=14,
        input_channels=1,
        blocks=(1,) * stages,
        channels=tuple(8 * 2**stage for stage in range(stages)),
    )
    sharing = "share" if shared else "full"
    chain = [Architecture.complete(skeleton, PAPER_OPERATIONS, 3, sharing)]
    factors = [[rng.uniform(0.1, 1) for _ in cell.live] for cell in chain[0].cells]
    plan = SearchConfig(keep_cost=0.35, keep_connections=0.35)
    for epoch in range(5):
        chain.append(follow_plan(plan, (epoch + 1) / 5, chain[0], chain[-1], factors))
    return distinct(chain)


def cost(architecture: Architecture, measure: str) -> float:
    return getattr(architecture_cost(architecture), measure)


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 1.2), measures, st.booleans())
def test_every_budget_is_met_within_3_percent_and_never_exceeded(seed, share, measure, full_width):
    chain = searched(seed)
    bound = share * cost(chain[0], measure)
    found = fit_chain(chain, Budget(**{measure: bound}), at_full_width=full_width)
    assert 0.97 * bound <= cost(found, measure) <= bound


def test_coarse_widths_do_not_cost_an_operation():
    """The nearest widths leave 4 % unused; those further away keep both convolutions."""
    skeleton = Skeleton(
        stem="imagenet", input_channels=1, image_size=28, blocks=(2, 2), channels=(16, 32)
    )
    complete = Architecture.complete(skeleton, PAPER_OPERATIONS, 3)
    kept = {(0, 1), (0, 2), (1, 13), (2, 13)}
    graph = complete.blocks[0]
    graph = graph.prune([pair in kept for pair in graph.connections])
    pair = replace(complete, blocks=(graph,) * 4)
    found = fit_chain([complete, pair], Budget(macs="3M"), multiple=4)
    assert found.blocks == pair.blocks
    assert found.skeleton.channels == (36, 96)
    assert 0.97 * 3e6 <= cost(found, "macs") <= 3e6


@settings(max_examples=15)
@given(seeds, st.floats(0.1, 0.9), measures)
def test_the_structure_found_is_kept_where_its_width_comes_close(seed, share, measure):
    chain = searched(seed)
    budget = Budget(**{measure: share * cost(chain[0], measure)})
    fitted = fit_width(chain[-1], budget)
    close = cost(fitted, measure) >= 0.97 * budget.bounds[measure]
    found = fit_chain(chain, budget)
    assert found == fitted if close else found.blocks != chain[-1].blocks


@settings(max_examples=15)
@given(seeds, measures)
def test_at_full_width_every_member_is_found_by_its_own_cost(seed: int, measure: str):
    chain = searched(seed)
    costs = [cost(member, measure) for member in chain]
    for member, bound in zip(chain, costs, strict=True):
        found = fit_chain(chain, Budget(**{measure: bound}), at_full_width=True)
        assert cost(found, measure) == bound
        assert found == member or costs.count(bound) > 1


@settings(max_examples=15)
@given(seeds, st.floats(0.2, 1), st.floats(0.2, 1))
def test_all_bounds_hold(seed: int, macs: float, params: float):
    chain = searched(seed)
    whole = architecture_cost(chain[0])
    budget = Budget(macs=macs * whole.macs, params=params * whole.params)
    found = fit_chain(chain, budget)
    assert 0.97 <= budget.use(asdict(architecture_cost(found))) <= 1


@settings(max_examples=10)
@given(seeds, st.floats(0.05, 0.5))
def test_what_is_found_is_a_member_or_lacks_a_few_connections(seed: int, share: float):
    chain = searched(seed, shared=False)
    found = fit_chain(chain, Budget(macs=share * cost(chain[0], "macs")))
    assert found.clean() == found
    assert all(graph.kept_nodes for graph in found.blocks)
    pairs = [zip(found.blocks, member.blocks, strict=True) for member in chain]
    assert any(
        all(b or not a for one, two in blocks for a, b in zip(one.live, two.live, strict=True))
        for blocks in pairs
    )


@settings(max_examples=10)
@given(seeds, st.sampled_from([2, 4]))
def test_channels_stay_multiples(seed: int, multiple: int):
    chain = searched(seed)
    budget = Budget(macs=0.5 * cost(chain[0], "macs"))
    found = fit_chain(chain, budget, multiple=multiple)
    assert all(width % multiple == 0 for width in found.skeleton.channels)
    assert cost(found, "macs") <= budget.bounds["macs"]


def test_a_latency_bound_is_met_by_the_preferred_member_alone():
    chain, asked = searched(3), []

    def measured(architecture: Architecture) -> float:
        asked.append(replace(architecture, skeleton=chain[0].skeleton))
        return cost(architecture, "macs") / 1e5

    budget = Budget(latency_ms=0.3 * cost(chain[0], "macs") / 1e5)
    found = fit_chain(chain, budget, measures={"latency_ms": measured})
    assert found.blocks == chain[-1].blocks
    assert measured(found) <= budget.bounds["latency_ms"]
    assert set(asked) <= set(chain)


def num_operations(architecture: Architecture) -> int:
    return sum(len(graph.kept_nodes) for graph in architecture.blocks)


@pytest.mark.parametrize("seed", range(6))
def test_operations_go_where_no_width_helps(seed):
    """As milliseconds of small networks do, which are those of calling their operations."""
    chain = searched(seed)

    def measured(architecture: Architecture) -> float:
        return float(num_operations(architecture))

    blocks = len(chain[0].blocks)
    found = fit_chain(chain, Budget(latency_ms=blocks), measures={"latency_ms": measured})
    assert num_operations(found) == blocks
    assert all(len(graph.kept_nodes) == 1 for graph in found.blocks)
    with pytest.raises(InfeasibleBudgetError, match="below the smallest network"):
        fit_chain(chain, Budget(latency_ms=blocks - 0.5), measures={"latency_ms": measured})


def test_a_budget_that_no_member_meets_is_refused():
    chain = searched(0)
    with pytest.raises(InfeasibleBudgetError, match="below the smallest network"):
        fit_chain(chain, Budget(params=20))


def test_without_bounds_the_structure_found_is_returned():
    chain = searched(0)
    assert fit_chain(chain, Budget()) is chain[-1]


@settings(max_examples=10)
@given(seeds)
def test_files_round_trip(seed: int):
    chain = searched(seed)
    text = chain_to_json(chain)
    assert chain_from_json(text) == chain
    assert is_chain(text)
    assert not is_chain(chain[0].to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format and version must be 'dsonas-chain' and 1"),
        ({"chain": []}, "at least one architecture"),
        ({"chain": 3}, "chain"),
        ({"more": 1}, "more"),
        ({"chain": [{"format": "x"}]}, "architecture"),
    ],
)
def test_wrong_files_are_refused_by_key(change, message: str):
    value = {**json.loads(chain_to_json(searched(0))), **change}
    with pytest.raises(ArchitectureError, match=message):
        chain_from_json(json.dumps(value))
    with pytest.raises(ArchitectureError, match="not a JSON file"):
        chain_from_json("{")


def test_repetitions_are_left_out():
    chain = searched(1)
    assert distinct([chain[0], chain[0], *chain, chain[-1]]) == chain


@settings(max_examples=15)
@given(seeds, measures)
def test_what_the_space_can_reach_is_met_though_the_search_has_kept_costly_operations(
    seed, measure
):
    chain = searched(seed)
    bound = cost(smallest_architecture(chain[0]), measure)
    assert cost(fit_chain(chain, Budget(**{measure: bound})), measure) <= bound
