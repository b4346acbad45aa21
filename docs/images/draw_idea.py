"""Draw idea.svg: a complete block, the same block during the search, and what is left of it.

    .venv/bin/python docs/images/draw_idea.py

The block and its connections are the library's own data; positions and colours are set here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dsonas.graph.block import BlockGraph, Connection

OPERATIONS = ("sep 3×3", "sep 5×5", "max pool", "avg pool")  # noqa: RUF001
COLOURS = ("#2563eb", "#7c3aed", "#d97706", "#059669")
LEVELS = 3
SLATE, INK, MUTED, DEAD = "#475569", "#0f172a", "#475569", "#cbd5e1"
OUTSIDE = "#7a8290"  # legible on white and on black
FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

PANEL, GAP, MARGIN, HEIGHT = 342, 46, 6, 470
NODE_WIDTH, NODE_HEIGHT, COLUMN = 70, 27, 83
ROWS = (134, 210, 286, 362, 438)  # input, three levels, output

# what the search keeps, and what it still has while it is under way, with scaling factors
KEPT = {
    (1, 5): 0.9, (2, 5): 0.6, (0, 5): 0.5, (2, 7): 0.8, (4, 7): 0.7, (5, 10): 1.0, (7, 10): 0.7,
    (1, 10): 0.5, (5, 13): 0.8, (7, 13): 0.6, (10, 13): 1.0,
}  # fmt: skip
FADING = {
    (3, 6): 0.16, (1, 6): 0.2, (6, 9): 0.14, (5, 9): 0.2, (9, 13): 0.16, (4, 12): 0.12,
    (7, 12): 0.16, (12, 13): 0.12, (3, 7): 0.14, (0, 10): 0.12, (4, 13): 0.12,
}  # fmt: skip

Point = tuple[float, float]


def main() -> None:
    """Write idea.svg beside this file."""
    complete = BlockGraph.complete(OPERATIONS, LEVELS)
    under_way = {**KEPT, **FADING}
    half = complete.prune([pair in under_way for pair in complete.connections]).clean()
    final = complete.prune([pair in KEPT for pair in complete.connections]).clean()
    assert half.num_live == len(under_way), "a connection under way is not part of the block"
    assert final.num_live == len(KEPT), "a kept connection is not part of the block"
    panels = (
        panel(
            0, "1", "Pretrain the complete block",
            ("Every operation reads all earlier levels;",
             "each connection has a scaling factor λ = 1."),
            graph_lines(complete, dict.fromkeys(complete.connections, 0.12), faint=True),
        ),
        panel(
            1, "2", "Search",
            ("Factors are pressed to exactly 0; what is",
             "cut off is removed while training goes on."),
            [*dead_lines(complete, half), *graph_lines(half, under_way)],
        ),
        panel(
            2, "3", "Train the compact network",
            ("The factors are dropped, the width is set", "so that the budget is met."),
            graph_lines(final, dict.fromkeys(KEPT, 0.55), final=True),
        ),
    )  # fmt: skip
    counts = [f"{graph.num_live} connections" for graph in (complete, half, final)]
    counts[1] += " (line width: λ)"
    width = 3 * PANEL + 2 * GAP + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 2 * MARGIN + 26}" '
        f'font-family="{FONT}" role="img" aria-labelledby="title">',
        '<title id="title">A completely connected block is pruned to a compact network</title>',
        *(line for one in panels for line in one),
        *(arrow(i) for i in range(2)),
        *(count_line(i, text) for i, text in enumerate(counts)),
        "</svg>",
    ]
    path = Path(__file__).with_name("idea.svg")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def panel(
    index: int, number: str, title: str, captions: Sequence[str], drawing: Sequence[str]
) -> Iterator[str]:
    """A white card with a numbered title, two lines of text, and a drawing."""
    left = MARGIN + index * (PANEL + GAP)
    yield f'<g transform="translate({left},{MARGIN})">'
    yield (
        f'<rect width="{PANEL}" height="{HEIGHT}" rx="14" fill="#ffffff" stroke="#cbd5e1" '
        'stroke-width="1.2"/>'
    )
    yield f'<circle cx="33" cy="33" r="13" fill="{INK}"/>'
    yield text(33, 38, number, 14, "#ffffff", bold=True)
    yield text(56, 39, title, 17, INK, bold=True, anchor="start")
    for i, caption in enumerate(captions):
        yield text(20, 70 + 20 * i, caption, 14, MUTED, anchor="start")
    yield from drawing
    yield "</g>"


def text(
    x: float, y: float, words: str, size: float, fill: str, bold: bool = False,
    anchor: str = "middle",
) -> str:  # fmt: skip
    """One line of text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" '
        f'text-anchor="{anchor}"{weight}>{words}</text>'
    )


