"""A found block and the whole network as pictures; the templates hold markup and words.

A block is a layered drawing in the manner of Sugiyama: levels as columns, few crossings, no line
through a node. A connection that skips levels runs in a *lane*, a place of its own in every level
between; connections of one source share their lanes, so they leave it as one trunk and fork where
they turn off. A *stop* is a column and a node: there stands the node itself or, in a column that is
not the node's, its lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from dsonas.commands.charts import NUM_COLOURS, clean_text, number, percent, readable_time, require
from dsonas.cost import block_cost, head_cost, reduction_cost, stem_cost
from dsonas.graph import (
    REDUCTION_OPERATIONS,
    Architecture,
    BlockGraph,
    Connection,
    readable_operation,
)
from dsonas.run import readable_count
from dsonas.search import connection_flows, node_importance

Point = tuple[float, float]
Stop = tuple[int, int]

NODE_WIDTH, NODE_HEIGHT, END_WIDTH = 168.0, 38.0, 70.0
NODE_GAP, LANE_HEIGHT, COLUMN_GAP = 16.0, 12.0, 84.0
SWEEPS = 12


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader

    made = Environment(
        loader=PackageLoader("dsonas.commands.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
    )
    made.filters |= {"n": number, "percent": percent, "readable": readable_count}
    made.filters |= {"operation": readable_operation, "curve": curve, "duration": readable_time}
    made.globals |= {"colour": colour, "node_name": node_name, "num_colours": NUM_COLOURS}
    return made


def render(template: str, **values: object) -> str:
    """Fill a template."""
    require("jinja2")
    return _environment().get_template(template).render(**values)


def draw_block(
    graph: BlockGraph, factors: Sequence[float] | None, label: str, *, with_dead: bool = True
) -> str:
    """Draw a block: operations by level, connections as wide as their (packed) scaling factors.

    Its ``data-live`` and ``data-full`` are the view boxes without and with what was removed.
    """
    graph = graph.clean()
    flows = connection_flows(graph, factors) if factors else ()
    live = [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if alive]
    sizes = dict(zip(graph.connections, map(abs, factors or ()), strict=bool(factors)))
    return render(
        "block.svg",
        graph=graph,
        layout=lay_out(graph),
        sizes=sizes,
        widest=max((sizes.get(pair, 0) for pair in live), default=0) or 1,
        flows=dict(zip(graph.connections, flows, strict=bool(flows))),
        importance=node_importance(graph, flows) if flows else {},
        label=label,
        with_dead=with_dead,
    )


def colour(graph: BlockGraph, node: int) -> str:
    """What colours an operation and the lines that leave it; the block input is neutral."""
    return f"k{(node - 1) % len(graph.operations) % NUM_COLOURS}" if node else "neutral"


def node_name(graph: BlockGraph, node: int) -> str:
    """A node in words, with its number."""
    if node in (0, graph.output_node):
        return "output" if node else "input"
    return f"{node} {readable_operation(graph.operation(node))}"


def curve(points: Sequence[Point]) -> str:
    """Level pieces between the pairs of points, and S-shaped ones that join them."""
    path = f"M{number(points[0][0])} {number(points[0][1])}"
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        bend = max(0.5 * (x1 - x0), 24.0)
        straight = i % 2 or abs(y1 - y0) < 0.05
        numbers = (x1, y1) if straight else (x0 + bend, y0, x1 - bend, y1, x1, y1)
        path += ("L" if straight else "C") + " ".join(map(number, numbers))
    return path


class Part(NamedTuple):
    """One box of the strip: an image, a stem, equal blocks in a row, a reduction, or a head."""

    kind: str
    name: str
    channels: int  # of its output
    size: int  # of its output, pixels
    macs: int | None = 0  # of all of them; None if they cannot be counted here
    count: int = 1
    note: str = ""


def block_letters(architecture: Architecture) -> dict[BlockGraph, str]:
    """Name each distinct block: A, B, ... Z, A1, B1, ..."""
    return {graph: chr(ord("A") + i % 26) + (str(i // 26) if i > 25 else "")
            for i, graph in enumerate(dict.fromkeys(architecture.clean().blocks))}  # fmt: skip


def parts(architecture: Architecture) -> list[Part]:
    """The boxes of the strip."""
    architecture = architecture.clean()
    skeleton, letters = architecture.skeleton, block_letters(architecture)
    channels, sizes = skeleton.channels, skeleton.stage_sizes
    found = [
        Part("image", "image", skeleton.input_channels, skeleton.image_size),
        Part("stem", "stem", channels[0], sizes[0], stem_cost(architecture).macs),
    ]
    graphs = list(zip(skeleton.block_stages, architecture.blocks, strict=True))
    for stage, members in groupby(graphs, key=lambda pair: pair[0]):
        place = channels[stage], sizes[stage]
        if stage:
            live = architecture.reductions[stage - 1]
            macs = reduction_cost(live, channels[stage - 1], *place).macs
            names = zip(REDUCTION_OPERATIONS, live, strict=True)
            note = " + ".join(name.removeprefix("conv") for name, alive in names if alive)
            found.append(Part("reduction", "÷2", *place, macs, 1, f"{note} convolution, stride 2"))
        projects = True  # the first block of a stage
        for graph, equal in groupby(graph for _, graph in members):
            count, note = len(list(equal)), f"{len(graph.kept_nodes)} operations"
            try:
                plain = block_cost(graph, *place, False).macs
                macs = (count - 1) * plain + block_cost(graph, *place, projects).macs
            except ValueError:  # an operation that is registered only where the run was made
                macs = None
            found.append(Part("block", letters[graph], *place, macs, count, note))
            projects = False
    return [*found, Part("head", "head", skeleton.num_classes, 1, head_cost(architecture).macs)]


def draw_skeleton(architecture: Architecture) -> str:
    """Draw the network as a strip: stem, blocks, reductions, head, and where multiply-adds go."""
    boxes = parts(architecture)
    counted = [part.macs for part in boxes if part.macs is not None]
    total = sum(counted) if len(counted) == len(boxes) else 0
    return render("strip.svg", parts=boxes, total=total, largest=max(part.size for part in boxes))


class Box(NamedTuple):
    """A rectangle by its centre."""

    x: float
    y: float
    width: float
    height: float = NODE_HEIGHT

    @property
    def left(self) -> float:
        """Where it begins."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.x + self.width / 2


