"""The comparison as a picture: test error against multiply-adds, one panel for each space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from dsonas.commands.comparison.table import TITLES
from dsonas.run import readable_count

COLOURS = {
    "searched": "#0072b2",
    "random": "#d55e00",
    "random_factors": "#56b4e9",
    "random_search": "#cc79a7",
    "hand_made_residual": "#009e73",
    "hand_made_mobile": "#8a6d00",
}
WIDTH, HEIGHT, LEFT, TOP, GAP, BOTTOM = 340, 260, 56, 34, 30, 48
LINE = 16  # pixels between lines of the legend
STEP = 9  # pixels between the methods of one budget

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def svg(value: Mapping[str, Any]) -> str:
    """A self-contained SVG picture.

    Each dot is a training; the bars are the mean of a method and one standard deviation to each
    side, as in the table.

    Args:
        value: what ``comparison.results.comparison`` returns.
    """
    entries = [entry for entry in value["budgets"] if entry["summary"]]
    spaces = list(dict.fromkeys(entry["space"] for entry in entries))
    width = LEFT + max(1, len(spaces)) * (WIDTH + GAP)
    shown = [method for method in TITLES if any(method in entry["summary"] for entry in entries)]
    columns = max(1, min(2, len(spaces)))  # of the legend; one panel has room for one
    height = TOP + HEIGHT + BOTTOM + LINE * math.ceil(len(shown) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(value['data']['name'])}: test error against multiply-adds</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    if entries:
        vertical = _error_axis(entries)
        parts += _grid(vertical, width - GAP)
        for number, space in enumerate(spaces):
            here = [entry for entry in entries if entry["space"] == space]
            parts += _panel(here, space, LEFT + number * (WIDTH + GAP), vertical)
        parts += _legend(shown, columns)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _error_axis(entries: Sequence[Entry]) -> _Axis:
    errors = [
        error for entry in entries for group in entry["trainings"].values() for error in group
    ]
    margin = 0.06 * (max(errors) - min(errors)) or 0.5
    return _Axis(min(errors) - margin, max(errors) + margin, TOP + HEIGHT, TOP)


def _grid(vertical: _Axis, right: float) -> Iterator[str]:
    for tick in ticks(vertical.low, vertical.high):
        y = vertical(tick)
        yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    middle = TOP + HEIGHT / 2
    yield (
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        "test error, %</text>"
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two.

    Example:
        >>> ticks(7.3, 9.1)
        [7.5, 8.0, 8.5, 9.0]
    """
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough))
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def _panel(entries: Sequence[Entry], space: str, left: float, vertical: _Axis) -> Iterator[str]:
    bottom = TOP + HEIGHT
    yield f'<text x="{left + WIDTH / 2}" y="{TOP - 12}" text-anchor="middle">{space} space</text>'
    yield f'<path d="M{left} {TOP}V{bottom}H{left + WIDTH}" fill="none" stroke="#444"/>'
    counts = [math.log(entry["macs"]) for entry in entries]
    low, high = min(counts), max(counts)
    spread = (high - low) or 1.0
    horizontal = _Axis(low - spread / 3, high + spread / 3, left, left + WIDTH)
    for entry, count in zip(entries, counts, strict=True):
        x = horizontal(count if high > low else low)
        label = readable_count(entry["macs"])
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        yield from _marks(entry, x, vertical)
    yield (
        f'<text x="{left + WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">'
        "multiply-adds (log scale)</text>"
    )


def _marks(entry: Entry, x: float, vertical: _Axis) -> Iterator[str]:
    shown = [method for method in TITLES if method in entry["summary"]]
    for number, method in enumerate(shown):
        place = x + STEP * (number - (len(shown) - 1) / 2)
        colour = COLOURS[method]
        for error in entry["trainings"][method]:
            yield (
                f'<circle cx="{place:.1f}" cy="{vertical(error):.1f}" r="2.5" fill="{colour}" '
                'fill-opacity="0.45"/>'
            )
        summary = entry["summary"][method]
        y, half = vertical(summary["mean"]), summary["std"] or 0.0
        upper, lower = vertical(summary["mean"] + half), vertical(summary["mean"] - half)
        yield (
            f'<path d="M{place - 4:.1f} {y:.1f}h8M{place:.1f} {upper:.1f}V{lower:.1f}" '
            f'stroke="{colour}" stroke-width="1.6"/>'
        )


def _legend(shown: Sequence[str], columns: int) -> Iterator[str]:
    for number, method in enumerate(shown):
        x = LEFT + (WIDTH + GAP) * (number % columns)
        y = TOP + HEIGHT + BOTTOM + 8 + LINE * (number // columns)
        yield f'<circle cx="{x + 4}" cy="{y - 4}" r="4" fill="{COLOURS[method]}"/>'
        yield f'<text x="{x + 14}" y="{y}">{escape(TITLES[method])}</text>'
