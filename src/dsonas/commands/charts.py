"""Charts as SVG text, drawn by matplotlib: lines over epochs, and networks by cost and error.

A *file* stands alone, in light colours. A chart of the report's *page* names its colours instead
(``var(--muted)``), so that it follows the page from light to dark, and carries what the page's
script shows at the pointer. Colours are those of ``report.css``; the style is ``charts.mplstyle``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from dsonas.cost import MEASURES
from dsonas.run import readable_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

STYLES = Path(__file__).parent / "report" / "templates"
_LIGHT_CSS = (STYLES / "report.css").read_text(encoding="utf-8").partition("macro dark")[0]
LIGHT = dict(re.findall(r"--(\w+): (#\w{6});", _LIGHT_CSS))
NAMES = {colour: name for name, colour in LIGHT.items()}
NUM_COLOURS = 8  # k0 ... k7
WIDTH, WIDE, HEIGHT = 420, 1040, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 34  # room around the plot
ENDS = "left", "right"
MUTED = ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.titlecolor")
FONTS = "Inter, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
# what XML 1.0 does not allow in a document, escaped or not
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ReportError(ValueError):
    """A report or picture that cannot be made; the message says why and what to do."""


def require(package: str) -> None:
    """Refuse to go on without a package of the extra ``report``."""
    try:
        import_module(package)
    except ImportError:
        raise ReportError(
            f'this needs {package}, which is not installed: pip install "dsonas[report]"'
        ) from None


class Line(NamedTuple):
    """A line of a chart: at least one point (x, y), x ascending; its colour is one of ``LIGHT``."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "k0"
    dots: bool = False  # mark every point
    tip: str = ""  # a tooltip of its own; without one the values at the pointer are shown
    faint: bool = False  # thinner and paler


class Dot(NamedTuple):
    """A network by its cost and test error: a disc, or a ring; a label stands beside it."""

    x: float
    y: float
    tip: str
    colour: str = "k0"
    ring: bool = False
    label: str = ""


def lines(
    title: str,
    series: Sequence[Line],
    kind: str = "number",
    *,
    log: bool = False,  # if values span more than a factor of 2; zeros are at the lower end
    bands: Sequence[tuple[float, float, str]] = (),  # stages: begin, end and name
    levels: Sequence[tuple[float, str, str]] = (),  # horizontal lines: value, name and colour
    wide: bool = False,
    x_label: str = "epoch",
) -> str:
    """Draw lines over epochs, for the page; the title is for those who cannot see them."""
    xs = [x for line in series for x, _ in line.points] + [band[0] for band in bands]
    ys = [y for line in series for _, y in line.points] + [level[0] for level in levels]
    with picture(WIDE if wide else WIDTH, HEIGHT) as drawn:
        axes = drawn.axes()
        axes.set_xlim(min(xs), max(*xs, min(xs) + 1))
        axes.set_xlabel(f"{x_label} →", loc="right")
        _set_ticks(axes.xaxis, "whole")
        low = fit_axis(axes, "y", ys, kind, log)
        for i, (first, last, name) in enumerate(bands):
            if i % 2 == 0:
                axes.axvspan(first, last, ymax=1.1, color=LIGHT["soft"], lw=0, clip_on=False)
            left, right = axes.transData.transform([(first, low), (last, low)])[:, 0]
            if right - left > 7 * len(name):
                middle, above = (first + last) / 2, axes.get_xaxis_transform()
                axes.text(middle, 1.035, name, ha="center", transform=above)
        middle = sum(axes.get_xlim()) / 2
        for value, name, colour in levels:
            is_budget, text = colour == "budget", f"{name} {text_of(value, kind)}"
            dashes = (0, (4, 3) if is_budget else (1.5, 3))
            axes.axhline(value, color=LIGHT[colour], lw=1.4, linestyle=dashes, clip_on=False)
            # the name stands at the end of which the curve keeps away
            near = min((abs(y - value), x) for line in series for x, y in line.points)
            right = bool(near[1] < middle)
            axes.annotate(text, (right, value), (-2 if right else 3, 3 if is_budget else -3),
                          axes.get_yaxis_transform(), "offset points", ha=ENDS[right],
                          va="bottom" if is_budget else "top", color=LIGHT[colour])  # fmt: skip
        columns: dict[float, list[object]] = {}  # of the values at the pointer
        names = list(dict.fromkeys(line.name for line in series if not line.tip))
        for line in series:
            x, y = zip(*((x, max(y, low)) for x, y in line.points), strict=True)
            marker = "o" if line.dots or len(x) == 1 else None
            alpha, width = (0.42, 1) if line.faint else (None, 2)
            tip = {"data-tip": line.tip, "class": "series"} if line.tip else {}
            axes.plot(x, y, color=LIGHT[line.colour], clip_on=False, marker=marker, alpha=alpha,
                      lw=width, mec=LIGHT["card"], gid=drawn.mark(tip))  # fmt: skip
            for at, value in () if line.tip else line.points:
                place = round(float(axes.transData.transform((at, low))[0]), 1)
                column = columns.setdefault(at, [round(at), place])
                column += [names.index(line.name), text_of(value, kind)]
        found = {"class": "chart wide" if wide else "chart"}
        if columns:
            values = {"names": names, "columns": [columns[x] for x in sorted(columns)]}
            found["data-values"] = json.dumps(values, separators=(",", ":"))
        return drawn.svg(title, found)


