"""Axes: round ticks, and values to positions, linear or logarithmic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsonas.run import readable_count


@dataclass(frozen=True)
class Scale:
    """Maps values to positions.

    Args:
        low: value at ``start``; above 0 if logarithmic.
        high: value at ``end``, > ``low``.
        start: position of ``low``.
        end: position of ``high``.
        log: whether equal factors, rather than equal steps, are equal distances.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; values beyond the ends are taken as the ends.

        Example:
            >>> Scale(1, 100, 0, 10, log=True)(10)
            5.0
        """
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values to label."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten.

    Example:
        >>> linear_ticks(0, 90)
        [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; with their doubles and fives where that leaves few.

    Example:
        >>> log_ticks(0.8, 90)
        [1.0, 10.0]
        >>> log_ticks(0.8, 9)
        [1.0, 2.0, 5.0]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [round(f * 10.0**p, 12) for p in powers for f in factors]
        ticks = [value for value in found if low <= value <= high]
        if len(ticks) >= (2 if factors == (1,) else 3):
            return ticks
    return [low, high]


def value_scale(
    values: list[float], start: float, end: float, *, log: bool = False, zero: bool = True
) -> Scale:
    """A scale that holds all values with a little room.

    Args:
        values: what to show, at least one.
        start: position of the lowest.
        end: position of the highest.
        log: logarithmic, where there are positive values; the others lie at its low end.
        zero: a linear scale begins at 0.
    """
    positive = [value for value in values if value > 0]
    if log and positive and max(positive) / min(positive) > 2:
        return Scale(min(positive) / 1.25, max(positive) * 1.15, start, end, log=True)
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
    return Scale(min(0.0, low) if zero else low - room, high + room, start, end)


def text_of(value: float, kind: str) -> str:
    """A value as an axis or a tooltip writes it.

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


def percent(share: float) -> str:
    """A share of 1 in percent.

    Example:
        >>> percent(0.974), percent(0.004)
        ('97 %', '0.4 %')
    """
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.0095 else f"{100 * share:.1g} %"
