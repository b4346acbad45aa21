"""A projection as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dsonas.commands.planning.projecting import Line, Projection
from dsonas.cost import architecture_cost
from dsonas.graph import Architecture
from dsonas.run import readable_count

_SIZES = ((1e15, " PB"), (1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
_COUNTS = ((1e18, " E"), (1e15, " P"), (1e12, " T"))
_HEAD = ("stage", "", "steps", "multiply-adds", "least bytes", "peak memory", "time")


def table(plan: Projection) -> Iterator[str]:
    """The lines of a plan's table, with what is known and what is assumed above and below."""
    shape, outline = plan.shape, plan.outline
    size = f"{shape.image_size}x{shape.image_size}x{shape.input_channels}"
    yield (
        f"data      {shape.num_train} training and {shape.num_test} test images, {size}, "
        f"{shape.num_classes} classes ({shape.origin})"
    )
    yield f"supernet  {_sizes(outline.supernet)}"
    yield f"network   {_sizes(outline.network)} (assumed for step 3)"
    yield f"device    {plan.cluster.device.description}"
    if plan.cluster.devices > 1:
        yield (
            f"cluster   {plan.cluster.devices} of them, each a part of every batch; gradients by "
            f"ring all-reduce over {plan.cluster.link_gbytes:g} GB/s links, not overlapped"
        )
    yield ""
    yield from columns([_HEAD, *map(_cells, plan.lines), _total(plan)])
    for note in outline.notes:
        yield f"note: {note}"


def _sizes(architecture: Architecture) -> str:
    cost = architecture_cost(architecture)
    return (
        f"{architecture.num_live} connections, {readable_count(cost.macs)} multiply-adds, "
        f"{readable_count(cost.params)} parameters"
    )


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.stage,
        line.part,
        str(line.steps),
        count(line.macs),
        size(line.least_bytes),
        size(line.memory_bytes),
        duration(line.seconds),
    )


def _total(plan: Projection) -> tuple[str, ...]:
    lines = plan.lines
    return (
        "all",
        "",
        str(sum(line.steps for line in lines)),
        count(sum(line.macs for line in lines)),
        size(sum(line.least_bytes for line in lines)),
        size(max(line.memory_bytes for line in lines)),
        duration(plan.seconds()),
    )


def growth_tables(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The tables of ``growth``."""
    head = ("devices", "pretrain and search", "speed-up", "exchange")
    cells = [
        (
            str(row["devices"]),
            duration(row["seconds"]),
            f"{row['speedup']:.1f}",
            f"{row['exchange_share']:.1%}",
        )
        for row in rows["devices"]
    ]
    yield from columns([head, *cells], texts=0)
    for name in ("images", "classes"):
        yield ""
        pairs = [(str(row[name]), duration(row["seconds"])) for row in rows[name]]
        yield from columns([(name, "pretrain and search"), *pairs], texts=0)


def columns(rows: Sequence[Sequence[str]], texts: int = 2) -> Iterator[str]:
    """Rows with aligned columns: the first ``texts`` to the left, numbers to the right.

    Example:
        >>> list(columns([("a", "n"), ("bb", "10")], texts=1))
        ['a    n', 'bb  10']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def size(value: float) -> str:
    """Bytes in three digits.

    Example:
        >>> size(1_230_000), size(12)
        ('1.23 MB', '12 B')
    """
    return next((f"{value / unit:.3g}{name}" for unit, name in _SIZES if value >= unit),
                f"{value:.0f} B")  # fmt: skip


def count(value: float) -> str:
    """A count in three digits, of any size.

    Example:
        >>> count(2.5e15), count(1500)
        ('2.5 P', '1.5 k')
    """
    large = (f"{value / unit:.3g}{name}" for unit, name in _COUNTS if value >= unit)
    return next(large, readable_count(value))


def duration(seconds: float) -> str:
    """A time in three digits.

    Example:
        >>> duration(4), duration(90), duration(5400)
        ('4 s', '1.5 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.4g} h"


def as_json(plan: Projection) -> dict[str, Any]:
    """A plan as plain values; hours and images a second of each line included."""
    outline = plan.outline
    return {
        "data": asdict(plan.shape),
        "device": plan.cluster.device.description,
        "devices": plan.cluster.devices,
        "link_gbytes": plan.cluster.link_gbytes,
        "supernet": asdict(architecture_cost(outline.supernet)),
        "network": asdict(architecture_cost(outline.network)),
        "notes": list(outline.notes),
        "lines": [{**asdict(line), "hours": line.seconds / 3600} for line in plan.lines],
        "hours": plan.seconds() / 3600,
    }
