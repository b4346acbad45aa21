"""The comparison as a picture: test error at each budget, one panel for each space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsonas.commands.charts import LEFT, LIGHT, TOP, fit_axis, picture
from dsonas.commands.comparison.results import TITLES, leading_bound

COLOURS = dict(zip(TITLES, map(LIGHT.get, ("k0", "k2", "k5", "k4", "k3", "k7")), strict=True))
PANEL, GAP, STEP = 340, 30, 10  # widths: of a panel, between panels, between methods


def svg(value: Mapping[str, Any]) -> str:
    """Draw what ``comparison.results.comparison`` returns as a self-contained SVG picture.

    Each dot is a training; the bars are the mean of a method and one standard deviation to each
    side, as in the table.
    """
    entries = [entry for entry in value["budgets"] if entry["summary"]]
    spaces = list(dict.fromkeys(entry["space"] for entry in entries))
    shown = [method for method in TITLES if any(method in entry["summary"] for entry in entries)]
    errors = [error for entry in entries for method, found in entry["summary"].items()
              for error in (*entry["trainings"][method], *_ends(found))]  # fmt: skip
    measure = leading_bound(value["budgets"][0])[0]
    columns = max(1, min(2, len(spaces)))  # of the legend; one panel has room for one
    below = 54 + 18 * math.ceil(len(shown) / columns)
    width = LEFT + (PANEL + GAP) * max(1, len(spaces))
    with picture(width, TOP + 260 + below) as drawn:
        for i, space in enumerate(spaces):
            here = [entry for entry in entries if entry["space"] == space]
            left = LEFT + i * (PANEL + GAP)
            axes = drawn.axes(left, width - left - PANEL, below)
            places = [PANEL * (at + 0.5) / len(here) for at in range(len(here))]
            axes.set_xlim(0, PANEL)
            axes.set_xticks(places, [leading_bound(entry)[1] for entry in here])
            axes.set_xlabel(f"{measure} →", loc="right")
            axes.set_title(f"{space} space", color=LIGHT["ink"])
            axes.set_title("" if i else "test error", loc="left")
            fit_axis(axes, "y", errors, "percent", zero=False)
            axes.tick_params(labelleft=i == 0)
            for place, entry in zip(places, here, strict=True):
                methods = [method for method in shown if method in entry["summary"]]
                for turn, method in enumerate(methods):
                    x = place + STEP * (turn - (len(methods) - 1) / 2)
                    found, values = entry["summary"][method], entry["trainings"][method]
                    axes.plot([x] * len(values), values, "o", color=COLOURS[method], ms=5.5, mew=0,
                              alpha=0.4, clip_on=False)  # fmt: skip
                    axes.errorbar(x, found["mean"], found["std"] or 0, 4, color=COLOURS[method],
                                  lw=1.8)  # fmt: skip
        if shown:
            discs = [axes.plot([], [], "o", color=COLOURS[method], ms=8)[0] for method in shown]
            names = [TITLES[method] for method in shown]
            drawn.figure.legend(discs, names, ncols=columns, loc="lower left",
                                bbox_to_anchor=((LEFT - 8) / width, 0))  # fmt: skip
        return drawn.svg(f"{value['data']['name']}: test error against {measure}")


def _ends(found: Mapping[str, Any]) -> tuple[float, float]:
    """Where the bar of a method begins and ends."""
    return found["mean"] - (found["std"] or 0), found["mean"] + (found["std"] or 0)
