"""The rule that all configurations share: a number is a finite number."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any


def require_finite(config: Any, group: str) -> None:
    """Refuse infinity and "not a number", which pass, or confuse, checks of a range.

    Args:
        config: a dataclass.
        group: what its fields are called in a message.

    Raises:
        ValueError: naming the field.

    Example:
        >>> from dataclasses import make_dataclass
        >>> require_finite(make_dataclass("Config", ["lr"])(float("nan")), "train")
        Traceback (most recent call last):
        ...
        ValueError: train.lr must be a finite number, got nan: leave it out for the default
    """
    for entry in fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{group}.{entry.name} must be a finite number, got {value}: "
                "leave it out for the default"
            )
