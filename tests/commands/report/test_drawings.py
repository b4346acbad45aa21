"""The pictures: well-formed whatever the names are, and true to the numbers."""

import json
from itertools import pairwise
from random import Random
from xml.etree.ElementTree import fromstring

import pytest

from dsonas.commands.charts import Dot, Line, lines, scatter
from dsonas.commands.report.drawings import draw_block, draw_skeleton, live_lines, parts, render
from dsonas.commands.report.examine import Examination
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph
from helpers.builders import random_architecture, random_graph

HOSTILE = '"><script>alert(1)</script>&\x00\x1b\ud800'
OPERATIONS = ("separable_conv3x3", "max_pool3x3")


def with_class(svg, name: str) -> list:
    return [element for element in svg.iter() if name in element.get("class", "").split()]


def test_a_block_shows_every_connection_once():
    graph = random_graph(Random(3), OPERATIONS, 3, 0.6)
    svg = fromstring(draw_block(graph, None, "block"))
    drawn = [(int(e.get("data-s")), int(e.get("data-t"))) for e in with_class(svg, "edge")]
    assert sorted(drawn) == sorted(live_lines(graph))
    dead = [(int(e.get("data-s")), int(e.get("data-t"))) for e in with_class(svg, "line")]
    level_1 = sum(graph.level(n) == 1 for n in range(1, 7) if n not in graph.kept_nodes)
    assert len(dead) == len(set(dead)) == len(graph.live) - graph.num_live + level_1
    assert not set(dead) & set(drawn)
    assert len(with_class(svg, "ghost")) == 6 - len(graph.kept_nodes)
    assert not with_class(fromstring(draw_block(graph, None, "", with_dead=False)), "line")


def test_lines_are_as_wide_as_their_factors():
    graph = BlockGraph.complete(OPERATIONS, 2)
    factors = [0.1 * (i + 1) for i in range(len(graph.live))]
    svg = fromstring(draw_block(graph, factors, "block"))
    width = {(int(e.get("data-s")), int(e.get("data-t"))): float(e.get("stroke-width", 0))
             for e in with_class(svg, "edge")}  # fmt: skip
    drawn = [width[pair] for pair in graph.connections]
    assert drawn == sorted(drawn)
    assert drawn[0] < drawn[-1]
    equal = fromstring(draw_block(graph, None, "block"))
    assert len({e.get("stroke-width") for e in with_class(equal, "edge")}) == 1
    tips = [e.get("data-tip") for e in with_class(svg, "edge")]
    assert any("λ = 0.100" in tip for tip in tips)


def test_an_empty_block_is_its_shortcut():
    graph = BlockGraph.complete(OPERATIONS, 2).prune([False] * 10).clean()
    svg = fromstring(draw_block(graph, [0.0] * 10, "block"))
    assert [e.get("class") for e in with_class(svg, "edge")] == ["edge shortcut"]


def confusion(counts, names):
    quality = Examination(list(names), counts, [], "")
    return fromstring(render("confusion.html", quality=quality, names=names))


def test_names_cannot_break_out():
    graph = BlockGraph.complete((HOSTILE, "b"), 2)
    series = [Line(HOSTILE, [(1, 2), (2, 3)]), Line("b", [(1, 1)], tip=HOSTILE)]
    drawn = [draw_block(graph, None, HOSTILE), lines(HOSTILE, series),
             scatter(HOSTILE, [Dot(1.0, 2.0, HOSTILE, label=HOSTILE)])]  # fmt: skip
    for svg in drawn:
        assert "<script" not in svg
        assert fromstring(svg).tag == "svg"
        svg.encode()
    assert confusion([[1, 2], [0, 3]], [HOSTILE, "dog"]).find(".//script") is None


