"""Marginal costs are what a pruned and cleaned network no longer has."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings, strategies as st

from dsonas.cost.costs import Cost, architecture_cost
from dsonas.graph.architecture import Architecture
from dsonas.graph.block import BlockGraph
from helpers.builders import random_architecture, random_skeleton

seeds = st.integers(0, 10**6)


def costs_of(architecture: Architecture, places, without) -> dict[tuple[int, int], Cost]:
    before = architecture_cost(architecture)
    return {
        place: before - architecture_cost(without(architecture, place))
        for place in places(architecture)
    }


def connection_costs(architecture: Architecture) -> dict[tuple[int, int], Cost]:
    return costs_of(architecture, Architecture.connection_places, Architecture.without_connection)


def operation_costs(architecture: Architecture) -> dict[tuple[int, int], Cost]:
    return costs_of(architecture, Architecture.operation_places, Architecture.without_operation)


def case(seed: int) -> tuple[Architecture, bool]:
    rng = Random(seed)
    architecture = random_architecture(rng, random_skeleton(rng, largest=16))
    return architecture, architecture.sharing == "share"


def pruned(architecture: Architecture, place: int, gone, shared: bool) -> Architecture:
    """Written out once more: the flags of a block without some connections, then cleaned."""
    blocks = []
    for i, graph in enumerate(architecture.blocks):
        if shared or i == place:
            pairs = zip(graph.connections, graph.live, strict=True)
            live = tuple(alive and not gone(k, pair) for k, (pair, alive) in enumerate(pairs))
            graph = BlockGraph(graph.operations, graph.num_levels, live)
        blocks.append(graph)
    return replace(architecture, blocks=tuple(blocks)).clean()


@settings(max_examples=20)
@given(seeds)
def test_marginal_costs_are_differences_after_cleaning(seed: int):
    architecture, shared = case(seed)
    before = architecture_cost(architecture)
    for (place, i), cost in connection_costs(architecture).items():
        rest = pruned(architecture, place, lambda k, _, i=i: k == i, shared)
        assert cost == before - architecture_cost(rest)
        assert min(cost.macs, cost.params, cost.memory_bytes) >= 0
    for (place, node), cost in operation_costs(architecture).items():
        rest = pruned(architecture, place, lambda _, pair, node=node: node in pair, shared)
        assert cost == before - architecture_cost(rest)
        assert cost.params > 0 <= cost.macs


@settings(max_examples=40)
@given(seeds)
def test_everything_live_and_nothing_else_has_a_marginal_cost(seed: int):
    architecture, shared = case(seed)
    graphs = architecture.blocks[:1] if shared else architecture.blocks
    places = {(g, i) for g, graph in enumerate(graphs) for i, a in enumerate(graph.live) if a}
    assert connection_costs(architecture).keys() == places
    nodes = {(g, node) for g, graph in enumerate(graphs) for node in graph.kept_nodes}
    assert operation_costs(architecture).keys() == nodes


@settings(max_examples=30)
@given(seeds, st.floats(0.3, 0.9))
def test_cleaning_changes_no_marginal_cost(seed: int, density: float):
    """What cleaning drops costs nothing; the rest costs the same before and after it."""
    architecture, shared = case(seed)
    rng = Random(seed)
    first = [rng.random() < density for _ in architecture.blocks[0].live]
    blocks = [
        graph.prune(first if shared else [rng.random() < density for _ in graph.live])
        for graph in architecture.blocks
    ]
    dirty = replace(architecture, blocks=tuple(blocks))
    clean = connection_costs(dirty.clean())
    for place, cost in connection_costs(dirty).items():
        assert cost == clean.get(place, Cost())
    assert operation_costs(dirty) == operation_costs(dirty.clean())


@settings(max_examples=30)
@given(seeds)
def test_removed_one_by_one_marginal_costs_sum_to_the_whole_difference(seed: int):
    start, _ = case(seed)
    rng, current, total = Random(seed), start, Cost()
    while costs := connection_costs(current):
        if rng.random() < 0.5 and (nodes := operation_costs(current)):
            place = rng.choice(sorted(nodes))
            total, current = total + nodes[place], current.without_operation(place)
        else:
            place = rng.choice(sorted(costs))
            total, current = total + costs[place], current.without_connection(place)
    assert current.num_live == sum(map(sum, current.reductions))
    assert total == architecture_cost(start) - architecture_cost(current)


@settings(max_examples=30)
@given(seeds)
def test_an_operation_costs_at_least_what_any_of_its_connections_does(seed: int):
    architecture, _ = case(seed)
    nodes = operation_costs(architecture)
    for (place, i), cost in connection_costs(architecture).items():
        for node in architecture.blocks[place].connections[i]:
            whole = nodes.get((place, node))
            if whole is not None:
                assert cost.macs <= whole.macs
                assert cost.params <= whole.params
                assert cost.memory_bytes <= whole.memory_bytes


@settings(max_examples=30)
@given(seeds)
def test_in_a_share_space_the_parts_of_all_blocks_go_together(seed: int):
    rng = Random(seed)
    architecture = random_architecture(rng, random_skeleton(rng, largest=16), shared=True)
    together = connection_costs(architecture)
    alone = connection_costs(replace(architecture, sharing="full"))
    blocks = range(architecture.skeleton.num_blocks)
    for (_, i), cost in together.items():
        assert cost == sum((alone[block, i] for block in blocks), Cost())


@settings(max_examples=30)
@given(seeds)
def test_a_reduction_block_keeps_one_branch(seed: int):
    architecture, _ = case(seed)
    costs = costs_of(architecture, Architecture.branch_places, Architecture.without_branch)
    before = architecture_cost(architecture)
    for stage, live in enumerate(architecture.reductions):
        for branch in range(2):
            left = tuple(alive and i != branch for i, alive in enumerate(live))
            if not all(live):
                assert (stage, branch) not in costs
                continue
            flags = list(architecture.reductions)
            flags[stage] = left
            rest = replace(architecture, reductions=tuple(flags))
            assert costs[stage, branch] == before - architecture_cost(rest)
            assert costs[stage, branch].macs > 0
