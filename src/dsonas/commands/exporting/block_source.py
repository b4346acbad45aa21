"""The blocks of a network as classes of the generated source, and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dsonas.commands.exporting.formatting import (
    LINE_LENGTH,
    Expression,
    Group,
    Keyword,
    Symbol,
    literal,
    operator_statement,
    statement,
    sum_statement,
)
from dsonas.commands.exporting.layers import leaf_modules
from dsonas.commands.exporting.names import attribute_name
from dsonas.graph import BlockGraph
from dsonas.nn import Block

Weights = dict[str, Tensor]
BODY = 8  # columns by which the body of a method is indented


def is_projecting(block: Block) -> bool:
    """Whether the shortcut of a block is a convolution."""
    return not isinstance(block.shortcut, nn.Identity)


@dataclass(frozen=True)
class BlockClass:
    """A class for all blocks of one graph.

    Args:
        name: of the class.
        places: which blocks of the network they are, from 1.
        blocks: the blocks; at least one, with at least one operation.
    """

    name: str
    places: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def graph(self) -> BlockGraph:
        """What the blocks have in common."""
        return self.blocks[0].graph

    @property
    def projecting(self) -> frozenset[bool]:
        """Which kinds of shortcuts there are."""
        return frozenset(map(is_projecting, self.blocks))

    def call(self, block: Block, channels: int) -> Group:
        """How the network makes one of the blocks."""
        items: list[Expression] = [literal(channels)]
        if self._is_mixed and is_projecting(block):
            items.append(Keyword("project", literal(True)))
        return Group(self.name, tuple(items))

    @property
    def _is_mixed(self) -> bool:
        return len(self.projecting) > 1

    def source(self, functions: Mapping[str, str], convolution: str) -> str:
        """The class.

        Args:
            functions: names of the functions that make the operations.
            convolution: name of the function that makes a normalised convolution with ReLU.
        """
        project = ", project: bool = False" if self._is_mixed else ""
        lines = [
            f"class {self.name}(nn.Module):",
            f'    """{self._summary()}"""',
            "",
            f"    def __init__(self, channels: int{project}) -> None:",
            "        super().__init__()",
            *self._modules(functions, convolution),
            "",
            "    def forward(self, x: Tensor) -> Tensor:",
            '        """Features (B, channels, H, W) to the same shape."""',
            *self._steps(),
        ]
        return "\n".join(lines)

    def _summary(self) -> str:
        graph = self.graph
        where = "Every block" if self.name == "Block" else _listed(self.places)
        return (
            f"{where}: {len(graph.kept_nodes)} of {graph.output_node - 1} operations, "
            f"{graph.num_live} of {len(graph.live)} connections."
        )

    def _modules(self, functions: Mapping[str, str], convolution: str) -> Iterator[str]:
        graph = self.graph
        for node in graph.kept_nodes:
            operation = graph.operation(node)
            name = attribute_name(operation, node)
            yield f"        self.{name} = {functions[operation]}(channels)"
        count = len(graph.inputs[graph.output_node])
        width = f"{count} * channels" if count > 1 else "channels"
        yield f"        self.output = {convolution}({width}, channels, 1)"
        shortcut = f"{convolution}(channels, channels, 1)"
        if self._is_mixed:
            shortcut += " if project else nn.Identity()"
        if True in self.projecting:
            yield operator_statement("self.shortcut =", shortcut, BODY)

    def _steps(self) -> Iterator[str]:
        graph = self.graph
        for node in graph.kept_nodes:
            module = f"self.{attribute_name(graph.operation(node), node)}"
            terms = _variables(graph.inputs[node])
            line = f"        n{node} = relu({module}({' + '.join(terms)}))"
            if len(terms) > 1 and len(line) > LINE_LENGTH:
                yield sum_statement("total =", terms, BODY)
                line = f"        n{node} = relu({module}(total))"
            yield line
        outputs = _variables(graph.inputs[graph.output_node])
        joined = outputs[0]
        if len(outputs) > 1:
            branches = Group("", tuple(map(Symbol, outputs)))
            joined = "joined"
            yield statement("joined =", Group("torch.cat", (branches, Symbol("1"))), BODY)
        shortcut = "self.shortcut(x)" if True in self.projecting else "x"
        yield f"        return self.output({joined}) + {shortcut}"


def _variables(nodes: Sequence[int]) -> list[str]:
    return [f"n{node}" if node else "x" for node in nodes]


def _listed(places: Sequence[int]) -> str:
    """Example: Blocks 1, 2 and 4."""
    *others, last = map(str, places)
    return f"Blocks {', '.join(others)} and {last}" if others else f"Block {last}"


def block_classes(blocks: Sequence[Block]) -> list[BlockClass]:
    """A class for each distinct graph that has operations, named by its first block."""
    found: dict[BlockGraph, list[int]] = {}
    for place, block in enumerate(blocks, 1):
        if block.graph.kept_nodes:
            found.setdefault(block.graph, []).append(place)
    alone = len(found) == 1 and len(next(iter(found.values()))) == len(blocks)
    return [
        BlockClass(
            "Block" if alone else f"Block{places[0]}",
            tuple(places),
            tuple(blocks[place - 1] for place in places),
        )
        for places in found.values()
    ]


def block_weights(block: Block) -> Weights:
    """The weights of a block by the names of its class."""
    graph, weights = block.graph, {}
    for node in graph.kept_nodes:
        name = attribute_name(graph.operation(node), node)
        weights |= sequence_weights(name, block.nodes[str(node)].children())
    weights |= sequence_weights("output", (block.output, block.output_bn))
    if is_projecting(block):
        weights |= sequence_weights("shortcut", block.shortcut.children())
    return weights


def sequence_weights(name: str, modules: Iterator[nn.Module] | Sequence[nn.Module]) -> Weights:
    """The weights of modules that the source calls one after the other, as ``name``."""
    leaves = [leaf for module in modules for leaf in leaf_modules(module)]
    return {
        f"{name}.{i}.{key}": value
        for i, leaf in enumerate(leaves)
        for key, value in leaf.state_dict().items()
    }
