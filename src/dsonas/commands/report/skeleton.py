"""The whole network as a strip: stem, blocks, reductions, head, and where the multiply-adds go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from dsonas.commands.report.blockdrawing import size_limits
from dsonas.commands.report.scales import percent
from dsonas.commands.report.svg import add, number, picture
from dsonas.cost import block_cost, head_cost, reduction_cost, stem_cost
from dsonas.graph import REDUCTION_OPERATIONS, Architecture, BlockGraph
from dsonas.run import readable_count

STEP, WIDTH, TALLEST, LEAST = 88.0, 60.0, 92.0, 26.0
MARGIN, AXIS, HEIGHT = 14.0, 74.0, 206.0


@dataclass(frozen=True)
class Part:
    """One box of the strip.

    Args:
        kind: ``image``, ``stem``, ``block``, ``reduction`` or ``head``.
        name: what stands in the box.
        channels: of its output.
        size: of its output, pixels.
        count: how many of it follow each other.
        macs: of all of them; None if they cannot be counted here.
        note: more about it.
    """

    kind: str
    name: str
    channels: int
    size: int
    count: int = 1
    macs: int | None = None
    note: str = ""


def block_letters(architecture: Architecture) -> dict[BlockGraph, str]:
    """A name for each distinct block: A, B, ... Z, A1, B1, ...

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> list(block_letters(cifar_space().complete()).values())
        ['A']
    """
    letters: dict[BlockGraph, str] = {}
    for graph in architecture.clean().blocks:
        if graph not in letters:
            turn, at = divmod(len(letters), 26)
            letters[graph] = chr(ord("A") + at) + (str(turn) if turn else "")
    return letters


def parts(architecture: Architecture) -> list[Part]:
    """The boxes of the strip, equal blocks in a row taken together."""
    architecture = architecture.clean()
    skeleton, letters = architecture.skeleton, block_letters(architecture)
    channels, sizes = skeleton.channels, skeleton.stage_sizes
    found = [
        Part("image", "image", skeleton.input_channels, skeleton.image_size),
        Part("stem", "stem", channels[0], sizes[0], 1, stem_cost(architecture).macs),
    ]
    graphs = list(zip(skeleton.block_stages, architecture.blocks, strict=True))
    for stage, members in groupby(graphs, key=lambda pair: pair[0]):
        if stage:
            found.append(_reduction(architecture, stage - 1))
        first = True
        for graph, equal in groupby(graph for _, graph in members):
            count = len(list(equal))
            macs = _block_macs(graph, channels[stage], sizes[stage], count, first)
            note = f"{len(graph.kept_nodes)} operations"
            first = False
            found.append(
                Part("block", letters[graph], channels[stage], sizes[stage], count, macs, note)
            )
    classes = skeleton.num_classes
    return [*found, Part("head", "head", classes, 1, 1, head_cost(architecture).macs, "classes")]


def _reduction(architecture: Architecture, stage: int) -> Part:
    skeleton = architecture.skeleton
    channels, size = skeleton.channels, skeleton.stage_sizes[stage + 1]
    live = architecture.reductions[stage]
    names = [
        name for name, alive in zip(REDUCTION_OPERATIONS, live, strict=True) if alive
    ]  # fmt: skip
    macs = reduction_cost(live, channels[stage], channels[stage + 1], size).macs
    note = " + ".join(name.removeprefix("conv") for name in names) + " convolution, stride 2"
    return Part("reduction", "÷2", channels[stage + 1], size, 1, macs, note)


def _block_macs(
    graph: BlockGraph, channels: int, size: int, count: int, projecting: bool
) -> int | None:
    try:
        plain = block_cost(graph, channels, size, False).macs
        return count * plain + block_cost(graph, channels, size, projecting).macs - plain
    except ValueError:  # an operation that is registered only where the run was made
        return None


def draw_skeleton(architecture: Architecture) -> Element:
    """Draw the strip.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> svg = draw_skeleton(cifar_space(blocks=(1, 2)).complete())
        >>> [text.text for text in svg.iter("text") if text.get("class") == "name"]
        ['image', 'stem', 'A', '÷2', 'A', 'head']
    """
    boxes = parts(architecture)
    width = 2 * MARGIN + STEP * len(boxes)
    svg = picture(width, HEIGHT, "the whole network", class_="strip",
                  style=size_limits(width))  # fmt: skip
    centre = MARGIN + STEP / 2
    add(svg, "line", x1=centre, x2=width - centre, y1=AXIS, y2=AXIS, class_="spine")
    largest = max(part.size for part in boxes)
    counted = [part.macs for part in boxes if part.macs is not None]
    total = sum(counted) if len(counted) == len(boxes) - 1 else 0  # the image costs nothing
    heights = [LEAST + (TALLEST - LEAST) * (part.size / largest) ** 0.5 for part in boxes]
    for i, part in enumerate(boxes):
        share = part.macs / total if part.macs is not None and total else None
        _draw_part(svg, part, centre + STEP * i, (heights[max(0, i - 1)], heights[i]), share)
    return svg


def _draw_part(
    svg: Element, part: Part, x: float, heights: tuple[float, float], share: float | None
) -> None:
    group = add(svg, "g", class_=f"part {part.kind}", data_tip=_tip(part, share), tabindex=0)
    for behind in range(min(part.count, 3) - 1, 0, -1):
        lower = heights[1] - 6 * behind
        _draw_box(group, x + 4 * behind, lower, lower)
    _draw_box(group, x, heights[0] if part.kind == "reduction" else heights[1], heights[1])
    add(group, "text", part.name, x=x, y=AXIS + 5, class_="name")
    if part.count > 1:
        add(group, "text", f"× {part.count}", x=x, y=AXIS + 20, class_="small")  # noqa: RUF001
    _draw_figures(svg, part, x, share)


def _draw_box(group: Element, x: float, before: float, after: float) -> None:
    """A box, or a trapezoid from the height of what comes before."""
    left, right = x - WIDTH / 2, x + WIDTH / 2
    if before != after:
        corners = [(left, -before), (right, -after), (right, after), (left, before)]
        points = " ".join(f"{number(px)},{number(AXIS + half / 2)}" for px, half in corners)
        add(group, "polygon", points=points)
    else:
        add(group, "rect", x=left, y=AXIS - after / 2, width=WIDTH, height=after, rx=7.0)


def _draw_figures(svg: Element, part: Part, x: float, share: float | None) -> None:
    lines = [str(part.channels), "classes"] if part.kind == "head" else [
        f"{part.channels} ch", f"{part.size} × {part.size}"  # noqa: RUF001
    ]  # fmt: skip
    for i, line in enumerate(lines):
        add(svg, "text", line, x=x, y=AXIS + 68 + 15 * i, class_="small")
    if share is not None:
        y = AXIS + 96
        add(svg, "rect", x=x - WIDTH / 2, y=y, width=WIDTH, height=5.0, rx=2.5, class_="track")
        add(svg, "rect", x=x - WIDTH / 2, y=y, width=max(1.0, WIDTH * share), height=5.0, rx=2.5,
            class_="share")  # fmt: skip
        add(svg, "text", percent(share), x=x, y=y + 20, class_="small")


def _tip(part: Part, share: float | None) -> str:
    names: Mapping[str, str] = {"block": f"block {part.name}", "reduction": "reduction"}
    text = names.get(part.kind, part.name) + (f", {part.count} times" if part.count > 1 else "")
    if part.kind in ("block", "reduction"):
        text += f"\n{part.note}"
    if part.macs is not None and share is not None:
        text += f"\n{readable_count(part.macs)} multiply-adds, {percent(share)} of all"
    return text
