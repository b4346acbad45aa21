"""The chain of nested architectures of a search, and the member and width that meet a budget.

Every rebuild of a search leaves a smaller architecture inside the one before. Each is derivable, so
a search has found not one network but all of them, at every width. ``fit_chain`` picks the one for
a budget: width alone is too coarse where a stage has few channels (at 8, one channel is a quarter
of the cost), but another structure has other steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from dsonas.cost.budgets import (
    TOLERANCE,
    Budget,
    InfeasibleBudgetError,
    Measures,
    exact_measures,
    fit_width,
    with_width,
)
from dsonas.graph import Architecture, ArchitectureError, read_list, read_mapping

MAX_REMOVALS = 4  # of single connections, for the fine adjustment
FORMAT, VERSION = "dsonas-chain", 1


def distinct(chain: Iterable[Architecture]) -> list[Architecture]:
    """The members of a chain without repetitions, largest first."""
    found: list[Architecture] = []
    for member in chain:
        if not found or member != found[-1]:
            found.append(member)
    return found


def fit_chain(
    chain: Sequence[Architecture],
    budget: Budget,
    *,
    multiple: int = 1,
    measures: Measures | None = None,
    at_full_width: bool = False,
    growth: float | None = None,
) -> Architecture:
    """The structure and the width that bring a search to a budget, never above it.

    The preferred member is the last, the structure that the search was led to; its width meets the
    budget. If that leaves more than 3 % of the budget unused, other structures are tried, those
    nearest in cost first, until one does not: the other members, and the preferred one without one
    or a few connections; then the other members without a few; else the one that came closest. A
    latency bound is met by the preferred one alone: its noise is larger than what could be won.
    If the fewest channels are still too much for all of them (milliseconds hardly depend on the
    width), the smallest member loses operations, the one that saves most first, until it fits; then
    the next larger one.

    Args:
        chain: nested, largest first; at least one.
        budget: the bounds; without bounds the last member is returned as it is.
        multiple: channels are multiples of it, >= 1.
        measures: functions of an architecture by name; needed for a latency bound. None: the exact
            counts.
        at_full_width: prefer the member that is nearest to the budget as it is, so that the width
            changes least.
        growth: see ``fit_width``; a preferred structure that may not grow to the budget is taken as
            it is, so that a huge budget does not throw it away.

    Raises:
        InfeasibleBudgetError: if one operation in each block is too much, at any width.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> chain = [cifar_space(channels=8, blocks=(1,)).complete()]
        >>> round(exact_measures()["macs"](fit_chain(chain, Budget(macs="1M"))) / 1e6, 2)
        0.99
    """
    if not budget.bounds:
        return chain[-1]
    measures = measures or exact_measures()
    timed = "latency_ms" in budget.bounds

    def fit(structures: Iterable[Architecture], tolerance: float) -> Architecture | None:
        best: tuple[float, Architecture] | None = None
        for structure in structures:
            try:
                fitted = fit_width(
                    structure, budget, multiple=multiple, measures=measures, growth=growth
                )
            except InfeasibleBudgetError:
                continue
            use = budget.used_by(fitted, measures)
            widest = growth and with_width(structure, growth, multiple)
            capped = best is None and fitted == widest
            if best is None or use > best[0]:
                best = use, fitted
            if use >= 1 - tolerance or capped:
                break
        return None if best is None else best[1]

    preferred = _structures(chain, budget, measures, at_full_width)
    found = fit(islice(preferred, 1), 1.0) if timed else fit(preferred, TOLERANCE)
    if found is None:
        found = fit(_slimmer(chain, lambda member: budget.used_by(member, measures)), 1.0)
    if found is None:  # this raises, and tells what is wrong
        return fit_width(chain[-1], budget, multiple=multiple, measures=measures)
    return found


def _structures(
    chain: Sequence[Architecture], budget: Budget, measures: Measures, at_full_width: bool
) -> Iterator[Architecture]:
    """What to try, see ``fit_chain``."""

    def use(member: Architecture) -> float:
        return budget.used_by(member, measures)

    wanted = 1.0 if at_full_width else use(chain[-1])

    def distance(member: Architecture) -> float:
        return abs(math.log(use(member) / wanted))

    first, *others = sorted(reversed(chain), key=distance)
    yield first
    yield from sorted([*others, *_thinned(first, use)], key=distance)
    for member in others:
        yield from _thinned(member, use)


def _thinned(member: Architecture, use: Callable[[Architecture], float]) -> Iterator[Architecture]:
    """The architecture without one connection, without two, and so on.

    Of removals that cost the same one is as good as another here; no block is emptied. What costs
    least goes on to lose one more.
    """
    for _ in range(MAX_REMOVALS):
        whole, smaller = use(member), {}
        for place in member.connection_places():
            rest = member.without_connection(place)
            left = use(rest)
            if left < whole and rest.cells[place[0]].kept_nodes:
                smaller.setdefault(left, rest)
        if not smaller:
            return
        yield from (smaller[left] for left in sorted(smaller, reverse=True))
        member = smaller[max(smaller)]


def _slimmer(
    chain: Sequence[Architecture], use: Callable[[Architecture], float]
) -> Iterator[Architecture]:
    """The smallest member, then without one operation or branch of a reduction, without two, ...

    Each block keeps an operation. What is cheapest may have gone from the smallest member, so the
    next larger one follows, and so on.
    """
    for member in sorted(chain, key=use):
        rests = [member]
        while rests:
            smaller = min(rests, key=use)
            yield smaller
            places = smaller.operation_places()
            rests = [smaller.without_operation(place) for place in places]
            rests = [rest for rest in rests if all(graph.kept_nodes for graph in rest.blocks)]
            rests += [smaller.without_branch(place) for place in smaller.branch_places()]


def chain_to_json(chain: Sequence[Architecture]) -> str:
    """Versioned JSON; the inverse of ``chain_from_json``."""
    members = [json.loads(member.to_json()) for member in chain]
    return json.dumps({"format": FORMAT, "version": VERSION, "chain": members}) + "\n"


def is_chain(text: str) -> bool:
    """Whether a file says that it holds a chain; what it holds is checked when it is read."""
    return f'"format": "{FORMAT}"' in text[:100]


def chain_from_json(text: str) -> list[Architecture]:
    """Read ``chain_to_json``.

    Raises:
        ArchitectureError: naming the key that is missing, unknown or wrong.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(f"not a JSON file: {error}") from None
    value = read_mapping(value, "chain", ("format", "version", "chain"))
    if value["format"] != FORMAT or repr(value["version"]) != str(VERSION):
        raise ArchitectureError(
            f"format and version must be {FORMAT!r} and {VERSION}, "
            f"got {value['format']!r} and {value['version']!r}"
        )
    members = read_list(value["chain"], "chain")
    if not members:
        raise ArchitectureError("chain must hold at least one architecture, got none")
    return [Architecture.from_json(json.dumps(member)) for member in members]
