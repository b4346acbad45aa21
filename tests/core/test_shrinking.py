"""Removing what is zero changes nothing: outputs, gradients, momenta."""

import copy
from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F

from core.builders import images, random_architecture, randomise
from dsonas.architecture import Architecture, BlockGraph, Skeleton
from dsonas.network import Network
from dsonas.operations import PAPER_OPERATIONS
from dsonas.proximal import ProximalNAG
from dsonas.searching import sgd
from dsonas.shrinking import shrink
from dsonas.steps import factor_step, weight_step

SKELETON = Skeleton(image_size=9, num_classes=4, blocks=(2, 1), channels=(3, 5))
SHARINGS = ["share", "full"]


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
    architecture = Architecture.complete(SKELETON, operations, rng.randint(2, 4))
    network = randomise(Network(architecture, sharing=sharing), seed)
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


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("zeros", [0.3, 0.7])
@pytest.mark.parametrize("seed", range(8))
def test_outputs_stay_equal_in_float64(seed: int, zeros: float, sharing: str, float64):
    outputs_stay_equal(seed, zeros, sharing, 1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_outputs_stay_equal_in_float32(seed: int):
    outputs_stay_equal(seed, 0.6, "share", 1e-5)


def outputs_stay_equal(seed: int, zeros: float, sharing: str, tolerance: float) -> None:
    network = supernet(seed, sharing, zeros)
    x, _ = images(SKELETON, 8)
    whole = network.architecture
    live = network.scaling.architecture(whole)
    assert live.num_live < whole.num_live
    twin = copy.deepcopy(network)
    expected = outputs(twin, x, False), outputs(twin, x, True)
    shrink(network, live)
    network.scaling.write_zeros(live)
    for found, before in zip(
        (outputs(network, x, False), outputs(network, x, True)), expected, strict=True
    ):
        torch.testing.assert_close(found, before, rtol=tolerance, atol=tolerance)
    assert network.architecture == live
    with torch.no_grad():
        fresh = Network(live, sharing=sharing)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_the_constant_of_an_unfed_operation_goes_into_the_running_mean(float64):
    """Without that correction the outputs in evaluation mode would differ."""
    skeleton = Skeleton(image_size=7, blocks=(1,), channels=(4,))
    whole = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 2)
    network = randomise(Network(whole, sharing="share"), 0)
    graph = whole.blocks[0]
    unfed = [pair.target == 3 for pair in graph.connections]
    network.scaling.blocks[0].data[torch.tensor(unfed)] = 0
    network.blocks[0].nodes["3"].bn.bias.data.fill_(0.5)
    network.blocks[0].nodes["3"].bn.running_mean.zero_()
    x, _ = images(skeleton)
    before = outputs(network, x, False)
    mean = network.blocks[0].output_bn.running_mean.clone()
    live = network.scaling.architecture(whole)
    assert 3 not in live.blocks[0].kept_nodes
    shrink(network, live)
    shift = mean - network.blocks[0].output_bn.running_mean
    assert shift.abs().max() > 1e-3
    torch.testing.assert_close(outputs(network, x, False), before, rtol=1e-10, atol=1e-10)
    network.blocks[0].output_bn.running_mean.copy_(mean)
    assert not torch.allclose(outputs(network, x, False), before, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(training: bool):
    network = supernet(3, "share", 0.6).train(training)
    shrink(network, network.scaling.architecture(network.architecture))
    assert all(module.training == training for module in network.modules())


def optimizers(network: Network):
    groups = [{"params": [vector]} for vector in network.scaling.parameters()]
    return sgd(network, 0.05, 1e-3, 0.9), ProximalNAG(groups, lr=0.05, penalty=0.01)


def train(network: Network, pair, seeds) -> None:
    network.train()
    for seed in seeds:
        x, labels = images(SKELETON, 8, seed)
        weight_step(network, pair[0], x, labels, clip=1.0)
        factor_step(network, pair[1], x, labels)


def ready_to_shrink(seed: int, sharing: str):
    """A network with some training behind it, and zeros written as the search does."""
    network = supernet(seed, sharing, 0.0)
    pair = optimizers(network)
    train(network, pair, range(2))
    zeroed = supernet(seed, sharing, 0.6, fed_only=True)
    vectors = zip(network.scaling.blocks, zeroed.scaling.blocks, strict=True)
    for vector, other in vectors:
        vector.data.mul_((other > 0).to(vector.dtype))
    live = network.scaling.architecture(network.architecture)
    live = replace(live, reductions=((True, False),))
    network.scaling.write_zeros(live, pair[1])
    return network, pair, live


def survivors(network: Network, live: Architecture) -> dict[str, torch.Tensor]:
    """The network's tensors that a shrunk one keeps too, cut to the columns that it keeps."""
    found = {}
    names = dict(Network(live, sharing=network.sharing).named_parameters())
    for name, parameter in network.named_parameters():
        if name in names:
            found[name] = columns(name, network, live, parameter.detach())
    return found


def columns(name: str, network: Network, live: Architecture, tensor):
    if not name.endswith("output.weight"):
        return tensor
    number = int(name.split(".")[1])
    before, after = (
        net.blocks[number].inputs[net.blocks[number].output_node]
        for net in (network.architecture, live)
    )
    width = tensor.shape[0]
    pieces = dict(zip(before, tensor.split(width, 1), strict=True))
    return torch.cat([pieces[source] for source in after], 1)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("seed", range(4))
def test_momenta_of_what_survives_are_carried_and_the_rest_is_gone(seed, sharing, float64):
    network, (weights, _), live = ready_to_shrink(seed, sharing)
    twin = copy.deepcopy(network)
    order = [name for name, p in network.named_parameters() if p in weights.state]
    momenta = {
        name: columns(name, network, live, weights.state[p]["momentum_buffer"].clone())
        for name, p in network.named_parameters()
        if p in weights.state
    }
    shrink(network, live, weights)
    held = dict(network.named_parameters())
    left = [name for name in order if name in held]
    assert len(left) < len(order)
    listed = [p for group in weights.param_groups for p in group["params"]]
    trained = [name for name in held if held[name] in weights.state]
    assert {id(p) for p in listed} == {id(held[name]) for name in left}
    assert len(listed) == len(left) == len(weights.state) == len(trained)
    for name in left:
        assert torch.equal(weights.state[held[name]]["momentum_buffer"], momenta[name]), name
    for name, tensor in survivors(twin, live).items():
        assert torch.equal(held[name], tensor), name


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("seed", range(4))
def test_training_goes_on_as_without_shrinking(seed: int, sharing: str, float64):
    network, pair, live = ready_to_shrink(seed, sharing)
    twin, twins = copy.deepcopy((network, pair))
    whole = network.architecture
    shrink(network, live, pair[0])
    x, labels = images(SKELETON, 8, 7)
    for part in ("weights", "factors"):
        gradients = []
        for net in (twin, network):
            net.train_only(part)
            F.cross_entropy(net.train()(x), labels).backward()
            found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
            gradients.append(found)
            net.zero_grad()
        compare_gradients(*gradients, twin, live)
    train(network, pair, [8])
    train(twin, twins, [8])
    twin.scaling.write_zeros(live)
    expected = survivors(twin, live)
    assert twin.architecture == whole
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-10)


