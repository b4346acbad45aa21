"""A run in words and key figures."""

from __future__ import annotations

from dataclasses import dataclass

from dsonas.commands.report.collect import RunRecord, budget_bounds
from dsonas.commands.report.examine import Examination
from dsonas.commands.report.scales import percent
from dsonas.cost import Cost, architecture_cost
from dsonas.data import short_name
from dsonas.run import readable_count
from dsonas.train import STAGES

NO_BREAK = "\u00a0"  # a space at which no line ends


@dataclass(frozen=True)
class Card:
    """A key figure.

    Args:
        name: what it is.
        value: the figure.
        note: what to compare it with.
        share: of a bound, in [0, 1], drawn as a bar; None draws none.
    """

    name: str
    value: str
    note: str = ""
    share: float | None = None


def duration(seconds: float) -> str:
    """A time in the units that one would say.

    Example:
        >>> duration(4.26), duration(75), duration(3171), duration(90000)
        ('4.3 s', '1 min 15 s', '53 min', '25 h')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if minutes < 100:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def data_name(record: RunRecord) -> str:
    """The data set, a folder by its own name."""
    name = str(record.setting("data.name") or "images")
    name = short_name(name)
    return {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(
        name, name
    )


def cost_of(record: RunRecord) -> Cost | None:
    """What the network costs; None without one, or if it has operations not registered here."""
    if record.architecture is None:
        return None
    try:
        return architecture_cost(record.architecture)
    except ValueError:
        return None


def headline(record: RunRecord) -> str:
    """The result in one sentence."""
    metrics, name = record.metrics, data_name(record)
    if metrics:
        text = f"{metrics['test_error']:.2f} % test error on {name} with "
        return text.replace(" %", f"{NO_BREAK}%") + _unbroken(metrics["macs"])
    if record.studies and not record.epochs:
        return f"{len(record.studies)} networks on {name} compared"
    cost = cost_of(record)
    if record.stage("train"):
        epoch = record.stage("train")[-1].number
        return f"A network for {name}, in training: {_progress(record, 'train', epoch)}"
    if record.architecture:
        counted = f" with {_unbroken(cost.macs)}" if cost else ""
        return f"A network for {name}{counted}, found and not trained yet"
    if record.epochs:
        last = record.epochs[-1]
        return f"A search on {name}, not finished: {_progress(record, last.stage, last.number)}"
    return f"A run on {name} that has only just begun"


def _unbroken(macs: float) -> str:
    return f"{readable_count(macs)} multiply-adds".replace(" ", NO_BREAK, 1)


def _progress(record: RunRecord, stage: str, epoch: int) -> str:
    total = record.setting(f"{stage}.epochs")
    return f"{stage} epoch {epoch}" + (f" of {total}" if total else "")


def subtitle(record: RunRecord) -> str:
    """A second sentence: what the search did."""
    found, supernet = record.architecture, record.supernet
    if found is None:
        return ""
    if supernet is None:
        origin = "Its architecture came from a file" if record.epochs else "Not begun"
        return f"{origin}; it has {found.num_live} live connections."
    kept, total = found.num_live, supernet.num_live
    text = f"The search kept {kept} of {total} connections"
    if budget_bounds(record):
        channels = ", ".join(map(str, found.skeleton.channels))
        text += f"; the budget then allows {channels} channels"
    return text + "."


def cards(record: RunRecord, examination: Examination | None) -> list[Card]:
    """The key figures, those that are known."""
    found, metrics = [], record.metrics or {}
    if metrics:
        note = f"test loss {metrics['test_loss']:.3f}" if "test_loss" in metrics else ""
        if examination:
            note = f"{examination.num_wrong:,} of {examination.num_images:,} images".replace(
                ",", " "
            )
        found.append(Card("test error", f"{metrics['test_error']:.2f} %", note))
    found += _cost_cards(record)
    if record.architecture:
        live, total = record.architecture.num_live, _num_possible(record)
        note = f"{percent(live / total)} of all are left" if total else ""
        found.append(
            Card("live connections", f"{live} of {total}", note, live / total if total else None)
        )
    if seconds := record.seconds:
        names = [f"{name} {duration(value)}" for name, value in seconds.items()]
        found.append(Card("time", duration(sum(seconds.values())), ", ".join(names)))
    return found


def _num_possible(record: RunRecord) -> int:
    if record.supernet:
        return record.supernet.num_live
    found = record.architecture
    assert found is not None
    return found.complete(found.skeleton, found.operations, found.num_levels).num_live


def _cost_cards(record: RunRecord) -> list[Card]:
    cost, bounds = cost_of(record), budget_bounds(record)
    values: dict[str, float] = {}
    if cost:
        values = {"macs": cost.macs, "params": cost.params, "memory_bytes": cost.memory_bytes}
    values.update({k: v for k, v in (record.metrics or {}).items() if k in _COSTS and v})
    return [
        _cost_card(title, values[name], bounds.get(name), unit)
        for name, (title, unit, always) in _COSTS.items()
        if name in values and (always or name in bounds)
    ]


_COSTS = {  # title, unit, and whether it is shown without a bound
    "macs": ("multiply-adds", "", True),
    "params": ("parameters", "", True),
    "memory_bytes": ("memory access", "B", False),
    "latency_ms": ("latency", "ms", False),
}


def _cost_card(title: str, value: float, bound: float | None, unit: str) -> Card:
    def text(number: float) -> str:
        if unit == "ms":
            return f"{number:.3g} ms"
        counted = readable_count(number)
        if not unit:
            return counted
        return counted + unit if counted[-1].isalpha() else f"{counted} {unit}"

    if bound is None:
        return Card(title, text(value))
    return Card(title, text(value), f"{percent(value / bound)} of the budget {text(bound)}",
                min(1.0, value / bound))  # fmt: skip


def times(record: RunRecord) -> list[tuple[str, str, float]]:
    """Stage, its time in words, and its share of all in percent."""
    total = sum(record.seconds.values()) or 1.0
    return [
        (name, duration(record.seconds[name]), 100 * record.seconds[name] / total)
        for name in STAGES
        if name in record.seconds
    ]


def circumstances(record: RunRecord) -> list[tuple[str, str]]:
    """Where and with what it was computed."""
    metrics = record.metrics or {}
    versions = metrics.get("versions")
    rows = [("seed", record.setting("seed")), ("device", metrics.get("device")),
            ("CPU threads", metrics.get("threads")),
            ("precision", record.setting("engine.precision")),
            ("unreadable images skipped", metrics.get("skipped_images") or None)]  # fmt: skip
    rows += list(versions.items()) if isinstance(versions, dict) else []
    return [(name, str(value)) for name, value in rows if value is not None]


def command(record: RunRecord) -> str:
    """What repeats the run from its ``config.yaml``."""
    if record.setting("architecture"):
        name = "train"  # config.yaml names the architecture file
    else:
        name = "run" if record.metrics or record.stage("train") else "search"
    return f"dsonas {name} --config config.yaml --out runs/again"
