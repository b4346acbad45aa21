"""Charts as SVG text, drawn by matplotlib: lines over epochs, networks as points, and spreads.

A *file* stands alone, in the colours of ``LIGHT``. A chart of the report's *page* names its colours
instead (``var(--muted)``), so that it follows the page from light to dark, and carries what the
page's script shows at the pointer.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from dsonas.run import readable_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT = {  # the names are those of report.css, which holds the dark colours
    "page": "#f5f6f9", "card": "#ffffff", "ink": "#131a2a", "muted": "#5f6b80", "line": "#e3e7ee",
    "soft": "#eef1f6", "accent": "#2458e6", "good": "#1f6fde", "bad": "#d6453d",
    "budget": "#c2410c", "neutral": "#7b8698", "k0": "#2563eb", "k1": "#7c3aed", "k2": "#c96a04",
    "k3": "#058a5e", "k4": "#d6297b", "k5": "#0e8fb3", "k6": "#cf3131", "k7": "#68870c",
}  # fmt: skip
NUM_COLOURS = 8  # k0 ... k7
FONTS = "Inter, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib; it measures, the browser draws
    "font.size": 12,
    "text.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 1,
}
MEASURES = {
    "macs": "multiply-adds",
    "params": "parameters",
    "memory_bytes": "memory access (bytes)",
    "latency_ms": "latency (ms)",
}
WIDTH, WIDE, HEIGHT = 420, 1040, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 34  # room around the plot
# what XML 1.0 does not allow in a document, escaped or not
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ReportError(ValueError):
    """A report or picture that cannot be made; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Args:
        name: for tooltips.
        points: (x, y), x ascending, at least one.
        colour: a name of ``LIGHT``.
        dots: mark every point.
        tip: text of a tooltip of its own; None shows the values at the pointer.
        faint: thinner and paler.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "k0"
    dots: bool = False
    tip: str | None = None
    faint: bool = False


class Band(NamedTuple):
    """A stage: where it begins and ends on the x axis, and its name."""

    start: float
    end: float
    name: str


class Level(NamedTuple):
    """A horizontal line, such as a budget (its colour is ``budget``)."""

    value: float
    name: str
    colour: str = "budget"


class Dot(NamedTuple):
    """A network by its cost and error: a disc, or a ring; a label stands beside it."""

    x: float
    y: float
    tip: str
    colour: str = "k0"
    ring: bool = False
    label: str = ""


class Spread(NamedTuple):
    """The values of one method, their mean and standard deviation."""

    values: Sequence[float]
    mean: float
    std: float


