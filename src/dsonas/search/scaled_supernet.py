"""A traced model, with factors on its connections and channels, as a supernet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dsonas._utils import mask_like
from dsonas.cost import Budget, GraphCosts, Links
from dsonas.search.search_config import SearchConfig
from dsonas.search.supernets import Supernet
from dsonas.sparse import (
    ChannelMap,
    Choices,
    ProximalNAG,
    channel_magnitudes,
    copied,
    fold_factors,
    list_connections,
    normalise_factors,
    prune_model,
    remove_channels,
    scale_channels,
    scaling_factors,
    unscale_channels,
)

Structure = tuple[tuple[bool, ...], ...]
"""For every input of every sum and concatenation, then for every channel, whether it is live."""

Unit = tuple[tuple[int, int], ...]
"""Inputs that go together: for each the number of its sum, and its own in it."""

Saving = tuple[Unit, dict[str, float]]
"""What the removal of inputs saves, by measure."""

SMALLEST = 0.05  # initial factor of a channel, where the mean square is 1
LINKS_UNTIL = 0.5  # part of a plan after which only channels go: they can use a budget up
STEP = 16  # a group loses at most this part of its channels before all are compared again
RECOUNT = 8  # removals of channels between two looks at what links save


class ScaledSupernet(Supernet[Structure]):
    """A traced model with a factor on every input of its sums and concatenations, and on channels.

    What is removed stays in the model as zeros until the end, so that weights keep their shapes in
    the user's optimizer; costs are counted as if it had been cut. The result is cut once.

    Args:
        model: what ``scale_connections`` has returned; with ``channels``, a traced model that may
            have no such factors, whose weights change with the initial factors of its channels.
        example, budget, config, cost: as of ``Searcher``.
        channels: groups of channels that get factors.

    Raises:
        ValueError: if nothing keeps the budget.
    """

    def __init__(
        self,
        model: fx.GraphModule,
        example: Any,
        budget: Budget | None,
        config: SearchConfig,
        cost: Callable[[Structure], float] | None = None,
        channels: ChannelMap | None = None,
    ) -> None:
        if example is None:
            raise ValueError("example must be an input of the model, by which costs are counted")
        self.model: nn.Module = model
        self._traced = model
        self.example, self.config = example, config
        self.channels = channels or ChannelMap()
        self.leading = (budget or Budget()).leading
        self._own_cost = cost
        self.graph_costs = GraphCosts(model, example, self.channels)
        self.readers = self.channels.readers()
        self._vectors = scaling_factors(model)
        if self.channels.sizes:
            self._vectors += self._scale_channels(model)
        self._count = len(self.graph_costs.links)  # of sums and concatenations
        self.live: Structure = tuple((True,) * vector.numel() for vector in self._vectors)
        self._whole = self._measure(self.live)
        for name in budget.given if budget else ():
            if name not in self._whole:
                raise ValueError(
                    f"budget.{name} is not counted for a model: bound macs or params, or give "
                    "Searcher a cost="
                )
        self._limits = {} if budget is None else budget.of(self._whole.__getitem__).bounds
        self._floor = self._smallest(self.live)
        least = self._measure(self._floor)
        for name, limit in self._limits.items():
            if least[name] > limit:
                raise ValueError(
                    f"budget.{name} must be at least {least[name]:.6g}, what is left without all "
                    f"branches and channels that can go, got {limit:.6g}: raise it, or start from "
                    "a smaller model"
                )

    @torch.no_grad()
    def _scale_channels(self, model: fx.GraphModule) -> list[nn.Parameter]:
        """Give channels factors that say what readers get of them; the model computes the same."""
        start = [m.clamp(min=SMALLEST) for m in channel_magnitudes(model, self.channels)]
        start = [m / m.square().mean().sqrt() for m in start]
        fold_factors(model, self.channels, [1 / m for m in start])
        scales = scale_channels(model, self.channels)
        for vector, value in zip(scales.factors, start, strict=True):
            vector.copy_(value)
        return list(scales.factors)

    def _measure(self, structure: Structure) -> dict[str, float]:
        """Count a structure in all measures."""
        return self.totals(*self.split(structure))

    def totals(self, links: Links, counts: np.ndarray) -> dict[str, float]:
        """Count links and channels in all measures."""
        found = self.graph_costs.costs(links, counts)
        if self._own_cost is not None:
            found[self.leading] = self._own_cost(links)
        return found

    def split(self, structure: Structure) -> tuple[Links, np.ndarray]:
        """The links, and how many channels of each group are left."""
        groups = structure[self._count :]
        return structure[: self._count], np.array([sum(flags) for flags in groups], dtype=float)

    def cost(self, structure: Structure, measure: str | None = None) -> float:
        """Compute what the pruned model costs."""
        return self._measure(structure)[measure or self.leading]

    def vectors(self) -> list[nn.Parameter]:
        """List the factors of every sum and concatenation, then those of every group."""
        return self._vectors

    def flags(self, structure: Structure) -> list[Sequence[bool]]:
        """Tell which inputs and channels a structure has."""
        return list(structure)

    def measured(self) -> dict[str, float]:
        """Count what is left and what it costs, for the log."""
        cost = self._measure(self.live)
        counts = {name: int(cost[name]) for name in ("macs", "params")}
        return {"live_connections": sum(map(sum, self.live)), **counts}

    def penalties(self, gamma: float) -> list[Tensor | float]:
        """Compute Gamma of every factor, in proportion to what its removal saves; on average gamma.

        What saves nothing, such as an identity, has none. A channel counts by its whole group.
        """
        links, counts = self.split(self.live)
        rows = [torch.zeros(len(flags)) for flags in links]
        for unit, saved in self.link_savings(links, counts, self._floor):
            if len(unit) == 1:
                rows[unit[0][0]][unit[0][1]] = saved[self.leading]
        if len(counts):
            saved = self.graph_costs.without_channels(links, counts, counts - 1)[self.leading]
            sizes = self.graph_costs.groups
            rows += [torch.full((int(n),), float(s)) for n, s in zip(sizes, saved, strict=True)]
        mean = torch.stack([row.max() for row in rows]).mean().clamp(min=1e-30)
        return [gamma * row / mean for row in rows]

    def normalise(self, optimizer: ProximalNAG, staying: Structure) -> None:
        """Give the factors of every sum and group of which something stays a mean square of 1."""
        vectors = zip(self._vectors, staying, strict=True)
        normalise_factors([vector for vector, flags in vectors if any(flags)], optimizer)

    def alive(self, planned: Structure | None = None) -> Structure:
        """Find what has positive factors or is in a plan.

        A channel of each group stays, and the links without which the budget cannot be kept.
        """
        found = []
        for i, (flags, vector) in enumerate(zip(self.live, self._vectors, strict=True)):
            keeps = planned[i] if planned is not None else self._floor[i]
            left = tuple(
                was and (value > 0 or stays)
                for was, value, stays in zip(flags, vector.tolist(), keeps, strict=True)
            )
            found.append(left if any(left) or i < self._count else flags)
        if not self.graph_costs.is_live(tuple(found[: self._count])):
            found[: self._count] = self.live[: self._count]
        return tuple(found)

    def planned(self, progress: float, ranks: Sequence[Tensor]) -> Structure | None:
        """Find what is left when costs fall in equal ratios to the budget until it is held."""
        whole, limits = self._whole, self._limits
        if not limits:
            if self.config.keep_cost is None:
                return None
            limits = {"macs": self.config.keep_cost * whole["macs"]}
        limits = {n: min(limit, whole[n]) for n, limit in limits.items()}
        squares = [vector.detach().cpu().float().square().numpy() for vector in ranks]
        part = min(1.0, progress / self.config.hold_from)
        live, stays = self.live, self._floor
        if part > LINKS_UNTIL:
            live = self._nonzero()
            least = (*live[: self._count], *self._floor[self._count :])
            stays = stays if _Cut(self, least, limits, squares, stays).over() else least
        end = _Cut(self, live, limits, squares, stays).made()
        allowed = {n: whole[n] * self.config.share(limits[n] / whole[n], progress) for n in limits}
        return end if part == 1 else _Cut(self, live, allowed, squares, end).made()

    def _nonzero(self) -> Structure:
        """Leave out the links at 0, which the final network does without."""
        rows = zip(self.live[: self._count], self._vectors, strict=False)
        links = tuple(
            tuple(flag and value > 0 for flag, value in zip(flags, vector.tolist(), strict=True))
            for flags, vector in rows
        )
        return (*links, *self.live[self._count :]) if self.graph_costs.is_live(links) else self.live

    def link_savings(self, links: Links, counts: np.ndarray, stays: Structure) -> list[Saving]:
        """What is saved by the removal of links: of each, and of all that one feature feeds."""
        now, found = self.totals(links, counts), []
        for unit in self._units:
            left = tuple((i, j) for i, j in unit if links[i][j])
            if not left or (len(unit) > 1 and len(left) < 2):
                continue
            fewer = _without(links, left)
            if any(stays[i][j] for i, j in left) or not self.graph_costs.is_live(fewer):
                continue
            then = self.totals(fewer, counts)
            found.append((left, {name: now[name] - then[name] for name in now}))
        return found

    @cached_property
    def _units(self) -> list[Unit]:
        """The links that may go together: each, and all that one feature feeds."""
        fed: dict[int, list[tuple[int, int]]] = {}
        for i, sources in enumerate(self.graph_costs.sources):
            for j, source in enumerate(sources):
                fed.setdefault(source, []).append((i, j))
        singles = [((i, j),) for i, n in enumerate(self.graph_costs.links) for j in range(n)]
        return [*singles, *(tuple(unit) for unit in fed.values() if len(unit) > 1)]

    def _smallest(self, structure: Structure) -> Structure:
        """Remove links that save most, as long as any saves something, and all channels but one."""
        links, counts = self.split(structure)
        nothing, before = tuple((False,) * len(flags) for flags in structure), None
        while links != before:
            before = links
            savings = self.link_savings(links, counts, nothing)
            for unit, _ in sorted(savings, key=lambda found: -found[1][self.leading]):
                fewer = _without(links, unit)
                now, then = (self.totals(some, counts)[self.leading] for some in (links, fewer))
                links = fewer if then < now and self.graph_costs.is_live(fewer) else links
        first = [tuple(j == 0 for j in range(len(flags))) for flags in structure[self._count :]]
        return (*links, *first)

    @torch.no_grad()
    def remove(self, structure: Structure, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Note what is removed; the weights go at the end.

        A group whose factors have all come to 0 together would let nothing through any more; those
        that stay begin again. So does a link without which the budget cannot be kept.
        """
        self.live = structure
        for i, (vector, flags) in enumerate(zip(self._vectors, structure, strict=True)):
            stays = mask_like(flags, vector)
            if i < self._count:
                needed = mask_like(self._floor[i], vector) * stays
                vector.copy_(torch.where((vector == 0) & (needed > 0), SMALLEST, vector))
            elif not bool((vector * stays > 0).any()):
                vector.copy_(stays)

    def final(self) -> nn.Module:
        """Make the final network: channels are cut, then connections."""
        result = copied(self._traced)
        if self.channels.sizes:
            unscale_channels(result, self.channels)
            remove_channels(result, self.channels, self.live[self._count :])
        return prune_model(result, self.example) if self._count else result

    @property
    def labels(self) -> list[str]:
        """Name every sum and concatenation, then every group of channels."""
        sums = dict.fromkeys(link.target for link in list_connections(self._traced))
        return [*sums, *self.channels.sizes]

    def choices(self) -> Choices:
        """Name what is left: inputs by sum or concatenation, numbers of channels by group."""
        found: dict[str, list[str]] = {}
        for link in list_connections(self._traced):
            names = found.setdefault(link.target, [])
            if link.factor != 0:
                names.append(link.source)
        for name, flags in zip(self.channels.sizes, self.live[self._count :], strict=True):
            found[name] = [str(j) for j, flag in enumerate(flags) if flag]
        return Choices(found)

    def from_state(self, state: Sequence[Sequence[bool]]) -> Structure:
        """Read ``to_state``."""
        return tuple(tuple(flags) for flags in state)