class Layout(NamedTuple):
    """A drawn block."""

    nodes: dict[int, Box]  # the input (0), every kept operation, and the output
    ghosts: dict[int, Box]  # the removed operations, below all others
    # of live connections, and from input to output for the shortcut: ends of horizontal pieces
    routes: dict[Connection, list[Point]]
    dead: dict[Connection, list[Point]]  # start and end of what was removed
    columns: list[float]  # centre of every level, input and output included
    width: float
    height: float  # without the ghosts
    full_height: float


def column(graph: BlockGraph, node: int) -> int:
    """The column of a node: 0 the input, then the levels, then the output."""
    if node == 0:
        return 0
    return graph.num_levels + 1 if node == graph.output_node else graph.level(node)


def live_lines(graph: BlockGraph) -> list[Connection]:
    """What is drawn as a line: live connections, those into level 1, and the shortcut."""
    first = [Connection(0, node) for node in graph.kept_nodes if graph.level(node) == 1]
    live = [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if alive]
    return [Connection(0, graph.output_node), *first, *live]


def lay_out(graph: BlockGraph) -> Layout:
    """Place a cleaned block."""
    stops: dict[Connection, list[Stop]] = {}
    for line in live_lines(graph):
        start, end = column(graph, line.source), column(graph, line.target)
        stops[line] = [*((at, line.source) for at in range(start, end)), (end, line.target)]
    near: dict[Stop, list[Stop]] = {stop: [] for path in stops.values() for stop in path}
    for one, other in {link for path in stops.values() for link in pairwise(path)}:
        near[one].append(other)
        near[other].append(one)
    heights = {(at, node): NODE_HEIGHT if at == column(graph, node) else LANE_HEIGHT
               for at, node in near}  # fmt: skip
    layers: list[list[Stop]] = [[] for _ in range(graph.num_levels + 2)]
    for stop in sorted(heights, key=lambda stop: (-heights[stop], stop)):  # nodes, then lanes
        layers[stop[0]].append(stop)
    y = _place(layers, near, heights)
    top = min(y[stop] - heights[stop] / 2 for stop in y)
    bottom = max(y[stop] + heights[stop] / 2 for stop in y) - top
    first = END_WIDTH + COLUMN_GAP + NODE_WIDTH / 2
    inner = [first + at * (NODE_WIDTH + COLUMN_GAP) for at in range(graph.num_levels)]
    width = inner[-1] + NODE_WIDTH / 2 + COLUMN_GAP + END_WIDTH
    columns = [END_WIDTH / 2, *inner, width - END_WIDTH / 2]
    nodes, ghosts, counts = {}, {}, [0] * len(columns)
    for node in range(graph.output_node + 1):
        at = column(graph, node)
        if (at, node) in y:
            wide = END_WIDTH if node in (0, graph.output_node) else NODE_WIDTH
            nodes[node] = Box(columns[at], y[at, node] - top, wide)
        else:
            below = 2.5 * NODE_GAP + NODE_HEIGHT / 2 + counts[at] * (NODE_HEIGHT + NODE_GAP / 2)
            ghosts[node] = Box(columns[at], bottom + below, NODE_WIDTH)
            counts[at] += 1
    lanes = {line: [(columns[at], y[at, node] - top) for at, node in path[1:-1]]
             for line, path in stops.items()}  # fmt: skip
    full = max((box.y + NODE_HEIGHT / 2 for box in ghosts.values()), default=bottom)
    gone = [Connection(0, node) for node in ghosts if graph.level(node) == 1]
    gone += [pair for pair, alive in zip(graph.connections, graph.live, strict=True) if not alive]
    boxes = nodes | ghosts
    dead = {pair: [(boxes[pair.source].right, boxes[pair.source].y),
                   (boxes[pair.target].left, boxes[pair.target].y)] for pair in gone}  # fmt: skip
    return Layout(nodes, ghosts, _routes(nodes, lanes), dead, columns, width, bottom, full)