def lines(
    label: str,
    series: Sequence[Line],
    *,
    kind: str = "number",
    log: bool = False,
    bands: Sequence[Band] = (),
    levels: Sequence[Level] = (),
    wide: bool = False,
    x_label: str = "epoch",
) -> str:
    """Draw lines over epochs, for the page of a report.

    Args:
        label: what the chart shows, for those who cannot see it.
        series: at least one.
        kind: how values are written, see ``text_of``.
        log: logarithmic where the values span more than a factor of 2; what is not above 0 is drawn
            at the lower end.
        bands: stages.
        levels: horizontal lines.
        wide: over the whole page.
        x_label: below the x axis.

    Returns:
        An svg element as text.

    Example:
        >>> lines("loss", [Line(name="train", points=[(1, 0.5), (2, 0.25)])]).count("<path")
        4
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points] + [level.value for level in levels]
    with _picture(WIDE if wide else WIDTH, HEIGHT) as picture:
        axes = picture.axes(LEFT, RIGHT, TOP, BOTTOM)
        start = min([*xs, *(band.start for band in bands)])
        axes.set_xlim(start, max(*xs, start + 1))
        _set_ticks(axes, "x", "whole")
        log, low = _fit(axes, "y", ys, kind, log=log)
        picture.note(f"{x_label} →", 1, ha="right")
        if log:
            picture.note("log scale", 0)
        _draw_bands(axes, bands)
        for level in levels:
            _draw_level(axes, level, kind, series)
        columns: dict[float, list[object]] = {}
        names = list(dict.fromkeys(line.name for line in series if line.tip is None))
        for line in series:
            x, y = zip(*((x, max(y, low)) for x, y in line.points), strict=True)
            dots = line.dots or len(x) == 1
            own = {"data-tip": line.tip, "class": "series"} if line.tip else {}
            axes.plot(x, y, color=LIGHT[line.colour], clip_on=False, gid=picture.mark(**own),
                      marker="o" if dots else None, markersize=6, markeredgecolor=LIGHT["card"],
                      **({"linewidth": 1, "alpha": 0.42} if line.faint else {}))  # fmt: skip
            for at, value in line.points if line.tip is None else ():
                place = round(float(axes.transData.transform((at, 1))[0]), 1)
                column = columns.setdefault(at, [round(at), place])
                column += [names.index(line.name), text_of(value, kind)]
        found = {"class": "chart wide" if wide else "chart"}
        if columns:
            values = {"names": names, "columns": [columns[x] for x in sorted(columns)]}
            found["data-values"] = json.dumps(values, separators=(",", ":"))
        return picture.svg(label, found)


def _draw_bands(axes: Axes, bands: Sequence[Band]) -> None:
    height = 1 + 18 / (HEIGHT - TOP - BOTTOM)
    first, last = axes.get_xlim()
    room = axes.get_window_extent().width / (last - first)
    for i, band in enumerate(bands):
        if i % 2 == 0:
            axes.axvspan(band.start, band.end, ymax=height, facecolor=LIGHT["soft"], alpha=0.75,
                         linewidth=0, clip_on=False, zorder=0)  # fmt: skip
        if room * (band.end - band.start) > 7 * len(band.name):
            middle = (band.start + band.end) / 2
            axes.annotate(band.name, (middle, 1), (0, 6), ha="center", textcoords="offset points",
                          xycoords=axes.get_xaxis_transform())  # fmt: skip


def _draw_level(axes: Axes, level: Level, kind: str, series: Sequence[Line]) -> None:
    """A dashed line, with its name in the half where the curves leave more room."""
    is_budget = level.colour == "budget"
    axes.axhline(level.value, color=LIGHT[level.colour], linewidth=1.4, clip_on=False,
                 linestyle=(0, (4, 3) if is_budget else (1.5, 3)))  # fmt: skip
    points = axes.transData.transform([point for line in series for point in line.points])
    height = axes.transData.transform((0, level.value))[1]
    middle = axes.transAxes.transform((0.5, 0))[0]
    room = {False: float(HEIGHT), True: float(HEIGHT)}
    for x, y in points:
        room[bool(x > middle)] = min(room[bool(x > middle)], abs(y - height))
    right = room[True] > room[False]
    axes.annotate(f"{level.name} {text_of(level.value, kind)}", (1 if right else 0, level.value),
                  (-2 if right else 4, 5 if is_budget else -13), ha="right" if right else "left",
                  xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                  color=LIGHT[level.colour])  # fmt: skip


def scatter(
    label: str,
    dots: Sequence[Dot],
    *,
    x_label: str = "multiply-adds",
    x_kind: str = "count",
    front: Sequence[tuple[float, float]] = (),
    is_file: bool = False,
) -> str:
    """Draw networks by their cost and test error.

    Args:
        label: what the chart shows, for those who cannot see it.
        dots: at least one; costs above 0, errors in percent.
        x_label: below the x axis.
        x_kind: how costs are written, see ``text_of``.
        front: (cost, error) of the points that a line joins.
        is_file: for a file rather than the page of a report.

    Returns:
        An svg element as text.

    Example:
        >>> scatter("runs", [Dot(4e6, 6.2, "one"), Dot(2e6, 7.1, "two")]).count("<circle")
        2
    """
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    width, height = (640, 400) if is_file else (WIDE, HEIGHT)
    with _picture(width, height) as picture:
        axes = picture.axes(LEFT, RIGHT + 12 * is_file, TOP, BOTTOM)
        log, _ = _fit(axes, "x", xs, x_kind, log=max(xs) > 5 * min(xs), zero=False)
        _fit(axes, "y", ys, "percent", zero=False)
        picture.note(f"{x_label} →", 1, ha="right")
        if log:
            picture.note("log scale", 0)
        picture.note("test error", 0, axes.get_window_extent().height + 12)
        if front:
            axes.plot(*zip(*sorted(front), strict=True), color=LIGHT["k0"], clip_on=False)
        taken: list[tuple[float, float]] = []
        for dot in sorted(dots, key=lambda dot: (bool(dot.label), dot.x)):
            colour = LIGHT[dot.colour]
            axes.plot(
                dot.x, dot.y, "o", markersize=9 if dot.ring else 12, clip_on=False,
                color=LIGHT["card"] if dot.ring else colour, markeredgewidth=2 if dot.ring else 1,
                markeredgecolor=colour if dot.ring else LIGHT["card"],
                gid=picture.mark(**{"data-tip": dot.tip, "tabindex": 0, "class": "dot"}),
            )  # fmt: skip
            if dot.label:
                _label(axes, dot, picture, taken)
        return picture.svg(label, {"class": "chart wide"}, is_file=is_file)


def _label(axes: Axes, dot: Dot, picture: _Picture, taken: list[tuple[float, float]]) -> None:
    """The name beside a point, at the nearest height at which it meets no other name."""
    name = shorten(dot.label, 24)
    x, y = map(float, axes.transData.transform((dot.x, dot.y)))
    near = [height for other, height in taken if abs(other - x) < 165]
    free = (step for step in (0, 13, -13, 26, -26, 39, -39, 52, -52)
            if all(abs(y + step - height) >= 12 for height in near))  # fmt: skip
    step = next(free, 0)
    taken.append((x, y + step))
    left = x < picture.width - RIGHT - 7.5 * len(name)
    axes.annotate("x", (dot.x, dot.y), (10 if left else -10, step - 4), color=LIGHT["ink"],
                  textcoords="offset points", ha="left" if left else "right",
                  gid=picture.mark(text=name))  # fmt: skip


def front_svg(points: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Draw a Pareto front as a file; the line joins the networks that no other beats.

    Args:
        points: each with ``test_error`` in percent, ``on_front``, ``channels`` and the measure.
        measure: ``macs``, ``params``, ``memory_bytes`` or ``latency_ms``.

    Returns:
        An svg element as text.

    Example:
        >>> point = {"macs": 1e6, "test_error": 9.0, "channels": [8, 16], "on_front": True}
        >>> front_svg([point], "macs").count("<circle")
        1
    """
    name, kind = MEASURES[measure], "number" if measure == "latency_ms" else "count"
    dots = [
        Dot(
            point[measure],
            point["test_error"],
            f"{point['test_error']:.2f} % at {point[measure]:.6g} {name}, "
            f"{'-'.join(map(str, point['channels']))} channels",
            "k0" if point["on_front"] else "neutral",
            ring=not point["on_front"],
        )
        for point in points
    ]
    best = [(point[measure], point["test_error"]) for point in points if point["on_front"]]
    return scatter(f"test error against {name}", dots, x_label=name, x_kind=kind, front=best,
                   is_file=True)  # fmt: skip