def compare_gradients(before: dict, after: dict, twin: Network, live: Architecture) -> None:
    assert after
    for name, gradient in after.items():
        expected = columns(name, twin, live, before[name])
        if name.startswith("scaling."):
            flags = [*(graph.live for graph in live.blocks), *live.reductions]
            vectors = [*twin.scaling.blocks, *twin.scaling.reductions]
            place = [n for n, _ in twin.named_parameters() if n.startswith("scaling.")].index(name)
            if len(twin.scaling.blocks) == 1:
                flags = [live.blocks[0].live, *live.reductions]
            assert len(vectors) == len(flags)
            mask = torch.tensor(flags[place], dtype=gradient.dtype)
            assert not (gradient * (1 - mask)).any()
            expected = expected * mask
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_shrinking_again_and_again(sharing: str, float64):
    network, pair, live = ready_to_shrink(1, sharing)
    shrink(network, live, pair[0])
    weights = [p.detach().clone() for p in network.parameters()]
    shrink(network, live, pair[0])
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    train(network, pair, [3])
    last = network.scaling.blocks[0]
    last.data[torch.nonzero(last.detach())[0]] = 0
    smaller = network.scaling.architecture(live)
    network.scaling.write_zeros(smaller, pair[1])
    x, _ = images(SKELETON, 8)
    before = outputs(network, x, True)
    shrink(network, smaller, pair[0])
    assert smaller.num_live < live.num_live
    torch.testing.assert_close(outputs(network, x, True), before, rtol=1e-10, atol=1e-10)
    train(network, pair, [4])