def _place(
    layers: list[list[Stop]], near: Mapping[Stop, Sequence[Stop]], heights: Mapping[Stop, float]
) -> dict[Stop, float]:
    """Heights that leave room, make lines as straight as can be, and let few of them cross.

    Every stop is drawn to the mean of its neighbours: first of those in the column before it, seen
    from the left and from the right in turn, which also sorts each column; then of all of them.
    """
    from scipy.optimize import isotonic_regression

    y = dict.fromkeys(heights, 0.0)
    for sweep in range(-1, 2 * SWEEPS):
        step = -1 if sweep % 2 else 1
        for at in range(len(layers))[::step]:
            layer, wanted, sorts = layers[at], {}, sweep < SWEEPS
            for stop in layer:
                around = [y[other] for other in near[stop] if not sorts or other[0] == at - step]
                wanted[stop] = sum(around) / len(around) if around and sweep >= 0 else y[stop]
            layers[at] = layer = sorted(layer, key=wanted.__getitem__) if sorts else layer
            apart = [(heights[a] + heights[b]) / 2 + NODE_GAP for a, b in pairwise(layer)]
            shifts = list(accumulate(apart, initial=0.0))
            # the nearest places in that order (least squares), measured without the distances
            places = isotonic_regression([wanted[stop] for stop in layer] - np.array(shifts)).x
            y.update(zip(layer, (places + shifts).tolist(), strict=True))
    return y


def _routes(
    nodes: Mapping[int, Box], lanes: Mapping[Connection, list[Point]]
) -> dict[Connection, list[Point]]:
    """The points of every line, with ports spread over the sides of the nodes."""
    towards = {line: lane[0][1] if lane else nodes[line.target].y for line, lane in lanes.items()}
    origins = {line: lane[-1][1] if lane else nodes[line.source].y for line, lane in lanes.items()}
    leaving = _ports({line: nodes[line.source] for line in lanes}, towards)
    arriving = _ports({line: nodes[line.target] for line in lanes}, origins)
    return {
        line: [
            (nodes[line.source].right, leaving[line]),
            *((x + side * NODE_WIDTH / 2, y) for x, y in lane for side in (-1, 1)),
            (nodes[line.target].left, arriving[line]),
        ]
        for line, lane in lanes.items()
    }


def _ports(
    boxes: Mapping[Connection, Box], others: Mapping[Connection, float]
) -> dict[Connection, float]:
    """The height at which each line meets its box: lines to one height share a port."""
    heights: dict[Box, set[float]] = {}
    for line, box in boxes.items():
        heights.setdefault(box, set()).add(round(others[line], 3))
    ports = {}
    for line, box in boxes.items():
        ranks = sorted(heights[box])
        step = min(7.0, (NODE_HEIGHT - 10) / max(1, len(ranks) - 1))
        place = ranks.index(round(others[line], 3))
        ports[line] = box.y + step * (place - (len(ranks) - 1) / 2)
    return ports
