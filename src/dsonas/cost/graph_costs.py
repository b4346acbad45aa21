"""What a traced model costs without some of its connections and channels, exactly and at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from dsonas.sparse import (
    ChannelMap,
    ScaledConcat,
    ScaledSum,
    State,
    arguments,
    copied,
    evaluating,
    joined,
    module_of,
    observe,
    placed,
    prune_model,
)

Links = tuple[tuple[bool, ...], ...]
"""For every input of every sum and concatenation whether it is live."""


def count_model(model: nn.Module, example: Any) -> dict[str, float]:
    """Count the multiply-adds of a model on an example, and its parameters."""
    args, kwargs = arguments(model, example)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"macs": counter.get_total_flops() / 2, "params": float(params)}


@dataclass
class _Terms:
    """A cost as a sum of products: amount * rows[first] * rows[second], where its place is live."""

    amounts: np.ndarray  # what one channel in and one out cost
    first: np.ndarray  # the row of counts of one factor; 0 is 1
    second: np.ndarray  # that of the other
    places: np.ndarray  # the node that must be live; -1 for what is always there

    def sum(self, counts: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Add up, for counts of shape (rows,) or (rows, variants)."""
        weights = self.amounts * alive[self.places]
        return weights @ (counts[self.first] * counts[self.second])


Term = tuple[float, int, int, int]


