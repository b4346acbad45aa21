"""Plans against torch's counter, the stages of real runs, and clocks that are known."""

import math
import weakref
from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dsonas.commands.planning import (
    Cluster,
    StatedDevice,
    StepCounter,
    find_shape,
    growth,
    measured_device,
    outline,
    project,
    search_phases,
)
from dsonas.commands.planning.memory import peak_memory
from dsonas.cost.costs import architecture_cost
from dsonas.data import DataConfig, load_data
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.spaces import cifar_space
from dsonas.nn.network import Network
from dsonas.nn.operations import operation_names, register_operation
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.search.baselines import random_architectures
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.search.stages import Searching, search
from dsonas.sparse.proximal import ProximalNAG
from dsonas.train.engine import EngineConfig
from dsonas.train.loop import Journal
from dsonas.train.optimizers import sgd
from dsonas.train.steps import weight_step
from dsonas.train.training import TrainConfig
from helpers.builders import factor_step, random_skeleton

if "planning_conv3x3" not in operation_names():

    @register_operation("planning_conv3x3")
    def planning_conv3x3(channels: int) -> nn.Module:
        """One group, for torch's counter takes the weight gradients of groups for dense ones."""
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False)


OPERATIONS = ("planning_conv3x3", "max_pool3x3")
TINY = RunConfig(
    data=DataConfig(name="digits", max_train_images=64, max_test_images=20),
    network=NetworkConfig(levels=2, channels=4, blocks=(1, 1)),
    pretrain=PretrainConfig(epochs=2, batch_size=8),
    search=SearchConfig(epochs=3, batch_size=8),
    train=TrainConfig(epochs=2, batch_size=16),
    engine=EngineConfig(device="cpu", threads=1),
)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stated(devices: int = 1, **others) -> Cluster:
    return Cluster(device=StatedDevice(tflops=1, efficiency=0.5), devices=devices, **others)


def planned(config: RunConfig, cluster: Cluster | None = None):
    shape = find_shape(config.data)
    return project(config, shape, outline(config, shape), cluster or stated())


def lines(plan) -> dict[tuple[str, str], object]:
    return {(line.stage, line.part): line for line in plan.lines}


