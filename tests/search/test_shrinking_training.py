"""After removing what is zero training goes on: momenta, gradients, weights."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dsonas.graph.architecture import Architecture
from dsonas.nn.network import Network
from dsonas.search.shrinking import shrink
from dsonas.train.steps import weight_step
from helpers.builders import SMALL, images, optimizers, outputs, supernet, train, write_zeros

SHARINGS = ["share", "full"]


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
    write_zeros(network.scaling, live, pair[1])
    return network, pair, live


def survivors(network: Network, live: Architecture) -> dict[str, torch.Tensor]:
    """The network's tensors that a shrunk one keeps too, cut to the columns that it keeps."""
    found = {}
    names = dict(Network(live, scaled=True).named_parameters())
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
    x, labels = images(SMALL, 8, 7)
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
    write_zeros(twin.scaling, live)
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
    write_zeros(network.scaling, smaller, pair[1])
    x, _ = images(SMALL, 8)
    before = outputs(network, x, True)
    shrink(network, smaller, pair[0])
    assert smaller.num_live < live.num_live
    torch.testing.assert_close(outputs(network, x, True), before, rtol=1e-10, atol=1e-10)
    train(network, pair, [4])


def test_other_optimizers_keep_their_whole_state(float64):
    network = supernet(5, "share", 0.0)
    adam = torch.optim.AdamW(network.weights(), lr=0.01)
    x, labels = images(SMALL, 8)
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