def scatter(
    title: str,
    dots: Sequence[Dot],
    x_label: str = "multiply-adds",
    x_kind: str = "count",
    front: Sequence[tuple[float, float]] | None = None,
) -> str:
    """Draw networks by cost and test error; with a front, points that a line joins, as a file."""
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    with picture(*((WIDE, HEIGHT) if front is None else (640, 400))) as drawn:
        axes = drawn.axes()
        axes.set_xlabel(f"{x_label} →", loc="right")
        axes.set_title("test error", loc="left")
        fit_axis(axes, "x", xs, x_kind, max(xs) > 5 * min(xs), zero=False)
        fit_axis(axes, "y", ys, "percent", zero=False)
        if front:
            axes.plot(*zip(*sorted(front), strict=True), color=LIGHT["k0"], clip_on=False)
        taken: list[tuple[float, float]] = []
        for dot in sorted(dots, key=lambda dot: (bool(dot.label), dot.x)):
            inner, outer = LIGHT[dot.colour], LIGHT["card"]
            size, width = 12, 1
            if dot.ring:
                inner, outer, size, width = outer, inner, 9, 2
            tip = {"data-tip": dot.tip, "tabindex": "0", "class": "dot"}
            axes.plot(dot.x, dot.y, "o", color=inner, mec=outer, ms=size, mew=width, clip_on=False,
                      gid=drawn.mark(tip))  # fmt: skip
            if dot.label:
                _label(drawn, axes, dot, taken)
        return drawn.svg(title, {"class": "chart wide"} if front is None else None)


def _label(drawn: Picture, axes: Axes, dot: Dot, taken: list[tuple[float, float]]) -> None:
    """The name beside a point, at the nearest height at which it meets no other name."""
    name = dot.label if len(dot.label) <= 24 else f"{dot.label[:23]}…"
    x, y = map(float, axes.transData.transform((dot.x, dot.y)))
    near = [height for other, height in taken if abs(other - x) < 165]
    free = (step for step in (0, 13, -13, 26, -26, 39, -39, 52, -52)
            if all(abs(y + step - height) >= 12 for height in near))  # fmt: skip
    step = next(free, 0)
    taken.append((x, y + step))
    left = x > drawn.width - RIGHT - 7.5 * len(name)
    # matplotlib does not see what users have named: the text is put in afterwards
    axes.annotate("?", (dot.x, dot.y), (-10 if left else 10, step - 4), color=LIGHT["ink"],
                  textcoords="offset points", ha=ENDS[left],
                  gid=drawn.mark({"text": name}))  # fmt: skip


def front_svg(points: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Draw the points of a ``pareto.json``; the line joins those that no other beats."""
    known, dots = MEASURES[measure], []
    name = f"{known.title} ({known.unit})" if known.unit else known.title
    for point in points:
        channels = "-".join(map(str, point["channels"]))
        tip = f"{point['test_error']:.2f} % at {point[measure]:.6g} {name}, {channels} channels"
        colour = "k0" if point["on_front"] else "neutral"
        dots.append(Dot(point[measure], point["test_error"], tip, colour, not point["on_front"]))
    best = [(dot.x, dot.y) for dot in dots if not dot.ring]
    return scatter(f"test error against {name}", dots, name, kind_of(measure), best)


def fit_axis(
    axes: Axes, which: str, values: Sequence[float], kind: str, log: bool = False, zero: bool = True
) -> float:
    """Let an axis hold all values with a little room; returns its lower end."""
    positive = [value for value in values if value > 0]
    low, high = min(values), max(values)
    log = log and bool(positive) and high > 2 * min(positive)
    if log:
        low, high = min(positive) / 1.25, high * 1.15
        axes.annotate("log scale", (0, 0), (0, -30), "axes fraction", "offset points")
    else:
        room = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = min(0.0, low) if zero else low - room, high + room
    axes.set(**{f"{which}scale": "log" if log else "linear", f"{which}lim": (low, high)})
    _set_ticks(axes.yaxis if which == "y" else axes.xaxis, kind, high / low if log else None)
    return low


def _set_ticks(axis: Axis, kind: str, factor: float | None = None) -> None:
    """Few and round ticks; ``factor`` between the ends of a logarithmic axis, None if linear."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if factor is None:
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=kind == "whole"))
    else:
        subs = (1,) if factor > 100 else (1, 2, 5) if factor > 8 else (1, 1.5, 2, 3, 4, 5, 7)
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: text_of(value, kind))