def counted_step(architecture: Architecture, kind: str, batch_size: int) -> int:
    """Multiply-adds of a step by torch's own counter, on the plain path."""
    skeleton = architecture.skeleton
    side = skeleton.image_size
    network = Network(architecture, scaled=True, reference=True).train()
    images = torch.zeros(batch_size, skeleton.input_channels, side, side)
    labels = torch.zeros(batch_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        if kind == "weights":
            weight_step(network, sgd(network, 0.1, 0.0, 0.9), images, labels)
        else:
            assert network.scaling is not None
            factor_step(network, ProximalNAG(network.scaling.parameters(), lr=0.1), images, labels)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", ["weights", "factors"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_multiply_adds_of_a_step_equal_the_counter_of_torch(kind: str, stem: str):
    skeleton = Skeleton(stem=stem, image_size=13, blocks=(1, 2), channels=(3, 5))
    architecture = Architecture.complete(skeleton, OPERATIONS, 2)
    step = StepCounter(RunConfig()).count(kind, architecture, 3)
    assert step.macs == counted_step(architecture, kind, 3)


@pytest.mark.parametrize("seed", range(4))
def test_multiply_adds_of_pruned_supernets_equal_the_counter_of_torch(seed: int):
    rng = Random(seed)
    complete = Architecture.complete(random_skeleton(rng, 12), OPERATIONS, 2)
    keep = [rng.random() < 0.6 or source == 1 for source, _ in complete.blocks[0].connections]
    graph = complete.blocks[0].prune(keep).clean()
    assert graph.kept_nodes
    pruned = replace(complete, blocks=(graph,) * len(complete.blocks))
    for kind in ("weights", "factors"):
        assert StepCounter(RunConfig()).count(kind, pruned, 2).macs == counted_step(pruned, kind, 2)


def test_work_is_linear_in_the_batch_and_gradients_are_not():
    architecture = planned(TINY).outline.supernet
    count = StepCounter(TINY).count
    one, many = (count("weights", architecture, size) for size in (1, 10))
    assert many.macs == 10 * one.macs
    assert one.least_bytes < many.least_bytes < 10 * one.least_bytes
    assert many.gradient_bytes == one.gradient_bytes == 4 * architecture_cost(architecture).params


def test_half_precision_halves_the_features_alone():
    architecture = planned(TINY).outline.supernet
    half = replace(TINY, engine=EngineConfig(precision="bfloat16"))
    full, small = (StepCounter(c).count("test", architecture, 100) for c in (TINY, half))
    assert full.least_bytes / 2 <= small.least_bytes < 0.6 * full.least_bytes
    assert (small.macs, small.gradient_bytes) == (full.macs, full.gradient_bytes)


def test_the_auxiliary_head_and_recomputation_are_counted():
    config = replace(TINY, search=replace(TINY.search, recompute=True))
    architecture = planned(TINY).outline.supernet
    plain, again = (StepCounter(c).count("weights", architecture, 1) for c in (TINY, config))
    assert plain.macs < again.macs <= plain.macs + architecture_cost(architecture).macs
    large = Architecture.complete(
        Skeleton(image_size=32, blocks=(1, 1), channels=(4, 8)), OPERATIONS, 2
    )
    extra = replace(TINY, train=replace(TINY.train, auxiliary=0.4))
    without, with_head = (StepCounter(c).count("train", large, 1) for c in (TINY, extra))
    assert with_head.macs > without.macs
    assert with_head.gradient_bytes > without.gradient_bytes


def test_steps_are_those_of_a_run():
    data, done = load_data(TINY.data), Counter()
    kinds: list[str] = []

    def report(stage, epoch, batch, row):
        if row is None:
            done[stage.name] += 1
            if isinstance(stage, Searching):
                kinds.append(stage.kinds[batch - 1])

    search(
        TINY.space(data),
        data,
        pretrain=TINY.pretrain,
        config=TINY.search,
        journal=Journal(report=report),
    )
    plan = lines(planned(TINY))
    assert plan["pretrain", "weight steps"].steps == done["pretrain"]
    assert plan["search", "weight steps"].steps == kinds.count("weights")
    assert plan["search", "factor steps"].steps == kinds.count("factors")
    assert plan["search", "rebuilds"].steps == TINY.search.epochs
    assert plan["train", "steps"].steps == 2 * (64 // 16)


@pytest.mark.parametrize("split", [0.25, 0.5])
def test_an_unequal_split_is_planned_as_it_is_searched(split: float):
    config = replace(TINY, data=replace(TINY.data, factor_split=split))
    data = load_data(config.data)
    result = []
    search(
        config.space(data),
        data,
        lambda_fraction=split,
        pretrain=PretrainConfig(epochs=0),
        config=config.search,
        journal=Journal(report=lambda stage, *_: result.append(stage)),
    )
    plan = lines(planned(config))
    assert plan["search", "weight steps"].steps == 3 * result[0].kinds.count("weights")
    assert plan["search", "factor steps"].steps == 3 * result[0].kinds.count("factors")


def test_the_phases_follow_the_planned_cost():
    config = SearchConfig(epochs=8, keep_cost=0.3, keep_connections=0.4, hold_from=0.5)
    skeleton = Skeleton(image_size=16, blocks=(1, 1), channels=(8, 16))
    supernet = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 3)
    phases = search_phases(supernet, config)
    plan = config.plan
    assert plan is not None
    for epoch, phase in enumerate(phases):
        allowed = plan.allowed(epoch / 8, supernet)
        assert architecture_cost(phase.architecture).macs <= allowed or epoch == 0
    assert phases[4].architecture == phases[8].architecture


def test_without_a_plan_nothing_is_assumed_to_go():
    config = replace(TINY, search=replace(TINY.search, keep_cost=None))
    found = planned(config).outline
    assert {phase.architecture for phase in found.phases} == {found.supernet}
    assert any("upper bound" in note for note in found.notes)


def test_a_stated_device_takes_what_its_rates_say():
    plan = planned(TINY)
    for line in plan.lines:
        if line.part != "rebuilds":
            assert line.seconds == pytest.approx(2 * line.macs / 0.5e12)
    memory = StatedDevice(tflops=1e6, gbytes=0.001)
    slow = planned(TINY, Cluster(device=memory))
    line = lines(slow)["pretrain", "weight steps"]
    assert line.seconds == pytest.approx(line.least_bytes / 1e6)


def test_devices_share_the_work_and_exchange_gradients_around_a_ring():
    alone, four = planned(TINY), planned(TINY, stated(4, link_gbytes=1e-3))
    one, shared = (lines(plan)["pretrain", "weight steps"] for plan in (alone, four))
    params = architecture_cost(alone.outline.supernet).params
    assert one.exchanged_bytes == 0
    assert shared.macs == one.macs
    assert shared.exchanged_bytes == shared.steps * (2 * 3 * 4 * params // 4)
    expected = one.seconds / 4 + shared.exchanged_bytes / 1e6
    assert shared.seconds == pytest.approx(expected)
    assert shared.memory_bytes < one.memory_bytes
    tests = [lines(plan)["train", "test batches"].seconds for plan in (alone, four)]
    assert tests[1] == pytest.approx(tests[0] / 4)  # each device measures its part


@pytest.mark.parametrize("devices", [3, 8])
def test_devices_that_cannot_share_a_batch_are_refused(devices: int):
    with pytest.raises(ValueError, match=r"pretrain\.batch_size 8"):
        planned(TINY, stated(devices))


def test_growth_is_linear_in_images_and_bounded_by_the_devices():
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=3))
    rows = growth(config, find_shape(config.data), stated())
    assert [row["devices"] for row in rows["devices"]] == [1, 2, 4]
    assert all(row["speedup"] <= row["devices"] for row in rows["devices"])
    times = {row["images"]: row["seconds"] for row in rows["images"]}
    assert times[256] - times[128] == pytest.approx(2 * (times[128] - times[64]))
    by_classes = [row["seconds"] for row in rows["classes"]]
    assert by_classes == sorted(by_classes)


