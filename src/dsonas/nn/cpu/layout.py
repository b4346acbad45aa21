"""How the fast paths lay a block out over planes of features."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from dsonas._utils import send
from dsonas.graph import BlockGraph


@dataclass(frozen=True)
class Layout:
    """A block graph laid out over planes: plane 0 is the input, then come the kept nodes."""

    nodes: tuple[int, ...]  # the kept nodes, of planes 1, 2, ...
    levels: tuple[tuple[int, int], ...]  # the planes of each level that has any, as (first, end)
    num_direct: int  # how many nodes are in level 1, which reads the block input
    # for each node, the index into ``padded`` factors of each plane (N, 1 + N)
    positions: tuple[tuple[int, ...], ...]
    output_planes: tuple[int, ...]  # those that feed the output
    output_positions: tuple[int, ...]  # the indices of their factors
    _sent: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(cls, graph: BlockGraph) -> Layout:
        """Lay out a cleaned graph in which every kept node feeds something."""
        nodes, levels, dead = graph.kept_nodes, [(0, 1)], len(graph.live)
        live = zip(graph.connections, graph.live, range(dead), strict=True)
        index: dict[tuple[int, int], int] = {pair: i for pair, alive, i in live if alive}
        direct = [node for node in nodes if graph.level(node) == 1]
        index |= {(0, node): dead + 1 for node in direct}
        for number in range(1, graph.num_levels + 1):
            first, count = levels[-1][1], sum(graph.level(node) == number for node in nodes)
            levels += [(first, first + count)] if count else []
        rows = [tuple(index.get((s, t), dead) for s in (0, *nodes)) for t in nodes]
        feeding = graph.inputs[graph.output_node]
        output = tuple(index[node, graph.output_node] for node in feeding)
        planes = tuple(1 + nodes.index(node) for node in feeding)
        return cls(nodes, tuple(levels[1:]), len(direct), tuple(rows), planes, output)

    def places(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, output positions, and those of ``columns`` in a row; sent to a device once."""
        if device not in self._sent:
            whole, output = torch.tensor(self.positions), torch.tensor(self.output_positions)
            before = ((0, 1), *self.levels[:-1])
            parts = [whole[end - 1 :, first:end].reshape(-1) for first, end in before]
            flat = torch.cat([*parts, output])
            self._sent[device] = send(whole, device), send(output, device), send(flat, device)
        return self._sent[device]

    def columns(self, factors: Tensor) -> tuple[list[Tensor], Tensor]:
        """The factors by which each level's features go into later sums, and into the output.

        Returns:
            For the input and each level but the last (nodes of later levels, nodes here), with
            zeros where dead; and (K,) of the planes that feed the output.
        """
        count, before = len(self.nodes), ((0, 1), *self.levels[:-1])
        sizes = [(count + 1 - end, end - first) for first, end in before]
        flat = padded(factors).index_select(0, self.places(factors.device)[2])
        lengths = [*(a * b for a, b in sizes), len(self.output_positions)]
        *parts, output = flat.split_with_sizes(lengths)
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)], output


def padded(factors: Tensor) -> Tensor:
    """Packed factors with those of dead connections, 0, and of the input in level 1, 1."""
    return torch.cat([factors, *_constants(factors.dtype, factors.device)])


@cache
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, dtype=dtype, device=device), torch.ones(1, dtype=dtype, device=device)
