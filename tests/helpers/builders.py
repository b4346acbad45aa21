"""Random graphs, architectures and supernets for the property tests."""

from collections.abc import Sequence
from random import Random

import torch

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph, block_connections
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.network import Network
from dsonas.nn.scaling import ScalingFactors
from dsonas.sparse.connections import mask_factors
from dsonas.sparse.proximal import ProximalNAG
from dsonas.train.optimizers import sgd
from dsonas.train.steps import factor_gradients, weight_step

SMALL = Skeleton(image_size=9, num_classes=4, blocks=(2, 1), channels=(3, 5))
REDUCTIONS = ((True, True), (True, False), (False, True))


def random_graph(
    rng: Random, operations: Sequence[str], num_levels: int, density: float
) -> BlockGraph:
    """A cleaned graph; the density is that before cleaning."""
    size = len(block_connections(num_levels, len(operations)))
    live = tuple(rng.random() < density for _ in range(size))
    return BlockGraph(tuple(operations), num_levels, live).clean()


def random_skeleton(rng: Random, largest: int = 40) -> Skeleton:
    stages = rng.randint(1, 3)
    return Skeleton(
        stem=rng.choice(("cifar", "imagenet")),
        input_channels=rng.choice((1, 3)),
        image_size=rng.randint(5, largest),
        num_classes=rng.randint(2, 12),
        blocks=tuple(rng.randint(1, 3) for _ in range(stages)),
        channels=tuple(rng.randint(1, 20) for _ in range(stages)),
    )


def random_architecture(
    rng: Random,
    skeleton: Skeleton | None = None,
    *,
    shared: bool | None = None,
    operations: Sequence[str] | None = None,
    num_levels: int | None = None,
    density: float | None = None,
) -> Architecture:
    """A cleaned architecture; what is not given is drawn."""
    skeleton = skeleton or random_skeleton(rng)
    operations = operations or rng.sample(PAPER_OPERATIONS, rng.randint(1, 4))
    num_levels = num_levels or rng.randint(1, 4)
    shared = rng.random() < 0.5 if shared is None else shared

    def graph() -> BlockGraph:
        chosen = rng.choice((0.1, 0.3, 0.6, 0.9, 1.0)) if density is None else density
        return random_graph(rng, operations, num_levels, chosen)

    first = graph()
    blocks = [first if shared else graph() for _ in range(skeleton.num_blocks)]
    reductions = tuple(rng.choice(REDUCTIONS) for _ in skeleton.blocks[1:])
    sharing = "share" if shared else "full"
    return Architecture(skeleton, tuple(blocks), reductions, sharing)


@torch.no_grad()
def randomise(network: Network, seed: int) -> Network:
    """Random BN parameters and statistics, and positive factors where a connection is live."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        values = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.copy_(low + (high - low) * values)

    for name, parameter in network.named_parameters():
        if name.startswith("scaling."):
            mask = (parameter > 0).to(parameter.dtype)
            uniform(parameter, 0.2, 1.5)
            parameter.mul_(mask)
        elif parameter.ndim == 1:
            uniform(parameter, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            uniform(buffer, -0.3, 0.3)
        if name.endswith("running_var"):
            uniform(buffer, 0.5, 1.5)
    return network


def images(skeleton: Skeleton, batch: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, skeleton.input_channels, skeleton.image_size, skeleton.image_size)
    x = torch.randn(shape, generator=generator, dtype=torch.get_default_dtype())
    return x, torch.randint(skeleton.num_classes, (batch,), generator=generator)


def reached(graph: BlockGraph, factors: list[float]) -> set[int]:
    """Nodes that positive factors connect to the block input."""
    found = set(range(1 + len(graph.operations)))
    for node in range(1, graph.output_node):
        for pair, value in zip(graph.connections, factors, strict=True):
            if pair.target == node and pair.source in found and value > 0:
                found.add(node)
    return found


def supernet(seed: int, sharing: str, zeros: float, fed_only: bool = False) -> Network:
    """A network with random zeros among its factors, in no block on all connections.

    An operation without positive inputs feeds no other operation (and, with ``fed_only``, nothing).
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    operations = rng.sample(PAPER_OPERATIONS, rng.randint(2, 4))
    architecture = Architecture.complete(SMALL, operations, rng.randint(2, 4), sharing)
    network = randomise(Network(architecture, scaled=True), seed)
    for vector in network.scaling.blocks:
        graph = architecture.blocks[0]
        values = [0.0 if rng.random() < zeros else value for value in vector.tolist()]
        values[-rng.randint(1, len(graph.operations))] = 0.7
        values[len(values) - graph.output_node + 1] = 0.9
        alive = reached(graph, values)
        for i, (source, target) in enumerate(graph.connections):
            if source not in alive and (fed_only or target != graph.output_node):
                values[i] = 0.0
        vector.data.copy_(torch.tensor(values))
    return network


def outputs(network: Network, x, training: bool):
    network.train(training)
    with torch.no_grad():
        return network(x)


def optimizers(network: Network):
    groups = [{"params": [vector]} for vector in network.scaling.parameters()]
    return sgd(network.weights(), 0.05, 1e-3, 0.9), ProximalNAG(groups, lr=0.05, penalty=0.01)


def train(network: Network, pair, seeds) -> None:
    network.train()
    for seed in seeds:
        x, labels = images(SMALL, 8, seed)
        weight_step(network, pair[0], x, labels, clip=1.0)
        factor_step(network, pair[1], x, labels)


def factor_step(network: Network, optimizer: ProximalNAG, x, labels):
    """Update the scaling factors on one batch, as the published code does."""
    found = factor_gradients(network, x, labels)
    optimizer.step()
    optimizer.zero_grad()
    return found


def write_zeros(scaling: ScalingFactors, architecture: Architecture, optimizer=None) -> None:
    """Set the factors of all removed connections to 0, as the searcher does."""
    flags = [*(cell.live for cell in architecture.cells), *architecture.reductions]
    mask_factors([*scaling.blocks, *scaling.reductions], flags, optimizer)