def spreads(
    label: str,
    panels: Mapping[str, Sequence[tuple[float, Mapping[str, Spread]]]],
    colours: Mapping[str, str],
) -> str:
    """Draw the test errors of several methods at several costs, as a file.

    Args:
        label: what the picture shows, for those who cannot see it.
        panels: by the title of each panel, costs above 0 and the errors of each method in percent.
        colours: of the methods, names of ``LIGHT``, in the order in which they stand.

    Returns:
        An svg element as text: a dot for each value, a bar for mean and standard deviation.

    Example:
        >>> panels = {"share": [(1e6, {"searched": Spread([8.0, 9.0], 8.5, 0.7)})]}
        >>> spreads("errors", panels, {"searched": "k0"}).count("<circle")
        3
    """
    size, gap, height, step = 340, 30, 260, 10
    groups = [group for panel in panels.values() for _, group in panel]
    shown = [name for name in colours if any(name in group for group in groups)]
    errors = [error for group in groups for found in group.values() for error in found.values]
    columns = max(1, min(2, len(panels)))  # of the legend; one panel has room for one
    below = 54 + 18 * -(-len(shown) // columns)
    width = LEFT + max(1, len(panels)) * (size + gap)
    with _picture(width, TOP + height + below) as picture:
        for i, (title, panel) in enumerate(panels.items()):
            axes = picture.axes(LEFT + i * (size + gap), width - LEFT - i * (size + gap) - size,
                                TOP, below)  # fmt: skip
            logs = [math.log(cost) for cost, _ in panel]
            across = size / ((max(logs) - min(logs)) or 1) * 0.6
            places = [size / 2 + across * (at - (max(logs) + min(logs)) / 2) for at in logs]
            axes.set_xlim(0, size)
            axes.set_xticks(places, [text_of(cost, "count") for cost, _ in panel])
            _fit(axes, "y", errors, "percent", zero=False)
            axes.tick_params(labelleft=i == 0)
            picture.note(title, 0.5, height + 10, axes, ha="center", color=LIGHT["ink"])
            picture.note("multiply-adds, log scale →", 1, -34, axes, ha="right")
            if i == 0:
                picture.note("test error", 0, height + 10)
            for at, (_, group) in zip(places, panel, strict=True):
                for turn, name in enumerate(name for name in shown if name in group):
                    x, colour = at + step * (turn - (len(group) - 1) / 2), LIGHT[colours[name]]
                    values, mean, std = group[name]
                    axes.plot([x] * len(values), values, "o", color=colour, markersize=5.5,
                              alpha=0.4, markeredgewidth=0, clip_on=False)  # fmt: skip
                    axes.errorbar(x, mean, std, 4, color=colour, linewidth=1.8)
        if shown:
            discs = [axes.plot([], [], "o", color=LIGHT[colours[name]], markersize=8)[0]
                     for name in shown]  # fmt: skip
            picture.figure.legend(
                discs, shown, loc="lower left", ncols=columns, frameon=False, handletextpad=0.2,
                bbox_to_anchor=((LEFT - 8) / width, 0),
            )  # fmt: skip
        return picture.svg(label, {}, is_file=True)


def _fit(
    axes: Axes, which: str, values: Sequence[float], kind: str, log: bool = False, zero: bool = True
) -> tuple[bool, float]:
    """Let an axis hold all values with a little room; returns whether it is log, and its lowest."""
    positive = [value for value in values if value > 0]
    log = log and bool(positive) and max(positive) > 2 * min(positive)
    if log:
        low, high = min(positive) / 1.25, max(positive) * 1.15
    else:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = min(0.0, low) if zero else low - room, high + room
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": (low, high)})
    _set_ticks(axes, which, kind, high / low if log else None)
    return log, low


def _set_ticks(axes: Axes, which: str, kind: str, factor: float | None = None) -> None:
    """Few and round ticks; ``factor`` between the ends of a logarithmic axis, None if linear."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if factor is None:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=kind == "whole"))
    else:
        subs = (1,) if factor > 100 else (1, 2, 5) if factor > 8 else (1, 1.5, 2, 3, 4, 5, 7)
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text_of(value, kind))


@contextmanager
def _picture(width: float, height: float) -> Iterator[_Picture]:
    try:
        import matplotlib
    except ImportError:
        raise ReportError(
            'charts need matplotlib, which is not installed: pip install "dsonas[report]"'
        ) from None
    with matplotlib.rc_context(STYLE):
        yield _Picture(width, height)


class _Picture:
    """A figure measured in SVG units, whose parts are given attributes when it is written."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
        self.marks: dict[str, dict[str, Any]] = {}
        self.radii: dict[str, str] = {}

    def axes(self, left: float, right: float, top: float, bottom: float) -> Axes:
        """A plot with so much room around it, without frame and tick marks."""
        place = (left / self.width, bottom / self.height, 1 - (left + right) / self.width,
                 1 - (top + bottom) / self.height)  # fmt: skip
        axes = self.figure.add_axes(place, frameon=False)
        axes.grid(axis="y")
        axes.tick_params("x", bottom=False, pad=3)
        axes.tick_params("y", left=False, pad=6)
        return axes

    def note(
        self, text: str, x: float, y: float = -30, axes: Axes | None = None, **style: Any
    ) -> None:
        """A text beside a plot: ``x`` in its width, ``y`` units above its lower edge."""
        axes = axes or self.figure.axes[0]
        axes.annotate(text, (x, 0), (0, y), xycoords="axes fraction",
                      textcoords="offset points", **style)  # fmt: skip

    def mark(self, **attributes: Any) -> str:
        """A name for a part that is to have these attributes; ``text`` is what it says."""
        self.marks[name := f"mark-{len(self.marks)}"] = attributes
        return name

    def svg(self, label: str, attributes: Mapping[str, str], is_file: bool = False) -> str:
        """The picture as text: without styles that the page has, ids, and references by id."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        drawn = fromstring(buffer.getvalue())
        box = f"0 0 {self.width:g} {self.height:g}"
        root = Element("svg", {"viewBox": box, "role": "img", "aria-label": clean_text(label)})
        root.attrib.update({name: clean_text(value) for name, value in attributes.items()})
        if is_file:
            root.set("xmlns", "http://www.w3.org/2000/svg")
            root.set("font-family", FONTS)
            SubElement(root, "title").text = clean_text(label)
            SubElement(root, "rect", width="100%", height="100%", fill=LIGHT["card"])
        for part in drawn:
            self._copy(part, root, is_file)
        if "data-values" in attributes:
            SubElement(root, "line", {"class": "cursor", "y1": str(TOP),
                                      "y2": f"{self.height - BOTTOM:g}"})  # fmt: skip
        text = tostring(root, encoding="unicode")
        if not is_file:
            for name, colour in LIGHT.items():
                text = text.replace(colour, f"var(--{name})")
        return text

    def _copy(self, part: Element, parent: Element, is_file: bool) -> None:
        """Append what is drawn: groups only if they have attributes, markers as circles."""
        tag, name = part.tag.rpartition("}")[2], part.get("id", "")
        if tag == "defs":  # a marker begins at its lowest point
            self.radii.update({f"#{path.get('id')}": (path.get("d") or "").split()[2]
                               for path in part if path.get("d")})  # fmt: skip
        elif tag == "g":
            marks = dict(self.marks.get(name, {}))
            if "text" in marks:
                part[-1].text = marks.pop("text")
            if marks:
                parent = SubElement(parent, "g")
                if is_file and "data-tip" in marks:  # there is no script to show it
                    SubElement(parent, "title").text = clean_text(marks.pop("data-tip"))
                parent.attrib.update({key: clean_text(value) for key, value in marks.items()})
            for inner in part:
                self._copy(inner, parent, is_file)
        elif tag in ("path", "text", "use"):
            style = re.sub(r" ?font-family: [^;]*;", "", part.get("style", ""))
            values = {key: re.sub(r"-?\d+\.\d+", lambda found: number(float(found[0])), value)
                      for key, value in part.attrib.items() if key in ("x", "y", "d")}  # fmt: skip
            if "d" in values:
                values["d"] = re.sub(r"\s*([A-Za-z])\s*", r"\1", values["d"]).strip()
            if tag == "use":
                href = part.get("{http://www.w3.org/1999/xlink}href", "")
                tag = "circle"
                values = {"cx": values["x"], "cy": values["y"], "r": self.radii[href]}
            SubElement(parent, tag, values | {"style": style}).text = clean_text(part.text or "")


def text_of(value: float, kind: str) -> str:
    """Write a value as an axis or a tooltip does.

    Args:
        value: what to write.
        kind: ``percent``, ``count``, ``number`` or ``whole``.

    Example:
        >>> text_of(6.25, "percent"), text_of(3896960, "count"), text_of(0.00321, "number")
        ('6.25 %', '3.9 M', '0.00321')
    """
    if kind == "percent":
        return f"{value:.3g} %"
    if kind == "count":
        return readable_count(value)
    return f"{value:.0f}" if kind == "whole" else f"{value:.3g}"


def number(value: float) -> str:
    """Write a coordinate with at most two decimals.

    Example:
        >>> number(3.0), number(1 / 3)
        ('3', '0.33')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0", value == 0)


def clean_text(text: object) -> str:
    r"""Replace the characters that no XML document may hold.

    Example:
        >>> clean_text("a\x00b")
        'a\ufffdb'
    """
    return _FORBIDDEN.sub("\ufffd", str(text))


def shorten(text: str, longest: int) -> str:
    """Cut a text to a number of characters.

    Example:
        >>> shorten("separable", 5)
        'sepa…'
    """
    return text if len(text) <= longest else text[: longest - 1] + "…"
