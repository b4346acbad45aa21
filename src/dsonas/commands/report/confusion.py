"""The confusion matrix as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from dsonas.commands.report.svg import add, picture, shorten

MOST_CLASSES = 100
MOST_NUMBERS = 20
SIDE, LONGEST_NAME, CHARACTER = 520.0, 16, 6.6


def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Element:
    """Draw how often images of each class (rows) are taken for each class (columns).

    Args:
        counts: a row of numbers for each true class.
        names: of the classes.

    Example:
        >>> svg = draw_confusion([[9, 1], [0, 10]], ["cat", "dog"])
        >>> [text.text for text in svg.iter("text") if "count" in text.get("class")]
        ['9', '1', '10']
    """
    short = [shorten(name, LONGEST_NAME) for name in names]
    room = 14 + CHARACTER * max(map(len, short))
    cell = min(44.0, SIDE / len(names))
    named = len(names) <= 2 * MOST_NUMBERS
    left, top = room + 18, (0.72 * room if named else 0) + 22
    width, height = left + cell * len(names) + 0.6 * room, top + cell * len(names) + 6
    svg = picture(width, height, "confusion matrix", class_="confusion")
    add(svg, "text", "true class ↓   predicted →", x=left - 8, y=12.0, class_="y unit")
    for i, name in enumerate(short if named else ()):
        middle = cell * (i + 0.5)
        add(svg, "text", name, x=left - 8, y=top + middle + 4, class_="y")
        turn = f"translate({left + middle + 4:.1f} {top - 8:.1f}) rotate(-38)"
        add(svg, "text", name, transform=turn, class_="x")
    side = cell * len(names)
    add(svg, "rect", x=left, y=top, width=side, height=side, rx=4.0, class_="cell")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                place = (left + j * cell, top + i * cell, cell)
                _draw_cell(svg, place, (i, j), counts, names)
    return svg


def _draw_cell(
    svg: Element,
    place: tuple[float, float, float],
    at: tuple[int, int],
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
) -> None:
    (x, y, cell), (i, j) = place, at
    count, total = counts[i][j], sum(counts[i])
    gap = 1.5 if cell > 12 else 0.3
    share = count / total
    tip = f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} recognised"
    tip += f"\n{count} of {total} images"
    kind = "cell right" if i == j else "cell wrong"
    opacity = f"{0.12 + 0.88 * share**0.5:.2f}"
    add(svg, "rect", x=x + gap / 2, y=y + gap / 2, width=cell - gap, height=cell - gap,
        rx=min(4.0, cell / 8), class_=kind, fill_opacity=opacity, data_tip=tip)  # fmt: skip
    if len(names) <= MOST_NUMBERS:
        strong = " strong" if share > 0.4 else ""
        add(svg, "text", count, x=x + cell / 2, y=y + cell / 2 + 4, class_=f"count{strong}")
