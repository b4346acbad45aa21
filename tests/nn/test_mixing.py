"""The fast paths of a block equal the plain one: outputs, every gradient, BN statistics."""

import copy
from itertools import chain
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.block import BlockGraph
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.blocks import choose_path
from dsonas.nn.cpu.layout import Layout
from dsonas.nn.network import Network
from dsonas.nn.operations import register_operation
from helpers.builders import images, random_architecture, random_graph, randomise


@register_operation("mixing_test_gate")
class Gate(nn.Module):
    """Parameters of its own, a buffer that training changes, and no convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(channels) + 0.1)
        self.gain = nn.Parameter(torch.full((1,), 0.7))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        mixed = torch.einsum("bchw,dc->bdhw", x, self.matrix)
        return torch.sin(self.gain * mixed) * self.frozen + x.mean((2, 3), keepdim=True)


register_operation("mixing_test_identity", lambda channels: nn.Identity())


@register_operation("mixing_test_zero")
class Zero(nn.Module):
    """Looks neither at its input nor at its parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return torch.zeros_like(x)


OWN = ("mixing_test_gate", "mixing_test_identity", "mixing_test_zero", "max_pool3x3")
SKELETON = Skeleton(image_size=6, num_classes=4, blocks=(2, 1), channels=(3, 5))
PARTS = ["weights", "factors", None]


FAST = ["levels", "buffer"]
each_path = pytest.mark.parametrize("path", FAST)


def pair(architecture: Architecture, path, seed: int, part=None):
    """A network that runs a fast path, and the same one by the plain path; some factors are 0."""
    torch.manual_seed(seed)
    fused = randomise(Network(architecture, scaled=True, path=path), seed)
    for vector in fused.scaling.blocks:
        zero = torch.rand(vector.shape, generator=torch.Generator().manual_seed(seed)) < 0.25
        vector.data[zero] = 0
    plain = Network(architecture, scaled=True, path="plain")
    plain.load_state_dict(fused.state_dict())
    for network in (fused, plain):
        network.train()
        list(network.weights())
        if part is not None:
            network.train_only(part)
    return fused, plain


def run(network: Network, x, labels):
    x = x.clone().requires_grad_()
    logits = network(x)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return logits.detach(), gradients | {"x": x.grad}


def close(one: torch.Tensor, two: torch.Tensor, relative: float) -> bool:
    return (one - two).norm() <= relative * max(two.norm().item(), 1e-3)


def assert_equal_runs(fused: Network, plain: Network, relative: float, batch) -> None:
    (y, gradients), (z, expected) = run(fused, *batch), run(plain, *batch)
    assert close(y, z, relative)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None, name
        elif gradients[name] is None:
            assert not gradient.any(), name
        else:
            assert close(gradients[name], gradient, relative), name
    statistics = dict(plain.named_buffers())
    for name, buffer in fused.named_buffers():
        assert close(buffer.double(), statistics[name].double(), relative), name


def drawn(seed: int, sharing: str, operations=None) -> Architecture:
    return random_architecture(
        Random(seed), SKELETON, shared=sharing == "share", operations=operations
    )


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", range(8))
@each_path
def test_equals_the_reference_in_float64(path, seed: int, part, sharing: str, float64):
    architecture = drawn(seed, sharing)
    batch = images(SKELETON, 4, seed)
    assert_equal_runs(*pair(architecture, path, seed, part), 1e-10, batch)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", PARTS)
@each_path
def test_equals_the_reference_in_float32(path, seed: int, part):
    architecture = drawn(seed, "share")
    batch = images(SKELETON, 4, seed)
    assert_equal_runs(*pair(architecture, path, seed, part), 1e-5, batch)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", range(3))
@each_path
def test_registered_operations_run_in_the_fast_path(path, seed: int, part, float64):
    architecture = random_architecture(
        Random(seed), SKELETON, shared=False, operations=OWN, num_levels=3, density=0.7
    )
    batch = images(SKELETON, 4, seed)
    assert_equal_runs(*pair(architecture, path, seed, part), 1e-10, batch)


