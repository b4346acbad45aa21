"""Line and scatter charts as SVG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from dsonas.commands.report.scales import Scale, text_of, value_scale
from dsonas.commands.report.svg import add, clean_text, number, picture, shorten

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420.0, 232.0, 52.0, 12.0, 26.0, 34.0
WIDE = 1040.0
LABEL_ROOM = 66


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart.

    Args:
        name: for the legend and tooltips.
        points: (x, y), x ascending.
        kind: its class, which gives it a colour: ``c0`` ... ``c7``, ``k0`` ... ``k7``, ``faint``.
        dots: mark every point.
        tip: text of a tooltip of its own; None gives the values at the pointer.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "c0"
    dots: bool = False
    tip: str | None = None


@dataclass(frozen=True)
class Band:
    """A stage: where it begins and ends on the x axis, and its name."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as a budget."""

    value: float
    name: str
    kind: str = "budget"


@dataclass(frozen=True)
class Dot:
    """A point of a scatter chart.

    Args:
        x: above 0.
        y: its height.
        name: what it stands for.
        kind: its class.
        labelled: write the name beside it.
    """

    x: float
    y: float
    name: str
    kind: str = "c0"
    labelled: bool = True


def line_chart(
    label: str,
    series: Sequence[Series],
    *,
    kind: str = "number",
    log: bool = False,
    bands: Sequence[Band] = (),
    levels: Sequence[Level] = (),
    wide: bool = False,
    x_label: str = "epoch",
) -> Element:
    """Lines over epochs.

    Args:
        label: what the chart shows, for those who cannot see it.
        series: at least one with a point.
        kind: how values are written, see ``text_of``.
        log: logarithmic values.
        bands: stages.
        levels: horizontal lines.
        wide: over the whole page.
        x_label: below the x axis.

    Example:
        >>> svg = line_chart("loss", [Series(name="train", points=[(1, 0.5), (2, 0.25)])])
        >>> svg.find(".//path[@class='series c0']").get("d")
        'M52 32.62L408 115.31'
    """
    width = WIDE if wide else WIDTH
    svg = picture(width, HEIGHT, label, class_="chart" + (" wide" if wide else ""))
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points] + [level.value for level in levels]
    span = max(max(xs), min(xs) + 1)
    x_scale = Scale(min([*xs, *(band.start for band in bands)]), span, LEFT, width - RIGHT)
    y_scale = value_scale(ys, HEIGHT - BOTTOM, TOP, log=log)
    _draw_bands(svg, bands, x_scale)
    _draw_axes(svg, x_scale, y_scale, ("whole", kind), x_label)
    for level in levels:
        on_left = _room(series, level, y_scale, x_scale)
        _draw_level(svg, level, y_scale, width, kind, on_left)
    for line in series:
        _draw_series(svg, line, x_scale, y_scale)
    if any(line.tip is None for line in series):
        _describe(svg, series, x_scale, kind)
    return svg


def _draw_bands(svg: Element, bands: Sequence[Band], x_scale: Scale) -> None:
    for i, band in enumerate(bands):
        left, right = x_scale(band.start), x_scale(band.end)
        group = add(svg, "g", class_="band")
        if i % 2 == 0:
            add(group, "rect", x=left, y=TOP - 18, width=right - left, height=HEIGHT - BOTTOM - TOP
                + 18)  # fmt: skip
        if right - left > 7.0 * len(band.name):
            add(group, "text", band.name, x=(left + right) / 2, y=TOP - 6)


def _draw_axes(
    svg: Element, x_scale: Scale, y_scale: Scale, kinds: tuple[str, str], x_label: str
) -> None:
    axes = add(svg, "g", class_="axes")
    bottom = HEIGHT - BOTTOM
    for value in y_scale.ticks:
        y = y_scale(value)
        add(axes, "line", x1=LEFT, x2=x_scale.end, y1=y, y2=y)
        add(axes, "text", text_of(value, kinds[1]), x=LEFT - 6, y=y + 4, class_="y")
    for value in x_scale.ticks:
        if kinds[0] != "whole" or value == int(value):
            add(axes, "text", text_of(value, kinds[0]), x=x_scale(value), y=bottom + 15, class_="x")
    note = f"{x_label} →"
    add(axes, "text", note, x=x_scale.end, y=bottom + 29, class_="y unit")
    if y_scale.log:
        add(axes, "text", "log scale", x=LEFT, y=bottom + 29, class_="unit")


