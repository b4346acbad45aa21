"""Importance flows like a liquid: nothing is lost, nothing is counted twice."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from dsonas.graph.block import BlockGraph
from dsonas.search.removal import connection_flows, node_importance
from helpers.builders import random_graph


def case(seed: int, zeros: float = 0.0):
    rng = Random(seed)
    graph = random_graph(
        rng, "abcd"[: rng.randint(1, 4)], rng.randint(1, 4), rng.choice((0.3, 0.6, 1.0))
    )
    factors = [
        rng.uniform(0.05, 2) if alive and rng.random() >= zeros else 0.0 for alive in graph.live
    ]
    return graph, factors


def flow_through(graph: BlockGraph, flows, node: int, side: int) -> float:
    pairs = zip(graph.connections, flows, strict=True)
    return sum(flow for pair, flow in pairs if pair[side] == node)


seeds = st.integers(0, 10**6)


@settings(max_examples=100)
@given(seeds)
def test_flows_are_conserved(seed: int):
    graph, factors = case(seed)
    flows = connection_flows(graph, factors)
    assert all(0 <= flow <= 1 + 1e-12 for flow in flows)
    dead = [flow for flow, alive in zip(flows, graph.live, strict=True) if not alive]
    assert not any(dead)
    if not graph.kept_nodes:
        return
    assert flow_through(graph, flows, graph.output_node, 1) == pytest.approx(1)
    worth = node_importance(graph, flows)
    assert set(worth) == set(graph.kept_nodes)
    for node, value in worth.items():
        assert value == pytest.approx(flow_through(graph, flows, node, 0))
        if graph.level(node) > 1:
            assert flow_through(graph, flows, node, 1) == pytest.approx(value)
    first_level = sum(value for node, value in worth.items() if graph.level(node) == 1)
    from_input = flow_through(graph, flows, 0, 0) + first_level
    assert from_input == pytest.approx(1)


@settings(max_examples=60)
@given(seeds, st.floats(0.01, 100), st.data())
def test_the_scale_of_a_vector_of_factors_is_free(seed: int, scale: float, data):
    graph, factors = case(seed)
    target = data.draw(st.sampled_from(range(1, graph.output_node + 1)))
    scaled = [
        value * (scale if pair.target == target else 1)
        for pair, value in zip(graph.connections, factors, strict=True)
    ]
    assert connection_flows(graph, scaled) == pytest.approx(connection_flows(graph, factors))


def test_flows_follow_squared_factors():
    graph = BlockGraph.complete(("a", "b"), 2)
    factors = dict.fromkeys(graph.connections, 0.0)
    factors |= {(0, 3): 1.0, (1, 3): 2.0, (2, 3): 0.0, (3, 5): 3.0, (1, 5): 1.0}
    flows = connection_flows(graph, [factors[pair] for pair in graph.connections])
    found = dict(zip(graph.connections, flows, strict=True))
    expected = {(3, 5): 0.9, (1, 5): 0.1, (0, 3): 0.18, (1, 3): 0.72}
    assert {pair: flow for pair, flow in found.items() if flow} == pytest.approx(expected)
    assert node_importance(graph, flows) == pytest.approx({1: 0.82, 2: 0, 3: 0.9, 4: 0})


def test_an_operation_all_of_whose_inputs_are_0_is_worth_nothing():
    graph = BlockGraph.complete(("a", "b"), 2)
    factors = dict.fromkeys(graph.connections, 0.0)
    factors |= {(0, 1): 1.0, (1, 5): 1.0, (3, 5): 2.0}  # nothing arrives at 3
    flows = connection_flows(graph, [factors[pair] for pair in graph.connections])
    assert node_importance(graph, flows) == {1: 1, 2: 0, 3: 0, 4: 0}


@settings(max_examples=60)
@given(seeds)
def test_zero_factors_carry_nothing(seed: int):
    graph, factors = case(seed, zeros=0.5)
    flows = connection_flows(graph, factors)
    assert all(flow == 0 for flow, value in zip(flows, factors, strict=True) if value == 0)
    for node in graph.kept_nodes:
        arriving, leaving = (flow_through(graph, flows, node, side) for side in (1, 0))
        assert arriving <= leaving + 1e-12 or graph.level(node) == 1


@settings(max_examples=60)
@given(seeds, st.data())
def test_without_node_is_the_cleaned_rest(seed: int, data):
    graph, _ = case(seed)
    if not graph.kept_nodes:
        return
    node = data.draw(st.sampled_from(graph.kept_nodes))
    smaller = graph.without_node(node)
    assert smaller.clean() == smaller
    assert set(smaller.kept_nodes) < set(graph.kept_nodes)
    assert node not in smaller.kept_nodes
    touched = [node in pair for pair in graph.connections]
    expected = [a and not t for a, t in zip(graph.live, touched, strict=True)]
    assert smaller == BlockGraph(graph.operations, graph.num_levels, tuple(expected)).clean()
