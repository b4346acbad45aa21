"""The comparison as a picture: test error against multiply-adds, one panel for each space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsonas.commands.charts import Spread, spreads
from dsonas.commands.comparison.results import TITLES

COLOURS = dict(zip(TITLES.values(), ("k0", "k2", "k5", "k4", "k3", "k7"), strict=True))


def svg(value: Mapping[str, Any]) -> str:
    """Draw what ``comparison.results.comparison`` returns as a self-contained SVG picture.

    Each dot is a training; the bars are the mean of a method and one standard deviation to each
    side, as in the table.
    """
    panels: dict[str, list[tuple[float, dict[str, Spread]]]] = {}
    for entry in value["budgets"]:
        group = {TITLES[method]: (entry["trainings"][method], found["mean"], found["std"] or 0.0)
                 for method, found in entry["summary"].items()}  # fmt: skip
        if group:
            panels.setdefault(f"{entry['space']} space", []).append((entry["macs"], group))
    return spreads(f"{value['data']['name']}: test error against multiply-adds", panels, COLOURS)
