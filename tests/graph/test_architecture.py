"""Cleaning against brute force, and JSON round trips."""

from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from dsonas.graph.architecture import Architecture, Skeleton, scale_channels
from dsonas.graph.block import BlockGraph, block_connections
from dsonas.graph.jsonvalues import ArchitectureError
from helpers.builders import random_architecture


@st.composite
def graphs(draw) -> BlockGraph:
    levels, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = len(block_connections(levels, count))
    seed = draw(st.integers(0, 2**32))
    rng, density = Random(seed), draw(st.sampled_from([0.05, 0.1, 0.2, 0.4, 0.8, 1.0]))
    live = tuple(rng.random() < density for _ in range(size))
    return BlockGraph(tuple("abcd"[:count]), levels, live)


def descendants(edges: set[tuple[int, int]], start: int) -> set[int]:
    seen, border = {start}, [start]
    while border:
        node = border.pop()
        fresh = {t for s, t in edges if s == node} - seen
        seen |= fresh
        border += fresh
    return seen


def kept_by_brute_force(graph: BlockGraph) -> set[int]:
    edges = {pair for pair, alive in zip(graph.connections, graph.live, strict=True) if alive}
    edges |= {(0, node) for node in range(1, 1 + len(graph.operations))}
    backwards = {(t, s) for s, t in edges}
    end = graph.output_node
    return (descendants(edges, 0) & descendants(backwards, end)) - {0, end}


@settings(max_examples=200)
@given(graphs())
def test_cleaning_keeps_what_lies_between_input_and_output(graph: BlockGraph):
    kept = kept_by_brute_force(graph)
    assert set(graph.kept_nodes) == kept
    inside = kept | {0, graph.output_node}
    expected = tuple(
        alive and s in inside and t in inside
        for (s, t), alive in zip(graph.connections, graph.live, strict=True)
    )
    cleaned = graph.clean()
    assert cleaned.live == expected
    assert cleaned.clean() == cleaned
    assert cleaned.kept_nodes == graph.kept_nodes


@settings(max_examples=50)
@given(graphs())
def test_inputs_are_the_live_sources(graph: BlockGraph):
    live = [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if alive]
    listed = [(s, t) for t, sources in graph.inputs.items() for s in sources]
    implicit = [(0, node) for node in range(1, 1 + len(graph.operations))]
    assert sorted(listed) == sorted(live + implicit)
    assert graph.num_live == len(live)


@given(st.integers(1, 5), st.integers(1, 5))
def test_packed_connections_are_every_pair_of_levels_once(levels: int, count: int):
    pairs = block_connections(levels, count)
    end = 1 + levels * count
    level = {0: 0, end: levels + 1} | {1 + i: 1 + i // count for i in range(levels * count)}
    expected = {
        (s, t)
        for s in range(end)
        for t in range(1, end + 1)
        if level[s] < level[t] and level[t] > 1 and (s, t) != (0, end)
    }
    assert set(pairs) == expected
    assert len(pairs) == len(expected)
    assert list(pairs) == sorted(pairs, key=lambda pair: (pair.target, pair.source))


@settings(max_examples=100)
@given(st.integers(0, 10**9))
def test_json_round_trip(seed: int):
    architecture = random_architecture(Random(seed))
    text = architecture.to_json()
    assert Architecture.from_json(text) == architecture
    assert Architecture.from_json(text).to_json() == text


def test_file_round_trip(tmp_path):
    architecture = random_architecture(Random(1))
    architecture.save(tmp_path / "net.json")
    assert Architecture.load(tmp_path / "net.json") == architecture


@settings(max_examples=30)
@given(st.integers(0, 10**9))
def test_num_live_and_clean_of_a_whole_architecture(seed: int):
    architecture = random_architecture(Random(seed))
    assert architecture.clean() == architecture
    flags = sum(sum(graph.live) for graph in architecture.blocks)
    assert architecture.num_live == flags + sum(sum(pair) for pair in architecture.reductions)


def test_prune_never_revives():
    graph = BlockGraph.complete("ab", 2)
    dead = graph.prune([False] * len(graph.live))
    assert dead.prune([True] * len(graph.live)) == dead


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"stem": "resnet"}, "stem"),
        ({"input_channels": 0}, "input_channels"),
        ({"image_size": 0}, "image_size"),
        ({"num_classes": 1}, "num_classes"),
        ({"blocks": (), "channels": ()}, "blocks"),
        ({"blocks": (1, 0), "channels": (4, 8)}, "blocks"),
        ({"blocks": (1, 1), "channels": (4,)}, "channels"),
        ({"blocks": (1,), "channels": (0,)}, "channels"),
    ],
)
def test_skeleton_refuses_by_name(changes: dict, name: str):
    with pytest.raises(ArchitectureError, match=f"^{name} must .*got"):
        Skeleton(**changes)


def test_pieces_that_do_not_fit_are_refused():
    whole = Architecture.complete(Skeleton(blocks=(1, 1), channels=(4, 8)), "ab", 2)
    other = BlockGraph.complete("abc", 2)
    for blocks, reductions in [
        (whole.blocks[:1], whole.reductions),
        ((whole.blocks[0], other), whole.reductions),
        (whole.blocks, ()),
        (whole.blocks, ((False, False),)),
        (whole.blocks, ((True,),)),
    ]:
        with pytest.raises(ArchitectureError):
            Architecture(whole.skeleton, blocks, reductions)
    with pytest.raises(ArchitectureError, match="live must hold"):
        BlockGraph(("a",), 2, (True,))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.floats(0, 4), st.floats(0, 4))
def test_scaled_channels_grow_with_the_multiplier(channels, one, two):
    low, high = sorted((one, two))
    pairs = zip(scale_channels(channels, low), scale_channels(channels, high), strict=True)
    assert all(1 <= a <= b for a, b in pairs)
    assert scale_channels(channels, 1) == tuple(channels)


@pytest.mark.parametrize(("size", "stem", "sizes"), [
    (32, "cifar", (32, 16, 8)), (33, "cifar", (33, 17, 9)),
    (224, "imagenet", (56, 28, 14)), (5, "imagenet", (2, 1, 1)),
])  # fmt: skip
def test_stage_sizes_round_up(size, stem, sizes):
    skeleton = Skeleton(stem=stem, image_size=size, blocks=(1, 1, 1), channels=(1, 1, 1))
    assert skeleton.stage_sizes == sizes
    assert skeleton.block_stages == (0, 1, 2)
