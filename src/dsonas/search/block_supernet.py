"""Our completely connected blocks as a supernet of the ``Searcher``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dsonas.cost import CostFunction, architecture_cost
from dsonas.graph import Architecture, readable_operation
from dsonas.nn import Network
from dsonas.search.penalties import penalty_of
from dsonas.search.removal import MACS, Criterion, Flow, follow_plan
from dsonas.search.search_config import SearchConfig
from dsonas.search.shrinking import shrink
from dsonas.search.supernets import Supernet
from dsonas.sparse import Choices, ProximalNAG


class BlockSupernet(Supernet[Architecture]):
    """A ``Network`` with scaling factors; its structures are architectures.

    ``cost`` of an architecture is planned; ``latency``, in milliseconds, is for
    ``adaptive_latency``.

    Raises:
        ValueError: if the network has no scaling factors.
    """

    criterion: Criterion = Flow()

    def __init__(
        self,
        network: Network,
        config: SearchConfig,
        cost: CostFunction = MACS,
        latency: CostFunction | None = None,
    ) -> None:
        if network.scaling is None:
            raise ValueError("a network to be searched must have scaling factors: scaled=True")
        self.model: Network = network
        self.scaling, self.config = network.scaling, config
        self.whole = self.live = self._staying = self._fed = network.architecture
        self._cost = cost
        self._penalty = penalty_of(config.penalty_kind, latency)

    def vectors(self) -> list[nn.Parameter]:
        """List the packed vectors of the cells, then the pairs of the reduction blocks."""
        return [*self.scaling.blocks, *self.scaling.reductions]

    def flags(self, structure: Architecture) -> list[Sequence[bool]]:
        """Tell which connections an architecture has."""
        return [*(cell.live for cell in structure.cells), *structure.reductions]

    def cost(self, structure: Architecture) -> float:
        """Compute the cost of an architecture in the measure that is planned."""
        return self._cost(structure)

    def measured(self) -> dict[str, float]:
        """Count what is left and what it costs, for the log."""
        left = self.alive()
        cost = architecture_cost(left)
        return {"live_connections": left.num_live, "macs": cost.macs, "params": cost.params}

    def logged_factors(self) -> list[nn.Parameter]:
        """List the vectors whose course is logged: those of the cells."""
        return list(self.scaling.blocks)

    def penalties(self, gamma: float) -> list[Tensor | float]:
        """Compute Gamma of every vector.

        Neither a plan nor normalised factors are about reduction blocks. Their scale is nearly free
        and would be pressed down, until a step of the factors is larger than they are and a branch
        goes by chance; so they are pressed only where the penalty decides alone.
        """
        alone = self.config.keep_cost is None and not self.config.normalise
        branches = [gamma if alone else 0.0] * len(self.scaling.reductions)
        if self.live == self.whole and self.config.penalty_kind != "adaptive_memory":
            return [*[gamma] * len(self.scaling.blocks), *branches]
        rows = self._penalty.weights(self.whole, self.live)
        return [
            vector.new_tensor([gamma * weight for weight in row])
            for vector, row in zip(self.scaling.blocks, rows, strict=True)
        ] + [
            vector.new_full(vector.shape, value)
            for vector, value in zip(self.scaling.reductions, branches, strict=True)
        ]

    def normalise(self, optimizer: ProximalNAG, staying: Architecture) -> None:
        """Give the live factors of every target that stays a mean square of 1."""
        if staying is not self._staying:
            ends = [{cell.output_node, *cell.kept_nodes} for cell in staying.cells]
            self._fed = self.live.with_cells(
                cell.prune([connection.target in targets for connection in cell.connections])
                for cell, targets in zip(self.live.cells, ends, strict=True)
            )
            self._staying = staying
        self.scaling.normalise(self._fed, optimizer)

    def alive(self, planned: Architecture | None = None) -> Architecture:
        """Find what the positive factors leave, and what a plan keeps, cleaned."""
        return self.scaling.architecture(self.live, planned)

    def planned(self, progress: float, ranks: Sequence[Tensor]) -> Architecture | None:
        """Find what the plan leaves; None if the penalty decides alone."""
        if self.config.keep_cost is None:
            return None
        blocks = [vector.tolist() for vector in ranks[: len(self.scaling.blocks)]]
        return follow_plan(
            self.config, progress, self.whole, self.live, blocks, self.criterion, self._cost
        )

    def remove(self, structure: Architecture, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Remove connections and operations physically; see ``shrink``."""
        self.live = structure
        shrink(self.model, structure, *optimizers)

    def final(self) -> Network:
        """Copy the network, whose sums still have their factors."""
        return copy.deepcopy(self.model)

    def choices(self) -> Choices:
        """Name the operations that are left, by block."""
        return Choices(
            {
                f"block {i}": [
                    f"level {graph.level(node)} {readable_operation(graph.operation(node))}"
                    for node in graph.kept_nodes
                ]
                for i, graph in enumerate(self.live.blocks, 1)
            }
        )

    def to_state(self, structure: Architecture) -> str:
        """Write an architecture as JSON."""
        return structure.to_json()

    def from_state(self, state: str) -> Architecture:
        """Read an architecture."""
        return Architecture.from_json(state)
