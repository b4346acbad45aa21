"""An ablation: what goes from our blocks is judged once, by gradients, before anything is pressed.

So a model with choices is searched. Until half of the search all is live and factors hardly move;
then the summed gradients rank, and the ranks stay. To be imported by the commands of a search:

    dsonas compare --import benchmarks/judged_blocks.py ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsonas.graph import Architecture, BlockGraph, Place
from dsonas.search.block_supernet import BlockSupernet
from dsonas.search.choice_supernet import JUDGED
from dsonas.search.removal import Factors

_begin, _planned = BlockSupernet.__init__, BlockSupernet.planned


class Pull:
    """Score by how far the gradients would have moved factors from 1, where all of them began.

    That is, in proportion, by how much more the loss is, to first order, without a connection. An
    operation is worth the pulls of all that goes with it into what stays.
    """

    def scores(self, architecture: Architecture, factors: Factors) -> dict[Place, float]:
        """Score every kept operation."""
        return {
            (place, node): self._lost(graph, graph.without_node(node), vector)
            for place, (graph, vector) in enumerate(zip(architecture.cells, factors, strict=True))
            for node in graph.kept_nodes
        }

    def _lost(self, graph: BlockGraph, smaller: BlockGraph, factors: Sequence[float]) -> float:
        ends = {*smaller.kept_nodes, graph.output_node}
        scores = self.connection_scores(graph, factors)
        rows = zip(graph.connections, scores, smaller.live, strict=True)
        return sum(score for (_, target), score, stays in rows if not stays and target in ends)

    def connection_scores(self, graph: BlockGraph, factors: Sequence[float]) -> list[float]:
        """Score every connection."""
        return [
            value - 1 if alive else 0.0 for value, alive in zip(factors, graph.live, strict=True)
        ]


def begin(self: Any, *arguments: Any, **options: Any) -> None:
    """Make a supernet that is judged once."""
    _begin(self, *arguments, **options)
    if self.config.keep_cost is not None:
        self.judged = JUDGED * self.config.hold_from


def planned(self: Any, progress: float, ranks: Sequence[Tensor]) -> Architecture | None:
    """Follow the plan from the judgement on."""
    if self.judged is None:
        return _planned(self, progress, ranks)
    hold = self.config.hold_from
    part = min(1.0, max(0.0, (progress - self.judged) / (hold - self.judged)))
    return self.live if part == 0 else _planned(self, part * hold, ranks)


BlockSupernet.criterion = Pull()
for name, method in (("__init__", begin), ("planned", planned)):
    setattr(BlockSupernet, name, method)
