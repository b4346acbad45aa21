"""What a search found as a piece of HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dsonas.cost import MEASURES
from dsonas.graph import Architecture, draw_architecture

# colours of their own only where they read on light and on dark pages
_STYLE = "border:1px solid #8886;border-radius:8px;padding:12px 16px;max-width:760px"
_KEPT = "background:#2f6fdb;color:#fff;border-radius:9px;padding:1px 9px;margin:2px"
_GONE = "opacity:.5;text-decoration:line-through;padding:1px 9px;margin:2px"
_CELL = "text-align:left;padding:3px 14px 3px 0;vertical-align:top"


def result_html(
    choices: Mapping[str, Sequence[str]],
    offered: Any,
    structure: Any,
    costs: tuple[str, float, float | None, float | None],
) -> str:
    """Draw what was chosen out of what was offered, or an ``Architecture``, and the cost.

    ``offered`` may be something else than names by label, if they are not known; ``costs`` are the
    measure, and in it the cost, the budget and what the supernet costs.

    Example:
        >>> offered = {"layer": ("conv", "skip")}
        >>> page = result_html({"layer": ["skip"]}, offered, None, ("macs", 40.0, 50.0, 200.0))
        >>> "conv" in page, "80 % of the budget 50" in page
        (True, True)
    """
    known = offered if isinstance(offered, Mapping) else {}
    parts = [*_cost_lines(*costs)]
    if isinstance(structure, Architecture):
        parts.append(f"<pre>{escape(draw_architecture(structure))}</pre>")
    else:
        rows = (
            f'<tr><th style="{_CELL}">{escape(label)}</th><td style="{_CELL}">'
            + " ".join(_names(names, known.get(label, names)))
            + "</td></tr>"
            for label, names in choices.items()
        )
        parts.append(f"<table>{''.join(rows)}</table>")
    return f'<div style="{_STYLE}">{"".join(parts)}</div>'


def _names(kept: Sequence[str], offered: Sequence[str]) -> Iterator[str]:
    for name in offered:
        yield f'<span style="{_KEPT if name in kept else _GONE}">{escape(name)}</span>'


def _cost_lines(
    measure: str, cost: float, bound: float | None, whole: float | None
) -> Iterator[str]:
    title = MEASURES[measure].title
    shares = [(bound, "the budget"), (whole, "the supernet")]
    told = (f"{100 * cost / value:.3g} % of {of} {value:,.6g}" for value, of in shares if value)
    yield f"<p><b>{cost:,.6g}</b> {escape(title)}: {', '.join(told) or 'no budget'}</p>"
    if bound:
        width = min(100.0, 100 * cost / bound)
        yield (
            '<div style="background:#8883;border-radius:4px;height:8px">'
            f'<div style="background:#2f6fdb;border-radius:4px;height:8px;width:{width:.1f}%">'
            "</div></div>"
        )
