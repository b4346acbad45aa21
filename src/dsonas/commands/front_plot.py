"""A Pareto front as one SVG picture that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from dsonas.commands.report.scales import Scale, text_of, value_scale
from dsonas.commands.report.svg import add, markup, picture

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 400.0, 64.0, 24.0, 24.0, 56.0
NAMES = {
    "macs": "multiply-adds",
    "params": "parameters",
    "memory_bytes": "memory access (bytes)",
    "latency_ms": "latency (ms)",
}
STYLE = """
svg { background: #fff; font: 13px sans-serif; fill: #333 }
line { stroke: #ddd }
path { fill: none; stroke: #0072b2; stroke-width: 2 }
circle { fill: #fff; stroke: #888; stroke-width: 1.5 }
circle.best { fill: #0072b2; stroke: #0072b2 }
.end { text-anchor: end } .middle { text-anchor: middle }
"""


def front_svg(points: Sequence[dict[str, Any]], measure: str) -> str:
    """Draw test error against cost; the line joins the points that no other beats.

    Args:
        points: each with ``test_error`` in percent, ``on_front``, ``channels`` and the measure.
        measure: ``macs``, ``params``, ``memory_bytes`` or ``latency_ms``.

    Returns:
        SVG text.

    Example:
        >>> point = {"macs": 1e6, "test_error": 9.0, "channels": [8, 16], "on_front": True}
        >>> front_svg([point], "macs").count("<circle")
        1
    """
    svg = picture(WIDTH, HEIGHT, f"test error against {NAMES[measure]}")
    svg.set("xmlns", "http://www.w3.org/2000/svg")
    add(svg, "style", STYLE)
    costs = [point[measure] for point in points]
    x_scale = value_scale(costs, LEFT, WIDTH - RIGHT, log=True, zero=False)
    errors = [point["test_error"] for point in points]
    y_scale = value_scale(errors, HEIGHT - BOTTOM, TOP, zero=False)
    _draw_axes(svg, x_scale, y_scale, measure)
    best = sorted((point[measure], point["test_error"]) for point in points if point["on_front"])
    corners = "L".join(f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in best)
    add(svg, "path", d=f"M{corners}")
    for point in points:
        _draw_point(svg, point, x_scale(point[measure]), y_scale(point["test_error"]), measure)
    return markup(svg) + "\n"


def _draw_axes(svg: Element, x_scale: Scale, y_scale: Scale, measure: str) -> None:
    bottom = HEIGHT - BOTTOM
    for value in y_scale.ticks:
        y = y_scale(value)
        add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
        add(svg, "text", text_of(value, "percent"), x=LEFT - 8, y=y + 4, class_="end")
    kind = "number" if measure == "latency_ms" else "count"
    for value in x_scale.ticks:
        x = x_scale(value)
        add(svg, "line", x1=x, x2=x, y1=TOP, y2=bottom)
        add(svg, "text", text_of(value, kind), x=x, y=bottom + 20, class_="middle")
    note = f"{NAMES[measure]}{', log scale' if x_scale.log else ''}"
    add(svg, "text", note, x=(LEFT + WIDTH - RIGHT) / 2, y=bottom + 44, class_="middle")
    add(svg, "text", "test error", x=LEFT - 8, y=TOP - 8)


def _draw_point(svg: Element, point: dict[str, Any], x: float, y: float, measure: str) -> None:
    kind = "best" if point["on_front"] else "beaten"
    circle = add(svg, "circle", cx=x, cy=y, r=5.0, class_=kind)
    channels = "-".join(map(str, point["channels"]))
    cost = f"{point[measure]:.6g} {NAMES[measure]}"
    add(circle, "title", f"{point['test_error']:.2f} % at {cost}, {channels} channels")