class GraphCosts:
    """Costs of a model with scaled connections and groups of channels.

    Args:
        model: traced, with the factors of ``scale_connections``, or without any.
        example: by which multiply-adds are counted.
        channels: the groups.

    Attributes:
        groups: how many channels each group has.
        links: how many inputs each scaled sum and concatenation has.
        sources: the numbers of the nodes that are these inputs.
    """

    def __init__(self, model: fx.GraphModule, example: Any, channels: ChannelMap) -> None:
        self._model, self._example, self._channels = model, example, channels
        self._nodes = nodes = list(model.graph.nodes)
        self._number = {node: i for i, node in enumerate(nodes)}
        scaled = {n for n in nodes if isinstance(module_of(model, n), ScaledSum)}
        self._joins = [self._number[n] for n in nodes if n in scaled]
        self._sources = [
            [self._number[x] for x in (n.args if n in scaled else n.all_input_nodes)] for n in nodes
        ]
        self._is_input = [n.op == "placeholder" for n in nodes]
        self.sources = [self._sources[node] for node in self._joins]
        self.links = [len(sources) for sources in self.sources]
        self.groups = np.array(list(channels.sizes.values()), dtype=float)
        self._rows: dict[tuple[str, bool], int] = {}
        self._inputs: list[tuple[np.ndarray, np.ndarray]] = []  # of every row: group, link
        self._segments = self._droppable()
        self._terms = {"macs": self._count_macs(), "params": self._count_params()}
        self._alive_nodes: dict[Links, np.ndarray] = {}
        self._matrices: dict[Links, np.ndarray] = {}

    @cached_property
    def _owner(self) -> np.ndarray:
        """The group of every numbered channel, and none for ``FIXED``."""
        return np.append(np.repeat(np.arange(len(self.groups)), self.groups.astype(int)), -1)

    def _row(self, name: str, reads: bool, size: int) -> int:
        """The row that counts the inputs or outputs of a layer that are left."""
        if (name, reads) not in self._rows:
            found = (self._channels.ins if reads else self._channels.outs).get(name)
            groups = np.full(size, -1) if found is None else self._owner[found.numpy()]
            links = self._segments.get(name) if reads else None
            links = np.full(size, -1) if links is None else np.repeat(links, size // len(links))
            self._inputs.append((groups, links))
            self._rows[name, reads] = len(self._inputs)
        return self._rows[name, reads]

    def _sizes(self, name: str) -> tuple[int, int] | None:
        """The rows of the inputs and outputs of a convolution or linear layer."""
        layer: Any = self._model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
        elif isinstance(layer, _ConvNd):
            sizes = layer.in_channels, layer.out_channels
        elif name in self._channels.outs:
            return 0, self._row(name, False, len(self._channels.outs[name]))
        else:
            return None
        depthwise = getattr(layer, "groups", 1) > 1
        if depthwise and name not in self._channels.outs:
            return None  # a grouped convolution, which stays as it is
        return 0 if depthwise else self._row(name, True, sizes[0]), self._row(name, False, sizes[1])

    def _full(self, row: int) -> int:
        return len(self._inputs[row - 1][0]) if row else 1

    def _term(self, amount: float, rows: tuple[int, int], place: int) -> Term:
        return amount / (self._full(rows[0]) * self._full(rows[1])), *rows, place

    def _count_macs(self) -> _Terms:
        """Every node that has multiply-adds."""
        counter = _Counter(self._model)
        with evaluating(self._model), torch.no_grad():
            counter.run(*placed(self._model, self._example))
        terms = []
        for node, flops in counter.flops.items():
            rows = self._sizes(str(node.target)) if node.op == "call_module" else None
            terms.append(self._term(flops / 2, rows or (0, 0), self._number[node]))
        return _terms(terms)

    def _count_params(self) -> _Terms:
        """Every parameter, at the first node that reads it; one that none reads stays."""
        terms, seen = [], set()
        names = {id(p): name for name, p in self._model.named_parameters()}
        for node in self._nodes:
            layer, own, rows = module_of(self._model, node), [], None
            if isinstance(layer, ScaledSum):
                seen |= {id(p) for p in layer.parameters()}
            elif layer is not None:
                own, rows = list(layer.parameters()), self._sizes(str(node.target))
            elif node.op == "get_attr" and node.target in names.values():
                own = [p for p in self._model.parameters() if names[id(p)] == node.target]
            for parameter in own:
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    used = (rows[0] if parameter.ndim > 1 else 0, rows[1]) if rows else (0, 0)
                    terms.append(self._term(parameter.numel(), used, self._number[node]))
        rest = sum(p.numel() for p in self._model.parameters() if id(p) not in seen)
        return _terms([*terms, (float(rest), 0, 0, -1)])

    def _droppable(self) -> dict[str, np.ndarray]:
        """The layers that lose columns with an input of a concatenation: the link of every column.

        That is found out by cutting the first input.
        """
        found: dict[str, np.ndarray] = {}
        self._narrowing: list[int] = []  # the concatenations by which layers lose columns
        observed = observe(self._model, self._example) if self._joins else {}
        first = 0
        for i, (number, count) in enumerate(zip(self._joins, self.links, strict=True)):
            node = self._nodes[number]
            join: Any = module_of(self._model, node)
            if isinstance(join, ScaledConcat) and join.dim == 1:
                widths = [observed[x].shape[1] for x in node.args]
                columns = np.repeat(np.arange(first, first + count), widths)
                narrowed = self._narrowed(str(node.target))
                self._narrowing += [i] if narrowed else []
                found |= dict.fromkeys(narrowed, columns)
            first += count
        return found

    def _narrowed(self, join: str) -> list[str]:
        replica = copied(self._model).eval()
        with torch.no_grad():
            replica.get_submodule(join).factors[0] = 0  # type: ignore[index]
        try:
            pruned = dict(prune_model(replica, self._example).named_modules())
        except ValueError:  # nothing is left without it
            return []
        return [
            name
            for name, layer in self._model.named_modules()
            if isinstance(layer, nn.Linear | _ConvNd)
            and name in pruned
            and pruned[name].weight.shape[1] < layer.weight.shape[1]  # type: ignore[union-attr, operator, index]
        ]

    def state(self, links: Links) -> tuple[np.ndarray, np.ndarray]:
        """Find which nodes are live, and the matrix that counts rows by live channels of groups."""
        if links not in self._alive_nodes:
            self._alive_nodes[links] = self._alive(links)
        narrowing = tuple(links[i] for i in self._narrowing)
        if narrowing not in self._matrices:
            self._matrices[narrowing] = self._matrix(links)
        return self._alive_nodes[links], self._matrices[narrowing]

    def _alive(self, links: Links) -> np.ndarray:
        """Which nodes run in the pruned model, and True for -1."""
        gone = {
            (node, i)
            for node, flags in zip(self._joins, links, strict=True)
            for i, flag in enumerate(flags)
            if not flag
        }
        states: list[State] = []
        for node, sources in enumerate(self._sources):
            fed = [State.CUT if (node, i) in gone else states[x] for i, x in enumerate(sources)]
            known = self._is_input[node]
            states.append(State.LIVE if known else joined(fed))
        needed = np.zeros(len(states) + 1, dtype=bool)
        needed[-2:] = True
        for node in reversed(range(len(states))):
            needed[node] &= states[node] is not State.CUT
            if needed[node]:
                for i, x in enumerate(self._sources[node]):
                    needed[x] |= (node, i) not in gone
        return needed

    def _matrix(self, links: Links) -> np.ndarray:
        """Rows by groups, with one column for what is fixed; the first row is 1."""
        flags = np.append(np.array([f for row in links for f in row], dtype=bool), True)
        matrix = np.zeros((len(self._inputs) + 1, len(self.groups) + 1))
        matrix[0, -1] = 1
        for i, (groups, segments) in enumerate(self._inputs):
            left = groups[flags[segments]]
            np.add.at(matrix[i + 1], left, 1)
        matrix[1:, :-1] /= np.maximum(self.groups, 1)  # per channel of the group
        return matrix

    def is_live(self, links: Links) -> bool:
        """Whether the output still depends on the input."""
        return bool(self.state(links)[0][-2])

    def costs(self, links: Links, channels: np.ndarray) -> dict[str, float]:
        """Compute all measures, by the live links and how many channels of each group are left."""
        alive, matrix = self.state(links)
        counts = matrix @ np.append(channels, 1.0)
        return {name: float(terms.sum(counts, alive)) for name, terms in self._terms.items()}

    def without_channels(
        self, links: Links, channels: np.ndarray, fewer: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute what is saved, in all measures, if one group loses channels, for each group.

        ``fewer`` are how many each would lose; see ``costs``.
        """
        alive, matrix = self.state(links)
        counts = matrix @ np.append(channels, 1.0)
        fewer_counts = counts[:, None] - matrix[:, :-1] * fewer
        return {
            name: float(terms.sum(counts, alive)) - terms.sum(fewer_counts, alive)
            for name, terms in self._terms.items()
        }


def _terms(found: Sequence[Term]) -> _Terms:
    columns = list(zip(*found, strict=True)) or [()] * 4
    return _Terms(np.array(columns[0], dtype=float), *(np.array(c, dtype=int) for c in columns[1:]))


class _Counter(fx.Interpreter):
    """Counts the flops of every node."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.flops: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note what it takes."""
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if flops := counter.get_total_flops():
            self.flops[n] = flops
        return result