def _room(series: Sequence[Series], level: Level, y_scale: Scale, x_scale: Scale) -> bool:
    """Whether the left half, rather than the right one, has more room for the name of a level."""
    y, middle = y_scale(level.value), (x_scale.start + x_scale.end) / 2
    room = {True: HEIGHT, False: HEIGHT}
    for line in series:
        for at, value in line.points:
            left = x_scale(at) < middle
            room[left] = min(room[left], abs(y_scale(value) - y))
    return room[True] >= room[False]


def _draw_level(
    svg: Element, level: Level, y_scale: Scale, width: float, kind: str, on_left: bool
) -> None:
    y = y_scale(level.value)
    group = add(svg, "g", class_=f"level {level.kind}")
    add(group, "line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y)
    text = f"{level.name} {text_of(level.value, kind)}"
    x = LEFT + 4 if on_left else width - RIGHT - 2
    y += -5 if level.kind == "budget" else 13
    add(group, "text", text, x=x, y=y, class_=None if on_left else "y")


def _draw_series(svg: Element, line: Series, x_scale: Scale, y_scale: Scale) -> None:
    points = [(x_scale(x), y_scale(y)) for x, y in line.points]
    pairs = [f"{number(x)} {number(y)}" for x, y in points]
    path = "M" + "L".join(pairs)
    add(svg, "path", d=path, class_=f"series {line.kind}", data_tip=line.tip)
    if line.dots or len(points) == 1:
        for x, y in points:
            add(svg, "circle", cx=x, cy=y, r=3.0, class_=f"dot {line.kind}")


def _describe(svg: Element, series: Sequence[Series], x_scale: Scale, kind: str) -> None:
    """What the page's script needs to show the values at the pointer."""
    columns: dict[float, list[object]] = {}
    names = list(dict.fromkeys(line.name for line in series if line.tip is None))
    for line in series:
        if line.tip is None:
            for x, y in line.points:
                at = columns.setdefault(x, [round(x), round(x_scale(x), 1)])
                at += [names.index(line.name), text_of(y, kind)]
    values = {"names": names, "columns": [columns[x] for x in sorted(columns)]}
    svg.set("data-values", clean_text(json.dumps(values, separators=(",", ":"))))
    add(svg, "line", class_="cursor", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM)


def scatter_chart(
    label: str, dots: Sequence[Dot], *, x_kind: str = "count", y_kind: str = "percent"
) -> Element:
    """Points, such as networks by their cost and error.

    Example:
        >>> svg = scatter_chart("runs", [Dot(4e6, 6.2, "one"), Dot(2e6, 7.1, "two")])
        >>> len(svg.findall(".//circle"))
        2
    """
    height = HEIGHT + 60
    svg = picture(WIDE, height, label, class_="chart wide scatter")
    xs = [dot.x for dot in dots]
    x_scale = value_scale(xs, LEFT, WIDE - RIGHT, log=max(xs) > 5 * min(xs), zero=False)
    y_scale = value_scale([dot.y for dot in dots], HEIGHT - BOTTOM, TOP, zero=False)
    svg.set("viewBox", f"0 0 {number(WIDE)} {number(HEIGHT)}")
    _draw_axes(svg, x_scale, y_scale, (x_kind, y_kind), "multiply-adds")
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: (dot.labelled, dot.x)):
        x, y = x_scale(dot.x), y_scale(dot.y)
        tip = f"{dot.name}\n{text_of(dot.x, x_kind)} multiply-adds, {text_of(dot.y, y_kind)}"
        size = 6.0 if dot.labelled else 4.0
        add(svg, "circle", cx=x, cy=y, r=size, class_=f"dot {dot.kind}", data_tip=tip, tabindex=0)
        if dot.labelled:
            _label_dot(svg, dot, x, y, taken)
    return svg


def _label_dot(
    svg: Element, dot: Dot, x: float, y: float, taken: list[tuple[float, float]]
) -> None:
    name = shorten(dot.name, 24)
    height = _free_height(x, y, taken)
    taken.append((x, height))
    right = x < WIDE - RIGHT - 7.5 * len(name)
    add(svg, "text", name, x=x + 10 if right else x - 10, y=height + 4,
        class_="label" if right else "label y")  # fmt: skip


def _free_height(x: float, y: float, taken: Iterable[tuple[float, float]]) -> float:
    """The nearest height at which a label meets no other one."""
    near = [height for other, height in taken if abs(other - x) < 2.5 * LABEL_ROOM]
    for step in (0, -13, 13, -26, 26, -39, 39, -52, 52):
        if all(abs(y + step - height) >= 12 for height in near):
            return y + step
    return y
