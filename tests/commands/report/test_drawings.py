"""The pictures: well-formed whatever the names are, and true to the numbers."""

import json
from random import Random
from xml.etree.ElementTree import fromstring

import pytest

from dsonas.commands.report.blockdrawing import draw_block
from dsonas.commands.report.charts import Band, Dot, Level, Series, line_chart, scatter_chart
from dsonas.commands.report.confusion import draw_confusion
from dsonas.commands.report.ordering import live_lines
from dsonas.commands.report.scales import Scale, linear_ticks, log_ticks, value_scale
from dsonas.commands.report.skeleton import draw_skeleton, parts
from dsonas.commands.report.svg import markup
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.graph import BlockGraph
from helpers.builders import random_architecture, random_graph

HOSTILE = '"><script>alert(1)</script>&\x00\x1b\ud800'
OPERATIONS = ("separable_conv3x3", "max_pool3x3")


def with_class(svg, name: str) -> list:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def test_a_block_shows_every_connection_once():
    graph = random_graph(Random(3), OPERATIONS, 3, 0.6)
    svg = fromstring(markup(draw_block(graph, None, "block")))
    drawn = [(int(e.get("data-s")), int(e.get("data-t"))) for e in with_class(svg, "edge")]
    assert sorted(drawn) == sorted(live_lines(graph))
    dead = [(int(e.get("data-s")), int(e.get("data-t"))) for e in with_class(svg, "line")]
    level_1 = sum(graph.level(n) == 1 for n in range(1, 7) if n not in graph.kept_nodes)
    assert len(dead) == len(set(dead)) == len(graph.live) - graph.num_live + level_1
    assert not set(dead) & set(drawn)
    assert len(with_class(svg, "ghost")) == 6 - len(graph.kept_nodes)
    assert not with_class(fromstring(markup(draw_block(graph, None, "", with_dead=False))), "line")


def test_lines_are_as_wide_as_their_factors():
    graph = BlockGraph.complete(OPERATIONS, 2)
    factors = [0.1 * (i + 1) for i in range(len(graph.live))]
    svg = draw_block(graph, factors, "block")
    width = {(int(e.get("data-s")), int(e.get("data-t"))): float(e.get("stroke-width", 0))
             for e in with_class(svg, "edge")}  # fmt: skip
    drawn = [width[pair] for pair in graph.connections]
    assert drawn == sorted(drawn)
    assert drawn[0] < drawn[-1]
    equal = draw_block(graph, None, "block")
    assert len({e.get("stroke-width") for e in with_class(equal, "edge")}) == 1
    assert "λ = 0.100" in markup(svg)


def test_an_empty_block_is_its_shortcut():
    graph = BlockGraph.complete(OPERATIONS, 2).prune([False] * 10).clean()
    svg = draw_block(graph, [0.0] * 10, "block")
    assert [e.get("class") for e in with_class(svg, "edge")] == ["edge shortcut"]


def test_names_cannot_break_out():
    graph = BlockGraph.complete((HOSTILE, "b"), 2)
    matrix = draw_confusion([[1, 2], [0, 3]], [HOSTILE, "dog"])
    lines = [Series(name=HOSTILE, points=[(1, 2), (2, 3)]),
             Series(name="b", points=[(1, 1)], tip=HOSTILE)]  # fmt: skip
    drawn = [draw_block(graph, None, HOSTILE), matrix, line_chart(HOSTILE, lines),
             scatter_chart(HOSTILE, [Dot(1.0, 2.0, HOSTILE)])]  # fmt: skip
    for svg in drawn:
        text = markup(svg)
        assert "<script" not in text
        assert fromstring(text).tag == "svg"
        text.encode()


@pytest.mark.parametrize("seed", range(4))
def test_the_strip_accounts_for_all_multiply_adds(seed):
    architecture = random_architecture(Random(seed))
    boxes = parts(architecture)
    assert sum(part.macs or 0 for part in boxes) == architecture_cost(architecture).macs
    assert sum(part.count for part in boxes if part.kind == "block") == len(architecture.blocks)
    assert sum(part.kind == "reduction" for part in boxes) == len(architecture.reductions)
    fromstring(markup(draw_skeleton(architecture)))


def test_operations_that_are_not_registered_here_are_drawn():
    skeleton = Skeleton(blocks=(1,), channels=(4,))
    architecture = Architecture.complete(skeleton, ("made_elsewhere",), 2)
    svg = draw_skeleton(architecture)
    assert not with_class(svg, "share")
    assert "made_elsewhere" not in markup(draw_block(architecture.blocks[0], None, ""))
    assert "made elsewhere" in markup(draw_block(architecture.blocks[0], None, ""))


def test_confusions_show_each_number():
    svg = draw_confusion([[7, 0, 1], [0, 5, 0], [2, 0, 0]], ["a", "b", "c"])
    assert [e.text for e in with_class(svg, "count")] == ["7", "1", "5", "2"]
    assert len(with_class(svg, "wrong")) == 2
    large = draw_confusion([[1] * 30] * 30, [str(i) for i in range(30)])
    assert not with_class(large, "count")


def test_a_chart_keeps_to_its_frame_even_at_zero_on_a_log_scale():
    points = [(float(i), value) for i, value in enumerate([80.0, 3.0, 0.0, 0.5])]
    svg = line_chart("error", [Series(name="train", points=points)], kind="percent", log=True,
                     bands=[Band(0, 3, "train")], levels=[Level(200.0, "budget")])  # fmt: skip
    path = with_class(svg, "series")[0].get("d")[1:].split("L")
    heights = [float(point.split()[1]) for point in path]
    assert all(26 <= y <= 198 for y in heights)
    assert heights[0] < heights[1] < heights[3] < heights[2]
    values = json.loads(svg.get("data-values"))
    assert values["names"] == ["train"]
    assert [(x, text) for x, _, _, text in values["columns"]] == [
        (0, "80 %"), (1, "3 %"), (2, "0 %"), (3, "0.5 %")
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7e9), (0.2, 0.21), (-3, 40), (0, 1e-6)])
def test_linear_ticks_are_few_round_and_inside(low, high):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.001, 90), (1, 2.5), (30, 31), (5, 600)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)


def test_scales():
    assert [Scale(0, 10, 100, 0)(v) for v in (0, 5, 10, 99)] == [100, 50, 0, 0]
    assert value_scale([5.0], 0, 1).high > 5
    assert value_scale([0.0, 0.0], 0, 1, log=True).high > 0
    assert not value_scale([3.0, 4.0], 0, 1, log=True).log
