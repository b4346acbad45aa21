"""A block as a picture: operations by level, connections as wide as their scaling factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element

from dsonas.commands.report.block_layout import Box, Layout, Point, lay_out
from dsonas.commands.report.ordering import live_lines
from dsonas.commands.report.scales import percent
from dsonas.commands.report.svg import add, number, picture, shorten
from dsonas.graph import BlockGraph, Connection, readable_operation
from dsonas.search import connection_flows, node_importance

NUM_COLOURS = 8
MARGIN, HEAD = 14.0, 34.0
LEAST_WIDTH, MOST_WIDTH, EQUAL_WIDTH = 1.0, 6.0, 2.2
LONGEST_NAME = 18


def draw_block(
    graph: BlockGraph, factors: Sequence[float] | None, label: str, *, with_dead: bool = True
) -> Element:
    """Draw a block.

    Args:
        graph: what is live; it is cleaned first.
        factors: packed scaling factors of the end of the search; None draws equal widths.
        label: what it is, for those who cannot see it.
        with_dead: also draw what was removed; the page shows it when asked to.

    Returns:
        An svg element. Its ``data-live`` and ``data-full`` are the view boxes without and with
        what was removed.

    Example:
        >>> svg = draw_block(BlockGraph.complete(("max_pool3x3",), 2), None, "block")
        >>> len(svg.findall(".//*[@class='edge k0']"))
        3
    """
    graph = graph.clean()
    layout = lay_out(graph)
    width, height = layout.width + 2 * MARGIN, layout.height + HEAD + MARGIN
    full = layout.full_height + HEAD + MARGIN if with_dead else height
    svg = picture(width, height, label, class_="block", style=size_limits(width))
    svg.set("data-live", f"0 0 {number(width)} {number(height)}")
    svg.set("data-full", f"0 0 {number(width)} {number(full)}")
    canvas = add(svg, "g", transform=f"translate({number(MARGIN)} {number(HEAD)})")
    _draw_columns(canvas, graph, layout)
    if with_dead:
        _draw_dead(canvas, graph, layout)
    _draw_lines(canvas, graph, layout, factors)
    _draw_nodes(canvas, graph, layout, factors)
    return svg


def size_limits(width: float) -> str:
    """How far a picture with text in it may shrink and grow with the page."""
    return f"min-width:{number(0.68 * width)}px;max-width:{number(1.3 * width)}px"


def colour(graph: BlockGraph, node: int) -> str:
    """The class that colours an operation and what leaves it; the block input is neutral."""
    return "input" if node == 0 else f"k{(node - 1) % len(graph.operations) % NUM_COLOURS}"


def node_name(graph: BlockGraph, node: int) -> str:
    """A node in words, with its number."""
    if node == 0:
        return "input"
    if node == graph.output_node:
        return "output"
    return f"{node} {readable_operation(graph.operation(node))}"


def _draw_columns(canvas: Element, graph: BlockGraph, layout: Layout) -> None:
    names = ["", *(f"level {i}" for i in range(1, graph.num_levels + 1)), ""]
    for name, x in zip(names, layout.columns, strict=True):
        if name:
            add(canvas, "text", name, x=x, y=-HEAD + 17, class_="column")


def _draw_dead(canvas: Element, graph: BlockGraph, layout: Layout) -> None:
    group = add(canvas, "g", class_="dead")
    boxes = layout.nodes | layout.ghosts
    dead = [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if not alive]
    first = [Connection(0, node) for node in layout.ghosts if graph.level(node) == 1]
    for pair in [*first, *dead]:
        ends = (
            (boxes[pair.source].right, boxes[pair.source].y),
            (
                boxes[pair.target].left,
                boxes[pair.target].y,
            ),
        )
        add(group, "path", d=_curve(ends), class_="line", data_s=pair.source, data_t=pair.target)
    for node, box in layout.ghosts.items():
        tip = f"{node_name(graph, node)}\nremoved by the search"
        _draw_node(group, graph, node, box, tip, "ghost ")


def _draw_lines(
    canvas: Element, graph: BlockGraph, layout: Layout, factors: Sequence[float] | None
) -> None:
    value = _by_connection(graph, factors)
    flows = _by_connection(graph, connection_flows(graph, factors) if factors else None)
    most = max((value[pair] for pair in live_lines(graph) if pair in value), default=0) or 1
    group = add(canvas, "g", class_="edges")
    for pair in live_lines(graph):
        ends = f"{node_name(graph, pair.source)} → {node_name(graph, pair.target)}"
        shortcut = pair == (0, graph.output_node)
        width, tip = EQUAL_WIDTH, ends
        if shortcut:
            tip = "shortcut: the input is added to the output"
        elif pair in value:
            share = value[pair] / most
            width = LEAST_WIDTH + (MOST_WIDTH - LEAST_WIDTH) * share
            tip += f"\nλ = {value[pair]:.3f}, {percent(flows[pair])} of the output flows through it"
        elif pair.source == 0 and graph.level(pair.target) == 1:
            tip += "\nlevel 1 always reads the input"
        kind = "shortcut" if shortcut else colour(graph, pair.source)
        add(group, "path", d=_curve(layout.routes[pair]), class_=f"edge {kind}", data_tip=tip,
            data_s=pair.source, data_t=pair.target, stroke_width=width)  # fmt: skip


def _by_connection(graph: BlockGraph, values: Sequence[float] | None) -> Mapping[Connection, float]:
    return dict(zip(graph.connections, map(abs, values), strict=True)) if values else {}


def _draw_nodes(
    canvas: Element, graph: BlockGraph, layout: Layout, factors: Sequence[float] | None
) -> None:
    importance = node_importance(graph, connection_flows(graph, factors)) if factors else {}
    group = add(canvas, "g", class_="nodes")
    for node, box in layout.nodes.items():
        tip = node_name(graph, node)
        if sources := graph.inputs.get(node):
            tip += "\nreads " + ", ".join("input" if s == 0 else str(s) for s in sources)
        if node in importance:
            tip += f"\n{percent(importance[node])} of the output flows through it"
        _draw_node(group, graph, node, box, tip)


def _draw_node(
    parent: Element, graph: BlockGraph, node: int, box: Box, tip: str, kind: str = ""
) -> None:
    end = node in (0, graph.output_node)
    name = "end" if end else colour(graph, node)
    group = add(parent, "g", class_=f"node {kind}{name}", data_n=node, data_tip=tip, tabindex=0)
    add(group, "rect", x=box.left, y=box.y - box.height / 2, width=box.width, height=box.height,
        rx=box.height / 2 if end else 8.0)  # fmt: skip
    if end:
        add(group, "text", node_name(graph, node), x=box.x, y=box.y + 4, class_="middle")
        return
    add(group, "text", node, x=box.left + 11, y=box.y + 4, class_="number")
    text = shorten(readable_operation(graph.operation(node)), LONGEST_NAME)
    add(group, "text", text, x=box.left + 33, y=box.y + 4)


def _curve(points: Sequence[Point]) -> str:
    """Level pieces between the pairs of points, and S-shaped ones that join them."""
    x, y = points[0]
    path = [f"M{number(x)} {number(y)}"]
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        if i % 2 or abs(y1 - y0) < 0.05:
            path.append(f"L{number(x1)} {number(y1)}")
        else:
            bend = max(0.5 * (x1 - x0), 24.0)
            path.append(
                f"C{number(x0 + bend)} {number(y0)} {number(x1 - bend)} {number(y1)} "
                f"{number(x1)} {number(y1)}"
            )
    return "".join(path)