@contextmanager
def picture(width: float, height: float) -> Iterator[Picture]:
    """A picture in the style of all, of so many SVG units.

    Raises:
        ReportError: if matplotlib is missing.
    """
    require("matplotlib")
    import matplotlib

    colours: Any = dict.fromkeys(MUTED, LIGHT["muted"])
    colours["grid.color"] = LIGHT["line"]
    with matplotlib.rc_context(colours, STYLES / "charts.mplstyle"):
        yield Picture(width, height)


class Picture:
    """A figure measured in SVG units, whose parts are given attributes when it is written."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72))
        self.marks: dict[str, dict[str, str]] = {}

    def axes(self, left: float = LEFT, right: float = RIGHT, bottom: float = BOTTOM) -> Axes:
        """A plot with so much room around it."""
        wide, high = self.width - left - right, self.height - TOP - bottom
        return self.figure.add_axes((left / self.width, bottom / self.height,
                                     wide / self.width, high / self.height))  # fmt: skip

    def mark(self, attributes: dict[str, str]) -> str:
        """A name for a part that is to have these attributes; ``text`` is what it says."""
        self.marks[name := f"mark-{len(self.marks)}"] = attributes
        return name

    def svg(self, title: str, attributes: Mapping[str, str] | None = None) -> str:
        """The picture as text: for the page with attributes, without them a file."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        root = fromstring(re.sub(r' xmlns[:\w]*="[^"]*"|xlink:(?=href)', "", buffer.getvalue()))
        radii = {f"#{path.get('id')}": (path.get("d") or "").split()[2]
                 for path in root.iterfind(".//defs/path")}  # fmt: skip
        for part in list(root.iter()):
            for child in part.findall("defs"):
                part.remove(child)
            mark = {k: clean_text(v) for k, v in self.marks.get(part.get("id", ""), {}).items()}
            if "text" in mark:
                part[0].text = mark.pop("text")
            if attributes is None and "data-tip" in mark:  # a file has no script to show it
                part.insert(0, Element("title"))
                part[0].text = mark.pop("data-tip")
            # without ids, which clash in a page, and with numbers of two decimals
            kept = {name: re.sub(r"-?\d+\.\d+", lambda found: number(float(found[0])), value)
                    for name, value in part.items() if name in ("x", "y", "d")}  # fmt: skip
            if part.tag == "use":  # our markers are round
                part.tag, radius = "circle", radii[part.get("href", "")]
                kept = {"cx": kept["x"], "cy": kept["y"], "r": radius}
            elif part.tag == "path":
                kept["d"] = re.sub(r"\s*([MLCz])\s*", r"\1", kept.get("d", "").strip())
            style = re.sub(r"font-family: [^;]*(; |$)", "", part.get("style", ""))
            part.attrib = mark | kept | ({"style": style} if style else {})
            part.tail = None
        root.attrib = {"viewBox": f"0 0 {self.width:g} {self.height:g}", "role": "img"}
        for name, value in {"aria-label": title, **(attributes or {})}.items():
            root.set(name, clean_text(value))
        if attributes is None:
            root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "font-family": FONTS}
            root.insert(0, Element("rect", width="100%", height="100%", fill=LIGHT["card"]))
            return tostring(root, encoding="unicode")
        SubElement(root, "line", {"class": "cursor", "y1": f"{TOP}", "y2": f"{HEIGHT - BOTTOM}"})
        text = tostring(root, encoding="unicode")
        return re.sub("|".join(NAMES), lambda found: f"var(--{NAMES[found[0]]})", text)


def kind_of(measure: str) -> str:
    """How ``text_of`` writes a cost in a measure."""
    return "number" if measure == "latency_ms" else "count"


def text_of(value: float, kind: str) -> str:
    """Write a value as an axis or a tooltip does: a percent, a count, a number, or a whole one.

    Example:
        >>> text_of(6.25, "percent"), text_of(3896960, "count"), text_of(0.00321, "number")
        ('6.25 %', '3.9 M', '0.00321')
    """
    if kind == "count":
        return readable_count(value)
    return f"{value:.0f}" if kind == "whole" else f"{value:.3g}{' %' if kind == 'percent' else ''}"


def readable_time(seconds: float) -> str:
    """Write a time in the units that one would say.

    Example:
        >>> readable_time(4.26), readable_time(75), readable_time(3171), readable_time(90000)
        ('4.3 s', '75 s', '53 min', '25 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.6 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """Write a share of 1 in percent: 0.974 as 97 %, and 0.004 as 0.4 %."""
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.0095 else f"{100 * share:.1g} %"


def number(value: float) -> str:
    """Write a coordinate with at most two decimals."""
    return f"{round(value, 2):.7g}"


def clean_text(text: object) -> str:
    """Replace the characters that no XML document may hold."""
    return _FORBIDDEN.sub("\ufffd", str(text))
