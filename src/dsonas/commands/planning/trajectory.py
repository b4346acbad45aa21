"""The architectures that a search will pass through, as far as they are known beforehand."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dsonas.cost import CostFunction, exact_measures
from dsonas.graph import Architecture
from dsonas.search import (
    Factors,
    SearchConfig,
    follow_plan,
)


@dataclass(frozen=True)
class Phase:
    """The part of a search between two rebuilds.

    Args:
        architecture: what is live.
        epochs: how long.
        seconds: time of the rebuild at its end.
    """

    architecture: Architecture
    epochs: int
    seconds: float


def search_phases(
    supernet: Architecture, config: SearchConfig, leading: str = "macs"
) -> list[Phase]:
    """The phases of a search, and as the last one, of no epochs, what it ends with.

    The planned cost decides how much is live when; which operations they are is known only after
    the search. Here all factors count as equal. Without a plan (``search.keep_cost`` null) nothing
    is known beforehand, and the supernet stays whole: steps, work and time are then upper bounds.

    Args:
        supernet: the complete architecture.
        config: the search.
        leading: the measure that is planned; latency counts as multiply-adds.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> phases = search_phases(supernet, SearchConfig(epochs=4))
        >>> [phase.epochs for phase in phases]
        [1, 1, 1, 1, 0]
        >>> phases[-1].architecture.num_live < phases[0].architecture.num_live
        True
    """
    rebuilds = _Rebuilds(supernet, config, leading)
    phases, live, done = [], supernet.clean(), 0
    for epoch in range(1, config.epochs + 1):
        if config.rebuilds_after(epoch):
            phase, smaller = rebuilds.end_phase(live, epoch - done, epoch / config.epochs)
            phases.append(phase)
            live, done = smaller, epoch
    return [*phases, Phase(live, 0, 0.0)]


class _Rebuilds:
    def __init__(self, supernet: Architecture, config: SearchConfig, leading: str) -> None:
        self.supernet, self.config = supernet, config
        self.factors: Factors = [[1.0] * len(graph.live) for graph in supernet.cells]
        name = "macs" if leading == "latency_ms" else leading
        self.cost: CostFunction = exact_measures()[name]

    def end_phase(
        self, live: Architecture, epochs: int, progress: float
    ) -> tuple[Phase, Architecture]:
        start = time.perf_counter()
        smaller = self._rebuild(live, progress)
        seconds = time.perf_counter() - start
        return Phase(live, epochs, seconds), smaller

    def _rebuild(self, live: Architecture, progress: float) -> Architecture:
        plan = self.config.plan
        if plan is None:
            return live
        states = self.supernet, live
        return follow_plan(plan, progress, *states, self.factors, cost=self.cost)
