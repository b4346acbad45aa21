"""An ablation: what an operation is worth beside what it would be worth with equal factors.

With equal factors an operation of a low level is worth more than one of a high level, since it
feeds more. Without that, only the factors choose. To be imported by the commands of a search:

    python benchmarks/ablations.py relative-flow
"""

from __future__ import annotations

from collections.abc import Sequence

from dsonas.graph.block import BlockGraph
from dsonas.search.block_supernet import BlockSupernet
from dsonas.search.criteria import Flow, connection_flows, node_importance


def relative_importance(graph: BlockGraph, flows: Sequence[float]) -> dict[int, float]:
    """The importance of every kept operation, divided by that with equal factors."""
    equal = node_importance(graph, connection_flows(graph, [float(live) for live in graph.live]))
    found = node_importance(graph, flows)
    return {node: value / equal[node] if equal[node] else 0.0 for node, value in found.items()}


class RelativeFlow(Flow):
    """Score operations by ``relative_importance``."""

    def scores(self, architecture, factors):
        """Score every kept operation."""
        return {
            (place, node): value
            for place, (graph, vector) in enumerate(zip(architecture.cells, factors, strict=True))
            for node, value in relative_importance(graph, connection_flows(graph, vector)).items()
        }


BlockSupernet.criterion = RelativeFlow()