def arrow(index: int) -> str:
    """From one card to the next."""
    x, y = MARGIN + (index + 1) * PANEL + index * GAP + 10, MARGIN + HEIGHT / 2
    end = x + GAP - 20
    return (
        f'<path d="M{x:g},{y:g} H{end:g} M{end - 8:g},{y - 7:g} '
        f'L{end:g},{y:g} L{end - 8:g},{y + 7:g}" '
        f'fill="none" stroke="{OUTSIDE}" stroke-width="2.6" stroke-linecap="round" '
        'stroke-linejoin="round"/>'
    )


def count_line(index: int, words: str) -> str:
    """The number of connections, under a card."""
    x = MARGIN + index * (PANEL + GAP) + PANEL / 2
    return text(x, MARGIN + HEIGHT + 23, words, 15, OUTSIDE, bold=True)


def position(graph: BlockGraph, node: int) -> Point:
    """The centre of a node inside a card."""
    middle = PANEL / 2
    if node in (0, graph.output_node):
        return middle, ROWS[0 if node == 0 else -1]
    column = (node - 1) % len(OPERATIONS)
    return middle + (column - 1.5) * COLUMN, ROWS[graph.level(node)]


def colour(graph: BlockGraph, node: int) -> str:
    """The colour of a node by its kind."""
    if node in (0, graph.output_node):
        return SLATE
    return COLOURS[(node - 1) % len(OPERATIONS)]


def graph_lines(
    graph: BlockGraph,
    factors: Mapping[Connection | tuple[int, int], float],
    *,
    faint: bool = False,
    final: bool = False,
) -> list[str]:
    """Connections, as wide as their factors, and nodes above them."""
    level_one = 0.12 if faint else 0.55
    widths = {(0, node): level_one for node in graph.kept_nodes if graph.level(node) == 1}
    widths |= {
        tuple(pair): factors[pair]
        for pair, alive in zip(graph.connections, graph.live, strict=True)
        if alive
    }
    lines = []
    for (source, target), path in routes(graph, list(widths)).items():
        factor = widths[source, target]
        opacity = 0.6 if faint else 0.4 + 0.5 * min(1, 2 * factor)
        lines.append(
            f'<path d="{path}" fill="none" stroke="{colour(graph, source)}" '
            f'stroke-width="{0.7 + 3.4 * factor:.2f}" stroke-opacity="{opacity:.2f}"/>'
        )
    fading = {node for pair in FADING for node in pair}
    solid = {node for pair in KEPT for node in pair}
    for node in (0, *graph.kept_nodes, graph.output_node):
        weak = not faint and not final and node in fading - solid
        lines += node_lines(graph, node, weak)
    return lines


def dead_lines(complete: BlockGraph, live: BlockGraph) -> list[str]:
    """Operations that are gone, as empty outlines."""
    gone = sorted(set(complete.kept_nodes) - set(live.kept_nodes))
    return [line for node in gone for line in node_lines(complete, node, dead=True)]


