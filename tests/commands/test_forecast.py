"""Forecasts against the stages of real runs, and clocks that are known."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dsonas.commands import forecast as module
from dsonas.commands.forecast import forecast, forget_peak, high_water, planned_chain
from dsonas.commands.size_options import blank_data
from dsonas.cost.costs import architecture_cost
from dsonas.data import DataConfig, load_data
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.search.removal import planned_cost
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.search.stages import Searching, search
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.graphs import WARM, StepGraphs
from dsonas.train.loop import Journal
from dsonas.train.training import TrainConfig
from helpers.recorded_calls import RecordedCapture

TINY = RunConfig(
    data=DataConfig(name="digits", max_train_images=64, max_test_images=20),
    network=NetworkConfig(levels=2, channels=4, blocks=(1, 1)),
    pretrain=PretrainConfig(epochs=2, batch_size=8),
    search=SearchConfig(epochs=3, batch_size=8),
    train=TrainConfig(epochs=2, batch_size=16),
    engine=EngineConfig(device="cpu", threads=1),
)
MILLISECONDS = {"pretrain": 5.0, "weights": 4.0, "factors": 3.0, "train": 2.0, "test": 1.0}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def known_clock(monkeypatch):
    """Steps that take ``MILLISECONDS``, whatever they do."""
    seconds = {kind: value / 1000 for kind, value in MILLISECONDS.items()}
    timed = module._Timed(seconds, 10**9)
    monkeypatch.setattr(module._Meter, "_timed", lambda self, stage, batch_size: timed)


def lines(config: RunConfig) -> dict[tuple[str, str], module.Line]:
    found = forecast(config, blank_data(config.data))
    return {(line.stage, line.part): line for line in found.lines}


def counted_steps(config: RunConfig) -> Counter[str]:
    """The steps of a real search, by kind."""
    done: Counter[str] = Counter()

    def report(stage, epoch, batch, row):
        if row is None:
            done[stage.kinds[batch - 1] if isinstance(stage, Searching) else stage.name] += 1

    data = load_data(config.data)
    search(
        config.space(data),
        data,
        factor_split=config.data.factor_split,
        pretrain=config.pretrain,
        config=config.search,
        journal=Journal(report=report),
    )
    return done


@pytest.mark.parametrize("split", [0.5, 0.25, 0])
def test_steps_are_those_of_a_run(known_clock, split: float):
    config = replace(TINY, data=replace(TINY.data, factor_split=split))
    plan, done = lines(config), counted_steps(config)
    assert plan["pretrain", "weight steps"].steps == done["pretrain"]
    assert plan["search", "weight steps"].steps == done["weights"]
    assert plan["search", "factor steps"].steps == done["factors"]
    assert plan["search", "rebuilds"].steps == config.search.epochs
    assert plan["train", "steps"].steps == 2 * (64 // 16)


def test_every_epoch_of_step_3_looks_at_the_validation_part(known_clock):
    """Of 64 images a quarter; the test images are measured after both epochs and at the end."""
    plan, held = lines(TINY), lines(replace(TINY, data=replace(TINY.data, val=0.25)))
    assert held["train", "steps"].steps == 2 * (48 // 16)
    assert plan["train", "test batches"].steps == 3
    assert held["train", "test batches"].steps == 3 + 2
    a_test_image = plan["train", "test batches"].macs / (3 * 20)
    assert held["train", "test batches"].macs == round((3 * 20 + 2 * 16) * a_test_image)


def test_time_is_steps_times_seconds(known_clock):
    plan = forecast(TINY, blank_data(TINY.data))
    kinds = ("pretrain", "weights", "factors", None, "train", "test")
    for line, kind in zip(plan.lines, kinds, strict=True):
        if kind:
            assert line.seconds == pytest.approx(line.steps * MILLISECONDS[kind] / 1000)
            assert line.memory_bytes == 10**9
    assert plan.seconds == pytest.approx(sum(line.seconds for line in plan.lines))


def test_work_is_three_forward_passes_and_falls_with_the_plan(known_clock):
    plan, whole = lines(TINY), lines(replace(TINY, search=replace(TINY.search, keep_cost=None)))
    supernet = TINY.space(blank_data(TINY.data)).complete()
    line = plan["pretrain", "weight steps"]
    assert line.macs == 3 * line.steps * 8 * architecture_cost(supernet).macs
    assert plan["search", "weight steps"].macs < whole["search", "weight steps"].macs
    assert whole["search", "factor steps"].macs == 2 * 12 * 8 * architecture_cost(supernet).macs


def test_the_chain_follows_the_planned_cost():
    config = SearchConfig(epochs=8, keep_cost=0.3, keep_connections=0.4, hold_from=0.5)
    skeleton = Skeleton(image_size=16, blocks=(1, 1), channels=(8, 16))
    supernet = Architecture.complete(skeleton, ("separable_conv3x3", "max_pool3x3"), 3)
    chain = planned_chain(replace(TINY, search=config), supernet)
    for epoch, architecture in enumerate(chain):
        planned = planned_cost(config, epoch / 8, supernet)
        assert architecture_cost(architecture).macs == pytest.approx(planned, rel=0.25)
    assert chain[4] == chain[8]


def test_without_a_plan_nothing_is_assumed_to_go(known_clock):
    config = replace(TINY, search=replace(TINY.search, keep_cost=None))
    supernet = config.space(blank_data(config.data)).complete()
    assert set(planned_chain(config, supernet)) == {supernet}
    assert any("upper bound" in note for note in forecast(config, blank_data(config.data)).notes)


def test_every_line_is_timed_and_takes_memory(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIMED", 2)
    plan = forecast(TINY, blank_data(TINY.data))
    assert [line.stage for line in plan.lines] == ["pretrain", *["search"] * 3, *["train"] * 2]
    assert all(0 < line.seconds < 60 for line in plan.lines)
    assert all(line.memory_bytes > 10**7 for line in plan.lines if line.part != "rebuilds")
    assert plan.notes == ()


def test_long_steps_are_timed_with_fewer_images(monkeypatch):
    sizes = set()
    measured = module._Meter._measured

    def watched(self, stage, batch_size, size, count):
        sizes.add(size)
        return measured(self, stage, batch_size, size, count)

    monkeypatch.setattr(module._Meter, "_measured", watched)
    monkeypatch.setattr(module, "LONGEST_STEP", 0.0)
    plan = forecast(TINY, blank_data(TINY.data))
    assert max(sizes) == module.PROBE
    assert any("in proportion" in note for note in plan.notes)


def test_steps_that_wait_for_the_host_are_timed_whole(monkeypatch):
    def measured(self, stage, batch_size, size, count):
        return module._Timed({"train": 1.0 * batch_size / size}, 0)  # 1 s, with whatever images

    monkeypatch.setattr(module._Meter, "_measured", measured)
    meter = module._Meter(TINY, blank_data(TINY.data))
    assert meter._timed(lambda source: None, 512).seconds == {"train": 1.0}
    assert not meter.cuts


def test_the_peak_of_memory_is_that_since_it_was_forgotten():
    engine = Engine(EngineConfig(device="cpu"))
    forget_peak(engine)
    before = high_water(engine)
    block = torch.ones(40_000_000)
    grown = high_water(engine) - before
    del block
    assert 150e6 < grown < 200e6
    forget_peak(engine)
    assert high_water(engine) - before < 50e6


@pytest.mark.parametrize("graphs", [False, True])
def test_steps_before_a_graph_is_replayed_do_not_count(monkeypatch, graphs: bool):
    now, before, done = [0.0], 1 + WARM if graphs else 1, []

    class Stage:
        name = "pretrain"

        def batches(self, epoch, start):
            return iter([torch.zeros(1)] * 30)

        def step(self, batch, epoch, index):
            done.append(index)
            now[0] += 99 if index < before else 2

    meter = module._Meter(TINY, blank_data(TINY.data))
    meter.engine.graphs = StepGraphs(RecordedCapture()) if graphs else None
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(module, "PATIENCE", 1e9)
    assert meter._seconds(Stage()) == {"pretrain": 2}
    assert len(done) == before + module.TIMED
