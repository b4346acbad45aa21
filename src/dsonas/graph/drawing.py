"""An architecture as plain text."""

from __future__ import annotations

from dsonas.graph.architecture import Architecture
from dsonas.graph.block import BlockGraph


def draw_block(graph: BlockGraph) -> str:
    """The kept operations of a block, level by level, each with what it reads.

    Example:
        >>> print(draw_block(BlockGraph.complete(("max_pool3x3",), 2)))
        level 1    1 max pool 3x3         <- input
        level 2    2 max pool 3x3         <- input, 1
        output                            <- 1, 2
    """
    graph = graph.clean()
    if not graph.kept_nodes:
        return "(the shortcut alone)"
    names = {node: readable_operation(graph.operation(node)) for node in graph.kept_nodes}
    width, level, lines = max(20, *map(len, names.values())), 0, []
    for node, name in names.items():
        new, level = graph.level(node) != level, graph.level(node)
        head = f"level {level}" if new else ""
        lines.append(f"{head:<9} {node:>2} {name:<{width}} <- {_sources(graph, node)}")
    lines.append(f"{'output':<9} {'':>2} {'':<{width}} <- {_sources(graph, graph.output_node)}")
    return "\n".join(lines)


def draw_architecture(architecture: Architecture) -> str:
    """All blocks; equal ones are drawn once."""
    same: dict[BlockGraph, list[int]] = {}
    for i, graph in enumerate(architecture.clean().blocks):
        same.setdefault(graph, []).append(i + 1)
    parts = []
    for graph, places in same.items():
        title = "every block" if len(same) == 1 else "block " + ", ".join(map(str, places))
        count = f"{len(graph.kept_nodes)} of {graph.output_node - 1} operations"
        live = f"{graph.num_live} of {len(graph.live)} connections"
        parts.append(f"{title}: {count}, {live}\n{draw_block(graph)}")
    return "\n\n".join(parts)


def _sources(graph: BlockGraph, node: int) -> str:
    return ", ".join("input" if source == 0 else str(source) for source in graph.inputs[node])


def readable_operation(operation: str) -> str:
    """Example: ``separable_conv3x3`` becomes ``separable conv 3x3``."""
    text = operation.replace("_", " ")
    for size in ("3x3", "5x5", "7x7"):
        text = text.replace(size, f" {size}")
    return " ".join(text.split())