def test_a_block_that_loses_everything_is_its_shortcut(float64):
    network = supernet(2, "full", 0.0)
    pair = optimizers(network)
    train(network, pair, [0])
    network.scaling.blocks[1].data.zero_()
    live = network.scaling.architecture(network.architecture)
    shrink(network, live, pair[0])
    assert [bool(graph.kept_nodes) for graph in live.blocks] == [True, False, True]
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(network.blocks[1](x, network.scaling.for_block(1)), x)
    assert not list(network.blocks[1].parameters())
    train(network, pair, [1])


@pytest.mark.parametrize("kept", [(True, False), (False, True)])
def test_reduction_branches(kept: tuple[bool, bool], float64):
    network = supernet(4, "share", 0.0)
    pair = optimizers(network)
    train(network, pair, [0])
    live = replace(network.architecture, reductions=(kept,))
    network.scaling.write_zeros(live, pair[1])
    x, _ = images(SKELETON, 8)
    before = outputs(network, x, False)
    gone = list(network.reductions[0].branches[("conv1x1", "conv3x3")[kept[0]]].parameters())
    shrink(network, live, pair[0])
    torch.testing.assert_close(outputs(network, x, False), before, rtol=1e-12, atol=1e-12)
    listed = {id(p) for group in pair[0].param_groups for p in group["params"]}
    assert not listed & {id(p) for p in gone}
    assert not any(p in pair[0].state for p in gone)
    assert len(network.reductions[0].branches) == 1


def test_other_optimizers_keep_their_whole_state(float64):
    network = supernet(5, "share", 0.0)
    adam = torch.optim.AdamW(network.weights(), lr=0.01)
    x, labels = images(SKELETON, 8)
    weight_step(network.train(), adam, x, labels)
    whole = network.architecture
    graph = whole.blocks[0]
    keep = [pair != (1, graph.output_node) for pair in graph.connections]
    live = replace(whole, blocks=tuple(g.prune(keep) for g in whole.blocks)).clean()
    old = network.blocks[0].output.weight
    expected = columns("blocks.0.output.weight", network, live, adam.state[old]["exp_avg_sq"])
    shrink(network, live, adam)
    state = adam.state[network.blocks[0].output.weight]
    assert state["step"] == 1
    assert torch.equal(state["exp_avg_sq"], expected)


def test_architectures_that_are_not_contained_are_refused():
    small = random_architecture(
        Random(0), SKELETON, shared=True, operations=("max_pool3x3", "average_pool3x3"),
        num_levels=2, density=0.6,
    )  # fmt: skip
    small = replace(small, reductions=((True, False),))
    whole = Architecture.complete(SKELETON, small.operations, 2)
    shrunk = Network(whole, sharing="share")
    shrink(shrunk, small)
    others = [
        whole,
        replace(small, reductions=((True, True),)),
        replace(small, reductions=((False, True),)),
        small.with_channels((3, 6)),
        Architecture.complete(SKELETON, small.operations, 3),
        random_architecture(
            Random(0), SKELETON, shared=True, operations=("average_pool3x3", "max_pool3x3"),
            num_levels=2, density=0.6,
        ),
    ]  # fmt: skip
    before = {k: v.clone() for k, v in shrunk.state_dict().items()}
    for other in others:
        with pytest.raises(ValueError, match=r"architecture must be contained"):
            shrink(shrunk, other)
    after = shrunk.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