def node_lines(graph: BlockGraph, node: int, weak: bool = False, dead: bool = False) -> list[str]:
    """A pill with its name: full, a coloured outline (weak) or a grey one (dead)."""
    x, y = position(graph, node)
    ends = {0: "input", graph.output_node: "output"}
    words = ends.get(node) or graph.operation(node)
    fill, stroke, ink, dash = colour(graph, node), colour(graph, node), "#ffffff", ""
    if weak:
        fill, ink = "#ffffff", stroke
    if dead:
        fill, stroke, ink, dash = "#ffffff", DEAD, "#94a3b8", ' stroke-dasharray="3 3"'
    left, top = x - NODE_WIDTH / 2, y - NODE_HEIGHT / 2
    return [
        f'<rect x="{left:g}" y="{top:g}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" '
        f'rx="{NODE_HEIGHT / 2:g}" fill="{fill}" stroke="{stroke}" stroke-width="1.4"{dash}/>',
        text(x, y + 4, words, 12, ink, bold=not dead),
    ]


def routes(graph: BlockGraph, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """A smooth path for every connection; at a node they lie side by side, without crossing."""
    stations = {pair: through_gaps(graph, *pair) for pair in pairs}
    starts = ports(graph, {pair: (pair[0], points[1]) for pair, points in stations.items()})
    ends = ports(graph, {pair: (pair[1], points[-2]) for pair, points in stations.items()})
    paths = {}
    for pair, points in stations.items():
        points = [(starts[pair], points[0][1]), *points[1:-1], (ends[pair], points[-1][1])]
        path, (x, y) = f"M{points[0][0]:g},{points[0][1]:g}", points[0]
        for end_x, end_y in points[1:-1]:
            path += curve(x, y, end_x, end_y - NODE_HEIGHT / 2) + f" V{end_y + NODE_HEIGHT / 2:g}"
            x, y = end_x, end_y + NODE_HEIGHT / 2
        paths[pair] = path + curve(x, y, *points[-1])
    return paths


def through_gaps(graph: BlockGraph, source: int, target: int) -> list[Point]:
    """Start, the gaps between the nodes of every level in between, and end."""
    (x, y), (end_x, end_y) = position(graph, source), position(graph, target)
    points = [(x, y + NODE_HEIGHT / 2)]
    for row in ROWS:
        if y < row < end_y:
            last_x, last_y = points[-1]
            wanted = last_x + (end_x - last_x) * (row - last_y) / (end_y - last_y)
            points.append((nearest_gap(wanted, source, target), row))
    return [*points, (end_x, end_y - NODE_HEIGHT / 2)]


def ports(
    graph: BlockGraph, ends: Mapping[tuple[int, int], tuple[int, Point]]
) -> dict[tuple[int, int], float]:
    """Where each connection touches its node: sorted by where it comes from or goes to."""
    at_node: dict[int, list[tuple[float, tuple[int, int]]]] = {}
    for pair, (node, (x, _)) in ends.items():
        at_node.setdefault(node, []).append((x, pair))
    places = {}
    for node, others in at_node.items():
        step = min(7.0, 0.66 * NODE_WIDTH / len(others))
        for i, (_, pair) in enumerate(sorted(others)):
            places[pair] = position(graph, node)[0] + (i - (len(others) - 1) / 2) * step
    return places


def nearest_gap(wanted: float, source: int, target: int) -> float:
    """The middle of the nearest gap between columns, moved a little for each connection."""
    inner = [PANEL / 2 + (column - 2) * COLUMN for column in range(5)]
    middle = min(inner[1:-1] if 60 < wanted < PANEL - 60 else inner, key=lambda g: abs(g - wanted))
    return middle + ((source * 7 + target * 3) % 5 - 2) * 1.3


def curve(x: float, y: float, end_x: float, end_y: float) -> str:
    """A cubic that leaves and arrives vertically."""
    middle = (y + end_y) / 2
    return f" C{x:g},{middle:g} {end_x:g},{middle:g} {end_x:g},{end_y:g}"


if __name__ == "__main__":
    main()