@pytest.mark.parametrize("seed", range(4))
def test_the_strip_accounts_for_all_multiply_adds(seed):
    architecture = random_architecture(Random(seed))
    boxes = parts(architecture)
    assert sum(part.macs or 0 for part in boxes) == architecture_cost(architecture).macs
    assert sum(part.count for part in boxes if part.kind == "block") == len(architecture.blocks)
    assert sum(part.kind == "reduction" for part in boxes) == len(architecture.reductions)
    fromstring(draw_skeleton(architecture))


def test_operations_that_are_not_registered_here_are_drawn():
    skeleton = Skeleton(blocks=(1,), channels=(4,))
    architecture = Architecture.complete(skeleton, ("made_elsewhere",), 2)
    svg = fromstring(draw_skeleton(architecture))
    assert not with_class(svg, "share")
    assert "made_elsewhere" not in draw_block(architecture.blocks[0], None, "")
    assert "made elsewhere" in draw_block(architecture.blocks[0], None, "")


def test_confusions_show_each_number():
    table = confusion([[7, 0, 1], [0, 5, 0], [2, 0, 0]], ["a", "b", "c"])
    assert [e.text for e in table.iter("b")] == ["7", "1", "5", "2"]
    assert len(with_class(table, "wrong")) == 2
    tips = [e.get("data-tip") for e in with_class(table, "right")]
    assert tips == ["a recognised 7 of 8 images", "b recognised 5 of 5 images"]
    large = confusion([[1] * 30] * 30, [str(i) for i in range(30)])
    assert not any(e.text for e in large.iter("b"))
    assert not list(confusion([[1] * 50] * 50, [str(i) for i in range(50)]).iter("th"))


def test_a_chart_keeps_to_its_frame_even_at_zero_on_a_log_scale():
    points = [(float(i), value) for i, value in enumerate([80.0, 3.0, 0.0, 0.5])]
    series, levels = [Line("train", points)], [(200, "budget", "budget")]
    svg = fromstring(
        lines("error", series, "percent", log=True, bands=[(0, 3, "train")], levels=levels)
    )
    curve = next(e for e in svg.iter("path") if "--k0" in e.get("style", ""))
    heights = [float(point.split()[1]) for point in curve.get("d", "M").lstrip("M").split("L")]
    assert all(26 <= y <= 198 for y in heights)
    assert heights[0] < heights[1] < heights[3] < heights[2]
    values = json.loads(svg.get("data-values", ""))
    assert values["names"] == ["train"]
    assert [(x, text) for x, _, _, text in values["columns"]] == [
        (0, "80 %"), (1, "3 %"), (2, "0 %"), (3, "0.5 %")
    ]  # fmt: skip
    assert {"train", "budget 200 %"} <= {e.text for e in svg.iter("text")}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0, 7e9), (0.2, 0.21), (0.001, 90), (1, 2.5), (5, 5), (0, 0), (5, 600)],
)
def test_ticks_are_few_and_inside(low, high, log):
    svg = fromstring(lines("x", [Line("a", [(0, low), (10, high)])], log=log))
    marks = [e for e in svg.iter("text") if "end" in e.get("style", "") and "→" not in e.text]
    assert 2 <= len(marks) <= 9
    assert len({e.text for e in marks}) == len(marks)
    assert all(20 <= float(e.get("y")) <= 205 for e in marks)


def test_a_chart_of_the_page_has_no_colours_or_ids_of_its_own():
    svg = lines("x", [Line("a", [(0, 1), (1, 2)]), Line("b", [(1, 1)])])
    assert "#" not in svg
    assert " id=" not in svg
    assert "http" not in svg
    assert "var(--muted)" in svg


def test_names_beside_points_do_not_meet():
    dots = [Dot(1e6 + i, 5.0 + i / 1e3, "", label=f"run {i}") for i in range(5)]
    texts = [e for e in fromstring(scatter("x", dots)).iter("text") if "run" in (e.text or "")]
    heights = sorted(float(e.get("y", 0)) for e in texts)
    assert len(heights) == 5
    assert all(b - a >= 11 for a, b in pairwise(heights))