class _Cut:
    """Removes what loses least for what it saves until costs are met.

    If of a sum, or of what a layer reads, a share r is left, that counts as 1 / r: the more has
    gone, the more the rest is worth. Costs are products of widths, so that with anything flatter,
    such as -log r, it would be best to make one width very small. Where a branch has saved more
    than was needed, another one comes back, and channels do.

    Args:
        net: the supernet.
        live: what there is.
        allowed: the costs to meet.
        squares: of the ranks of all factors.
        stays: a structure that meets them, of which nothing goes, so that no choice leads to a dead
            end.
    """

    def __init__(
        self,
        net: ScaledSupernet,
        live: Structure,
        allowed: dict[str, float],
        squares: Sequence[np.ndarray],
        stays: Structure,
    ) -> None:
        self.net, self.allowed, self.squares, self.stays = net, allowed, squares, stays
        self.links, self.counts = net.split(live)
        self.most, self.least = self.counts.copy(), net.split(stays)[1]
        groups = list(zip(live, squares, stays, strict=True))[len(self.links) :]
        self.ranked = [_Ranked(*group) for group in groups]

    def made(self) -> Structure:
        """Cut, and give what is left."""
        savings, age, removed = [], 0, []
        while over := self.over():
            if age % RECOUNT == 0:
                savings = self.net.link_savings(self.links, self.counts, self.stays)
            age += 1
            ratio, unit = self._best_links(savings, over)
            other, group, fewer = self._best_channels(over)
            if other < ratio:
                self.counts[group] -= fewer
            elif unit:
                self.links, age = _without(self.links, unit), 0
                removed.append(unit)
            else:
                break
        for unit in reversed(removed):
            self._bring_back(unit)
        self._refill()
        kept = [group.kept(int(n)) for group, n in zip(self.ranked, self.counts, strict=True)]
        return (*self.links, *kept)

    def over(self) -> dict[str, float]:
        """Compute by how much costs are above what is allowed, where they are."""
        now = self.net.totals(self.links, self.counts)
        return {n: now[n] - limit for n, limit in self.allowed.items() if now[n] > limit}

    def _bring_back(self, unit: Unit) -> None:
        """Give links back if that fits when the channels that they alone need are as few as can be.

        ``_refill`` makes them more.
        """
        saved = self._saved(self.counts - self.least)
        unread = np.all([saved[name] == 0 for name in self.allowed], 0)
        before = self.links, self.counts
        self.links = _without(self.links, unit, gone=False)
        self.counts = np.where(unread, self.least, self.counts)
        if self.over():
            self.links, self.counts = before

    def _refill(self) -> None:
        """Give channels back as long as costs are met."""
        now, step = self.net.totals(self.links, self.counts), STEP
        while len(self.counts):
            more = np.minimum(np.maximum(1, self.counts // step), self.most - self.counts)
            added, allowed = self._saved(-more), self.allowed
            fits = (more > 0) & np.all([now[n] - added[n] <= allowed[n] for n in allowed], 0)
            if not fits.any() and step == np.inf:
                return
            if not fits.any():
                step = np.inf  # one by one
                continue
            gains = self._losses(self.counts + more, more)
            price = sum(-added[n] / allowed[n] for n in allowed)
            best = np.where(fits, gains / np.maximum(price, 1e-30), -1).argmax()
            self.counts[best] += more[best]
            now = self.net.totals(self.links, self.counts)

    def _saved(self, fewer: np.ndarray) -> dict[str, np.ndarray]:
        """What is saved if one group loses channels, for each group."""
        return self.net.graph_costs.without_channels(self.links, self.counts, fewer)

    def _losses(self, counts: np.ndarray, fewer: np.ndarray) -> np.ndarray:
        """What all readers of every group lose if of ``counts`` channels some go."""
        rows = zip(self.ranked, self.net.readers, counts, fewer, strict=True)
        return np.array([times * group.loss(int(n), int(f)) for group, times, n, f in rows])

    def _best_channels(self, over: dict[str, float]) -> tuple[float, int, float]:
        """The ratio of loss and gain of the best group, its number, and how many channels go."""
        if not len(self.counts):
            return np.inf, -1, 0
        fewer = np.minimum(np.maximum(1, self.counts // STEP), self.counts - self.least)
        saved = self._saved(fewer)
        gains = sum(np.minimum(saved[n], over[n]) / over[n] for n in over)
        losses = self._losses(self.counts, fewer)
        usable = (fewer > 0) & (gains > 0)
        ratios = np.where(usable, losses / np.where(usable, gains, 1), np.inf)
        group = int(ratios.argmin())
        enough = max(over[n] / max(saved[n][group], 1e-30) for n in over)
        count = max(1, min(fewer[group], np.ceil(fewer[group] * enough)))
        return float(ratios[group]), group, count

    def _best_links(self, savings: list[Saving], over: dict[str, float]) -> tuple[float, Unit]:
        """What loses least for what it saves: the ratio of both, and the links."""
        best, found = np.inf, ()
        for unit, saved in savings:
            gain = sum(min(saved[n], amount) / amount for n, amount in over.items())
            if gain <= 0:
                continue
            loss = 0.0
            for i, j in unit:
                total = float(self.squares[i][list(self.links[i])].sum()) or 1.0
                loss += 1 / max(1 - float(self.squares[i][j]) / total, 1e-3) - 1
            if loss / gain < best:
                best, found = loss / gain, unit
        return best, found


class _Ranked:
    """The channels of a group in the order in which they go; those of an end structure last."""

    def __init__(self, flags: Sequence[bool], squares: np.ndarray, stays: Sequence[bool]) -> None:
        self.size = len(flags)
        live = [j for j, flag in enumerate(flags) if flag]
        count = sum(stays)
        self.order = sorted(live, key=lambda j: (stays[j] and count > 1, squares[j]))
        self.rest = np.maximum(squares[self.order], 1e-12)[::-1].cumsum()  # of the last n + 1

    def loss(self, count: int, fewer: int) -> float:
        """Compute what is lost if of ``count`` channels some go."""
        before, after = self.rest[count - 1], self.rest[count - fewer - 1]
        return self.size / count * float(before / after - 1) if fewer else 0.0

    def kept(self, count: int) -> tuple[bool, ...]:
        """The flags of the last ``count`` channels."""
        last = set(self.order[len(self.order) - count :])
        return tuple(j in last for j in range(self.size))


def _without(links: Links, unit: Unit, *, gone: bool = True) -> Links:
    """Links without some; with ``gone=False`` with them."""
    return tuple(
        tuple(not gone if (i, j) in unit else alive for j, alive in enumerate(flags))
        for i, flags in enumerate(links)
    )