def test_memory_grows_with_the_batch_and_recomputation_saves_some():
    architecture = planned(TINY).outline.supernet
    less = replace(TINY, search=replace(TINY.search, recompute=True))
    sizes = [
        peak_memory(StepCounter(config).count("weights", architecture, size), config)
        for config, size in ((less, 64), (TINY, 64), (TINY, 128))
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] < 2 * sizes[1]


class LiveBytes(TorchDispatchMode):
    """The height of what tensors hold that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.height = 0
        self.held: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.held:
                self.held.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.height = max(self.height, self.live)
        return made

    def freed(self, key: int, size: int) -> None:
        self.held.remove(key)
        self.live -= size


@pytest.mark.parametrize("index", range(4))
def test_memory_of_test_images_is_that_of_a_forward_pass(index: int):
    space = cifar_space(channels=8, blocks=(1, 1))
    architecture = [space.complete(), *islice(random_architectures(space, 0), 3)][index]
    network = Network(architecture).eval()
    with torch.no_grad(), LiveBytes() as measured:
        network(torch.zeros(8, 3, 32, 32))
    parameters = 3 * 4 * architecture_cost(architecture).params
    images = 8 * 4 * 3 * 32 * 32  # made before
    step = StepCounter(TINY).count("test", architecture, 8)
    estimated = peak_memory(step, TINY) - parameters - images
    assert estimated == pytest.approx(measured.height, rel=0.15)


def test_a_measured_device_has_a_time_for_every_line():
    shape = find_shape(TINY.data)
    found = outline(TINY, shape)
    device = measured_device(TINY, shape, found, seconds=0.02)
    assert {*device.samples} == {"pretrain", "weights", "factors", "train", "test"}
    plan = project(TINY, shape, found, Cluster(device=device))
    assert all(0 < line.seconds < math.inf for line in plan.lines)
    assert len(device.samples["weights"]) > 1
    assert "measured here: cpu, 1 threads" in device.description
