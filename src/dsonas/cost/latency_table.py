"""Latency as a sum over parts, from a table of any device: this one or the user's own."""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsonas.cost.budgets import CostFunction
from dsonas.graph import Architecture

OPTIONAL = ("add", "block")  # parts that a table may leave out: they take no time then
PARTS = ("base", "output", *OPTIONAL)  # besides the operations
_KEY = re.compile(r"([^\W\d]\w*)@([1-9]\d*)x([1-9]\d*)")
MAX_MILLISECONDS = 1e9
_FORM = "base, or NAME@CxS: a part at C channels on S x S features"


def latency_from_table(table: Mapping[str, float]) -> CostFunction:
    """The latency function of a device, from the milliseconds of its parts.

    Between two numbers of channels that the table has, latency is taken to be linear; below the
    smallest it is that of the smallest, and above the largest it is infinite, so that no network
    is chosen of which nothing is known.

    Args:
        table: milliseconds, >= 0, by part at C channels on S x S features: ``NAME@CxS`` for an
            operation, ``output@CxS`` for one connection to a block output, ``base@CxS`` for all
            the rest, by the channels and features of the first stage, or ``base`` if it hardly
            depends on them. Optional: ``add@CxS`` for every input of an operation but its first,
            and ``block@CxS`` for the end of a block that has any operation.

    Returns:
        A function from an architecture to milliseconds.

    Raises:
        ValueError: if a key or a value is none of these; from the function, when it meets a part
            that the table lacks.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> from dsonas.graph.block import BlockGraph
        >>> import dataclasses
        >>> table = {"base": 1.0, "output@4x32": 0.1, "max_pool3x3@4x32": 0.2}
        >>> complete = cifar_space(channels=4, blocks=(1,)).complete()
        >>> block = BlockGraph.complete(("max_pool3x3",), 2)
        >>> pools = dataclasses.replace(complete, blocks=(block,))
        >>> round(latency_from_table(table)(pools), 3)
        1.6
    """
    curves = _curves(table)

    def look_up(part: str, channels: int, size: int) -> float:
        if (part, size) in curves:
            return _interpolate(curves[part, size], channels)
        if part in OPTIONAL:
            return 0.0
        key = f"{part}@{channels}x{size}"
        raise ValueError(
            f"latency table must have an entry {key!r}, but has none: add it, or time the parts of "
            "this network by dsonas latency"
        )

    def latency(architecture: Architecture) -> float:
        skeleton = architecture.skeleton
        places = list(zip(skeleton.channels, skeleton.stage_sizes, strict=True))
        total = table["base"] if "base" in table else look_up("base", *places[0])
        for graph, stage in zip(architecture.clean().blocks, skeleton.block_stages, strict=True):
            place = places[stage]
            total += sum(look_up(graph.operation(node), *place) for node in graph.kept_nodes)
            adds = sum(len(graph.inputs[node]) - 1 for node in graph.kept_nodes)
            total += adds * look_up("add", *place) if adds else 0.0
            if graph.kept_nodes:
                total += look_up("block", *place)
                total += len(graph.inputs[graph.output_node]) * look_up("output", *place)
        return total

    return latency


def read_table(path: str | Path) -> dict[str, float]:
    """Read a table from a JSON file, as ``dsonas latency`` writes it.

    Raises:
        ValueError: if it cannot be read, or holds something else.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"latency table {path} cannot be read: {error.strerror}; dsonas latency writes one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON file of a latency table: {error}") from None
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path} must be a JSON object of milliseconds by part: {_FORM}")
    try:
        _curves(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return table


def _curves(table: Mapping[str, Any]) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """Milliseconds by rising channels, for each part and size."""
    curves: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for key, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MAX_MILLISECONDS:
            raise ValueError(
                f"latency table must hold milliseconds from 0 to {MAX_MILLISECONDS:.0e}, got "
                f"{str(value)[:20]!r} for {key!r}"
            )
        if key == "base":
            continue
        found = _KEY.fullmatch(key)
        if not found:
            raise ValueError(f"latency table must have keys {_FORM}; got {key!r}")
        part, channels, size = found[1], int(found[2]), int(found[3])
        curves.setdefault((part, size), []).append((channels, float(value)))
    return {place: sorted(curve) for place, curve in curves.items()}


def _interpolate(curve: list[tuple[int, float]], channels: int) -> float:
    place = bisect.bisect_left(curve, (channels, 0.0))
    if place == len(curve):
        return math.inf
    right, above = curve[place]
    if place == 0 or right == channels:
        return above
    left, below = curve[place - 1]
    return below + (above - below) * (channels - left) / (right - left)