@pytest.mark.parametrize("operations", [PAPER_OPERATIONS, OWN[1:]])
def test_recomputing_changes_nothing(operations, float64):
    architecture = drawn(5, "share", operations)
    kept, _ = pair(architecture, "buffer", 5)
    again = Network(architecture, scaled=True, recompute=True, path="buffer")
    again.load_state_dict(kept.state_dict())
    assert_equal_runs(again.train(), kept, 1e-12, images(SKELETON, 4, 5))


def test_recomputing_in_bfloat16_outside_autocast():
    architecture = drawn(5, "share")
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = Network(architecture, scaled=True, recompute=recompute, path="buffer").train()
        x, labels = images(SKELETON, 4, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(network(x), labels)
        loss.backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def one_block(graph: BlockGraph) -> Architecture:
    return Architecture(Skeleton(image_size=6, blocks=(1,), channels=(3,)), (graph,), ())


def graph_of(levels: int, count: int, *live: tuple[int, int]) -> BlockGraph:
    whole = BlockGraph.complete(PAPER_OPERATIONS[:count], levels)
    return whole.prune([pair in live for pair in whole.connections])


EDGES = {
    "complete": BlockGraph.complete(PAPER_OPERATIONS, 3),
    "one operation": graph_of(1, 1, (1, 2)),
    "chain whose first nodes do not feed the output": graph_of(3, 1, (1, 2), (2, 3), (3, 4)),
    "nothing in the first level": graph_of(3, 1, (0, 2), (2, 3), (3, 4)),
    "last level only": graph_of(3, 2, (0, 6), (6, 7)),
    "nothing in the middle": graph_of(3, 2, (1, 6), (0, 5), (5, 7), (6, 7)),
    "nothing kept": graph_of(2, 2),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("part", PARTS)
@each_path
def test_edge_cases_of_graphs(path, name: str, part, float64):
    graph = EDGES[name]
    assert graph.clean() == graph
    batch = images(Skeleton(image_size=6), 4)
    assert_equal_runs(*pair(one_block(graph), path, 2, part), 1e-10, batch)


@each_path
def test_images_need_not_be_square_and_may_be_a_single_one(path, float64):
    networks = pair(one_block(EDGES["complete"]), path, 0)
    x = torch.randn(1, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    assert_equal_runs(*networks, 1e-10, (x, torch.tensor([1])))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("placed", [True, False])
@each_path
def test_memory_format_does_not_matter(path, memory_format, placed: bool, float64):
    x, labels = images(SKELETON, 4)
    fused, plain = pair(drawn(1, "share"), path, 1)
    if placed:
        fused.to(memory_format=torch.channels_last)
    (y, gradients), (z, expected) = (
        run(fused, x.to(memory_format=memory_format), labels),
        run(plain, x, labels),
    )
    assert close(y, z, 1e-10)
    assert all(close(gradients[k], v, 1e-10) for k, v in expected.items() if v is not None)


@each_path
def test_nothing_is_computed_that_was_not_asked_for(path, float64):
    x, labels = images(SKELETON, 4)
    fused, _ = pair(drawn(3, "full"), path, 3, "weights")
    _, gradients = run(fused, x, labels)
    assert all(g is None for name, g in gradients.items() if name.startswith("scaling."))
    fused, _ = pair(drawn(3, "full"), path, 3, "factors")
    _, gradients = run(fused, x, labels)
    found = {name for name, g in gradients.items() if g is not None} - {"x"}
    assert found
    assert all(name.startswith("scaling.") for name in found)


@each_path
def test_everything_frozen_still_gives_the_gradient_of_the_images(path, float64):
    networks = pair(drawn(5, "share"), path, 5)
    for network in networks:
        network.requires_grad_(False)
    assert_equal_runs(*networks, 1e-10, images(SKELETON, 4))


@each_path
def test_bfloat16_autocast_is_close(path):
    architecture = random_architecture(
        Random(0), SKELETON, shared=True, operations=PAPER_OPERATIONS, num_levels=3, density=0.5
    )
    fused, plain = pair(architecture, path, 0)
    batch = images(SKELETON, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, gradients = run(fused, *batch)
    z, expected = run(plain, *batch)
    assert (y.float() - z).norm() < 0.1 * z.norm()
    names = [name for name in expected if name.startswith("scaling.")]
    ours, theirs = (torch.cat([g[name] for name in names]) for g in (gradients, expected))
    assert ours.dtype == torch.float32
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.9
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


def test_a_second_backward_pass_is_refused_clearly():
    fused, _ = pair(one_block(EDGES["complete"]), "buffer", 0)
    loss = fused(torch.randn(2, 3, 6, 6)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once per forward pass"):
        loss.backward()


@each_path
def test_two_forward_passes_before_their_backward_passes(path, float64):
    fused, plain = pair(drawn(2, "share"), path, 2)
    losses = []
    for network in (fused, plain):
        one, two = (network(images(SKELETON, 4, seed)[0]) for seed in (1, 2))
        (one.square().sum() + two.square().sum()).backward()
        losses.append({name: p.grad for name, p in network.named_parameters()})
    assert all(close(losses[0][k], v, 1e-10) for k, v in losses[1].items() if v is not None)


@each_path
def test_a_copy_of_a_network_is_independent(path, float64):
    fused, _ = pair(drawn(4, "share"), path, 4)
    twin = copy.deepcopy(fused)
    batch = images(SKELETON, 4)
    y, gradients = run(twin, *batch)
    assert all(p.grad is None for p in fused.parameters())
    z, expected = run(fused, *batch)
    assert torch.equal(y, z)
    assert all(torch.equal(gradients[k], v) for k, v in expected.items() if v is not None)


@pytest.mark.parametrize("seed", range(20))
def test_the_layout_has_each_connection_in_its_place(seed: int):
    rng = Random(seed)
    graph = random_graph(rng, "abc", rng.randint(1, 4), rng.choice((0.2, 0.5, 1.0)))
    layout = Layout.of(graph)
    planes = dict(enumerate((0, *layout.nodes)))
    found = set()
    assert [*chain(*(range(*level) for level in layout.levels))] == list(planes)[1:]
    for target, row in enumerate(layout.positions, 1):
        for plane, place in enumerate(row):
            if place < len(graph.connections):
                assert graph.connections[place] == (planes[plane], planes[target])
                found.add(place)
            else:
                direct = plane == 0 and graph.level(planes[target]) == 1
                assert place == len(graph.connections) + direct
    found |= set(layout.output_positions)
    assert found == {i for i, alive in enumerate(graph.live) if alive}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "buffer"),
        ({"sparse": True}, "plain"),
        ({"size": 4}, "levels"),
        ({"size": 4, "sparse": True}, "plain"),
        ({"device": "meta"}, "levels"),
        ({"training": False}, "plain"),
        ({"size": 4, "recompute": True}, "buffer"),
        ({"recompute": True, "sparse": True}, "plain"),
        ({"asked": "plain"}, "plain"),
        ({"asked": "levels", "training": False}, "plain"),
    ],
)
def test_what_is_computed_where(changes, path):
    options = {"training": True, "recompute": False, **changes}
    size, device = options.pop("size", 32), options.pop("device", "cpu")
    graph = graph_of(2, 2, (1, 3), (3, 5)) if options.pop("sparse", False) else EDGES["complete"]
    assert choose_path(graph, torch.empty(64, 16, size, size, device=device), **options) == path


def test_nothing_is_learned_by_the_fast_paths_without_gradients():
    with torch.no_grad():
        path = choose_path(
            EDGES["complete"], torch.empty(2, 2, 4, 4), training=True, recompute=False
        )
    assert path == "plain"


def test_operations_with_hooks_are_called():
    network, calls = Network(one_block(EDGES["complete"]), scaled=True, path="levels").train(), []
    for node in network.blocks[0].nodes.values():
        node.operation.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(2, 3, 6, 6))
    assert len(calls) == 12
