"""An ablation: what an operation is worth beside what it would be worth with equal factors.

With equal factors an operation of a low level is worth more than one of a high level, since it
feeds more. Without that, only the factors choose. To be imported by the commands of a search:

    python benchmarks/ablations.py relative-flow
"""

from __future__ import annotations

from collections.abc import Sequence

import dsonas.search.removal as control
from dsonas.graph.block import BlockGraph
from dsonas.search.importance import connection_flows, node_importance


def relative_importance(graph: BlockGraph, flows: Sequence[float]) -> dict[int, float]:
    """The importance of every kept operation, divided by that with equal factors."""
    equal = node_importance(graph, connection_flows(graph, [float(live) for live in graph.live]))
    found = node_importance(graph, flows)
    return {node: value / equal[node] if equal[node] else 0.0 for node, value in found.items()}


control.node_importance = relative_importance
