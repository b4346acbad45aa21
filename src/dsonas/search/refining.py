"""Choose among structures by trials: members of a search's chain, then neighbours of the best.

A supernet's judgement of its parts is worth little where training is short: the loss without an
operation is small beside its noise, and its weights know only the complete network. What a
structure is worth *at the width of its budget* the supernet cannot say at all. So the last choice
is made by what is asked for: a short training at the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from dsonas.cost import architecture_cost, distinct, with_graph
from dsonas.graph import Architecture, BlockGraph, Connection

TrialRun = Callable[[Architecture, int], float]
Losses = dict[Architecture, list[float]]
MAX_DRAWS = 1000
NUM_PARENTS = 3
MAX_REPEATS = 3  # of a structure


def refine(
    chain: Sequence[Architecture],
    num_trials: int,
    trial: TrialRun,
    generator: torch.Generator,
    *,
    shared: bool,
) -> list[Architecture]:
    """Choose a structure by trials.

    A third of the trials goes to members of the chain, evenly spaced. Then each goes to a new
    neighbour of one of the three best so far: with one parent alone, a lucky trial would stop all
    progress. The last quarter repeats the best, so that luck does not choose.

    Args:
        chain: of a search, from the supernet to the smallest structure.
        num_trials: >= 1.
        trial: takes a structure and the number of the trial; returns its loss, less is better.
        generator: draws the neighbours.
        shared: whether all blocks have the same graph (share space).

    Returns:
        The members of the chain that cost more than the structure of least mean loss, and that one
        last.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> def size(structure: Architecture, number: int) -> float:
        ...     return structure.num_live
        >>> found = refine([supernet], 8, size, torch.Generator().manual_seed(0), shared=True)
        >>> found[-1].num_live < supernet.num_live
        True
    """
    losses: dict[Architecture, list[float]] = {}
    members, repeats = _spread(chain, max(1, num_trials // 3)), num_trials // 4
    for number in range(num_trials):
        if number < len(members):
            candidate = members[number]
        elif number < num_trials - repeats:
            candidate = _fresh(chain[0], losses, generator, shared)
        else:
            candidate = (_ranked(losses, below=MAX_REPEATS) or _ranked(losses))[0]
        losses.setdefault(candidate, []).append(trial(candidate, number))
    most = max(map(len, losses.values()))
    best = _ranked(losses, least=min(2, most))[0]
    limit = architecture_cost(best).macs
    larger = [member for member in chain if architecture_cost(member).macs > limit]
    return distinct([*larger, best])


def _ranked(losses: Losses, least: int = 1, below: int = 1_000_000) -> list[Architecture]:
    """Structures tried so often, the least mean loss first."""
    found = [net for net, values in losses.items() if least <= len(values) < below]
    return sorted(found, key=lambda net: fmean(losses[net]))


def _spread(chain: Sequence[Architecture], limit: int) -> list[Architecture]:
    """At most so many members, evenly spaced from the smallest on; the supernet only if alone."""
    members = list(chain[1:] or chain)[::-1]
    limit = min(limit, len(members))
    places = [round(i * (len(members) - 1) / max(1, limit - 1)) for i in range(limit)]
    return [members[place] for place in places]


def _fresh(
    supernet: Architecture,
    losses: Losses,
    generator: torch.Generator,
    shared: bool,
) -> Architecture:
    """A neighbour of one of the best that has not been tried; if none is found, the best again."""
    parents = _ranked(losses)[:NUM_PARENTS]
    for _ in range(MAX_DRAWS):
        best = parents[_draw(len(parents), generator)]
        place = 0 if shared else _draw(len(best.blocks), generator)
        graph = neighbour(best.blocks[place], supernet.blocks[place], generator)
        found = with_graph(best, place, graph, shared=shared)
        if found not in losses and any(block.kept_nodes for block in found.blocks):
            return found
    return parents[0]


def neighbour(graph: BlockGraph, complete: BlockGraph, generator: torch.Generator) -> BlockGraph:
    """A graph with an operation more or less, or another one in its place, or one connection so.

    Args:
        graph: cleaned.
        complete: what may be added.
        generator: draws the change.

    Returns:
        A cleaned graph; it may be the same, or empty.
    """
    changes = (_fewer, _more, _inserted, _exchanged, _reconnected)
    wanted = changes[_draw(len(changes), generator)](graph, generator)
    return complete.prune([c in wanted for c in complete.connections]).clean()


def _live(graph: BlockGraph) -> set[Connection]:
    return {c for c, alive in zip(graph.connections, graph.live, strict=True) if alive}


def _fewer(graph: BlockGraph, generator: torch.Generator) -> set[Connection]:
    """Without an operation; what read it reads what it read, so that no chain is cut."""
    live = _live(graph)
    if not graph.kept_nodes:
        return live
    node = _choice(graph.kept_nodes, generator)
    around = {Connection(s, c.target) for c in live if c.source == node for s in graph.inputs[node]}
    return {c for c in live if node not in c} | around


def _more(graph: BlockGraph, generator: torch.Generator) -> set[Connection]:
    """With an operation more, from a random source to a random target."""
    absent = _absent(graph, range(1, graph.output_node))
    if not absent:
        return _live(graph)
    node = _choice(absent, generator)
    present = (0, *graph.kept_nodes, graph.output_node)
    source = _choice([n for n in present if _level(graph, n) < _level(graph, node)], generator)
    target = _choice([n for n in present if _level(graph, n) > _level(graph, node)], generator)
    return _live(graph) | {Connection(source, node), Connection(node, target)}


def _inserted(graph: BlockGraph, generator: torch.Generator) -> set[Connection]:
    """With an operation more, in the middle of a connection."""
    live = _live(graph)
    absent = _absent(graph, range(1, graph.output_node))
    places = [
        (connection, node)
        for connection in sorted(live)
        for node in absent
        if _level(graph, connection.source) < _level(graph, node) < _level(graph, connection.target)
    ]
    if not places:
        return live
    old, node = places[_draw(len(places), generator)]
    return live - {old} | {Connection(old.source, node), Connection(node, old.target)}


def _exchanged(graph: BlockGraph, generator: torch.Generator) -> set[Connection]:
    """With another operation of the same level in the place of one."""
    live = _live(graph)
    if not graph.kept_nodes:
        return live
    node = _choice(graph.kept_nodes, generator)
    first = node - (node - 1) % len(graph.operations)
    others = _absent(graph, range(first, first + len(graph.operations)))
    if not others:
        return live
    new = {node: _choice(others, generator)}
    return {Connection(new.get(c.source, c.source), new.get(c.target, c.target)) for c in live}


def _reconnected(graph: BlockGraph, generator: torch.Generator) -> set[Connection]:
    """With a connection between its operations more, or less."""
    present = {0, *graph.kept_nodes, graph.output_node}
    possible = [c for c in graph.connections if c.source in present and c.target in present]
    return _live(graph) ^ ({possible[_draw(len(possible), generator)]} if possible else set())


def _level(graph: BlockGraph, node: int) -> int:
    """The level of a node: 0 for the block input, above all others for the output."""
    return graph.level(node) if node else 0


def _absent(graph: BlockGraph, nodes: Sequence[int]) -> list[int]:
    return [node for node in nodes if node not in graph.kept_nodes]


def _choice(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_draw(len(values), generator)]


def _draw(size: int, generator: torch.Generator) -> int:
    return int(torch.randint(size, (), generator=generator))
