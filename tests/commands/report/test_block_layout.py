"""A block's drawing: nothing overlaps, no line runs through a node, every connection is there."""

from random import Random

import pytest
from hypothesis import given, strategies as st

from dsonas.commands.report.drawings import NODE_HEIGHT, column, lay_out, live_lines
from dsonas.graph.block import BlockGraph
from helpers.builders import random_graph

OPERATIONS = ("a", "b", "c", "d")


@st.composite
def graphs(draw: st.DrawFn) -> BlockGraph:
    rng = Random(draw(st.integers(0, 10**6)))
    names = OPERATIONS[: draw(st.integers(1, 4))]
    return random_graph(rng, names, draw(st.integers(1, 4)), draw(st.floats(0, 1)))


@given(graphs())
def test_boxes_do_not_overlap_and_columns_are_levels(graph):
    layout = lay_out(graph)
    assert set(layout.nodes) == {0, *graph.kept_nodes, graph.output_node}
    assert set(layout.nodes) | set(layout.ghosts) == set(range(graph.output_node + 1))
    boxes = list((layout.nodes | layout.ghosts).items())
    for i, (node, box) in enumerate(boxes):
        assert box.x == layout.columns[column(graph, node)]
        for _, other in boxes[:i]:
            assert box.x != other.x or abs(box.y - other.y) >= NODE_HEIGHT


@given(graphs())
def test_everything_is_inside(graph):
    layout = lay_out(graph)
    for box in layout.nodes.values():
        assert box.left >= 0
        assert box.right <= layout.width
        assert box.height / 2 - 1e-6 <= box.y <= layout.height - box.height / 2 + 1e-6
    for box in layout.ghosts.values():
        assert layout.height < box.y <= layout.full_height - box.height / 2 + 1e-6


@given(graphs())
def test_lines_go_from_node_to_node_and_around_all_others(graph):
    layout = lay_out(graph)
    assert set(layout.routes) == set(live_lines(graph))
    for (source, target), points in layout.routes.items():
        start, end = layout.nodes[source], layout.nodes[target]
        assert points[0][0] == start.right
        assert points[-1][0] == end.left
        assert abs(points[0][1] - start.y) <= NODE_HEIGHT / 2
        assert abs(points[-1][1] - end.y) <= NODE_HEIGHT / 2
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        for x, y in points[1:-1]:  # level pieces as wide as a column of nodes
            for box in layout.nodes.values():
                assert not box.left <= x <= box.right or abs(y - box.y) > NODE_HEIGHT / 2


def test_the_order_avoids_crossings():
    """Two chains whose operations stand in opposite order: drawn straight, nothing crosses."""
    complete = BlockGraph.complete(("a", "b"), 2)
    wanted = {(1, 4), (2, 3), (3, 5), (4, 5)}
    graph = complete.prune([pair in wanted for pair in complete.connections]).clean()
    nodes = lay_out(graph).nodes
    assert (nodes[1].y < nodes[2].y) == (nodes[4].y < nodes[3].y)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_extremes(density):
    graph = random_graph(Random(0), OPERATIONS, 4, density)
    layout = lay_out(graph)
    assert len(layout.ghosts) == (0 if density else 16)
    assert layout.height > 0
