"""Steps whose passes are captured and replayed do what ordinary steps do; CPU calls stand in."""

import copy
import gc
import logging

import pytest
import torch
from torch import nn

from dsonas.data import DataConfig, load_data
from dsonas.graph import SearchSpace
from dsonas.graph.architecture import Skeleton
from dsonas.search import searcher
from dsonas.search.choice_supernet import ChoiceNetwork, ChoiceSupernet
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.search.shrinking import shrink
from dsonas.search.stages import search
from dsonas.sparse import LayerChoice, ProximalNAG, Zero
from dsonas.train import engine as engine_module
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.graphs import WARM, StepGraphs
from dsonas.train.optimizers import set_lr, sgd
from dsonas.train.steps import factor_gradients, weight_step
from helpers.builders import SMALL, images, optimizers, supernet
from helpers.recorded_calls import RecordedCapture

SEED = 7  # two levels of three operations, dense enough for run_levels


class Run:
    """A supernet that is trained, with graphs or without."""

    def __init__(self, network, capture=None, **settings) -> None:
        self.network = copy.deepcopy(network).train()
        self.weights, self.factors = optimizers(self.network)
        self.engine = Engine(EngineConfig(device="cpu", **settings))
        self.engine.graphs = StepGraphs(capture) if capture else None
        self.found: list = []

    def steps(self, seeds, size: int = 8) -> None:
        """A weight and a factor step for each seed, with another learning rate each."""
        for seed in seeds:
            x, labels = images(SMALL, size, seed)
            set_lr(self.weights, 0.1 / (seed + 1))
            torch.manual_seed(seed)
            with self.engine.autocast():
                found = weight_step(
                    self.network, self.weights, x, labels, clip=0.05, engine=self.engine
                )
                self.found += found
                self.found += factor_gradients(self.network, x, labels, engine=self.engine)
            self.factors.step()
            self.factors.zero_grad()

    def shrink(self) -> None:
        """Remove every third connection."""
        old = self.network.architecture
        keeps = [i % 3 > 0 for i in range(len(old.cells[0].live))]
        cells = [cell.prune(keeps).clean() for cell in old.cells]
        shrink(self.network, old.with_cells(cells), self.weights)


def same(one: Run, two: Run) -> bool:
    states = [run.network.state_dict().values() for run in (one, two)]
    pairs = [*zip(*states, strict=True), *zip(one.found, two.found, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def pair(capture, sharing: str = "share", **settings) -> tuple[Run, Run]:
    network = supernet(SEED, sharing, 0.0)
    return Run(network, **settings), Run(network, capture, **settings)


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"precision": "bfloat16"}], ids=["", "parts", "bfloat16"]
)
def test_replayed_steps_are_the_ordinary_ones(sharing, settings):
    capture = RecordedCapture()
    plain, graphed = pair(capture, sharing=sharing, **settings)
    for run in (plain, graphed):
        run.steps(range(WARM + 4))
    assert same(plain, graphed)
    assert (capture.captures, capture.asides, capture.replays) == (2, 2 * WARM, 2 * 4)


def test_every_rebuild_is_followed_by_a_capture():
    capture = RecordedCapture()
    plain, graphed = pair(capture)
    for run in (plain, graphed):
        run.steps(range(WARM + 2))
        before = run.network.architecture.num_live
        run.shrink()
        assert run.network.architecture.num_live < before
        run.steps(range(WARM + 2))
    assert same(plain, graphed)
    assert (capture.captures, capture.asides, capture.replays) == (4, 4 * WARM, 4 * 2)
    gc.collect()
    assert len(capture.held) == 2  # those of before are gone


def test_a_connection_that_goes_alone_gets_no_gradient():
    """No parameter changes with it: a graph of before would still give its factor a gradient."""
    network = supernet(SEED, "share", 0.0)
    graph = network.architecture.cells[0]
    inner = next(
        i for i, (source, target) in enumerate(graph.connections)
        if source > 0 and target < graph.output_node
    )  # fmt: skip
    run = Run(network, RecordedCapture())
    run.steps(range(WARM + 2))
    keeps = [i != inner for i in range(len(graph.live))]
    smaller = network.architecture.with_cells([graph.prune(keeps)])
    parameters = len(list(run.network.parameters()))
    shrink(run.network, smaller, run.weights)
    assert len(list(run.network.parameters())) == parameters
    run.steps(range(WARM + 2))
    factor_gradients(run.network, *images(SMALL, 8), engine=run.engine)
    gradient = run.network.scaling.blocks[0].grad
    assert gradient[inner] == 0
    assert gradient.count_nonzero() == smaller.cells[0].num_live


class ChoiceRun(Run):
    """A model with a choice."""

    def __init__(self, capture=None) -> None:
        torch.manual_seed(0)
        candidates = {"3": nn.Conv2d(3, 3, 3, padding=1), "1": nn.Conv2d(3, 3, 1), "no": Zero()}
        mixed = LayerChoice(candidates, label="mixed")
        model = nn.Sequential(mixed, nn.Dropout(0.3), nn.Flatten(), nn.Linear(243, 4))
        self.supernet = ChoiceSupernet(model, torch.zeros(1, 3, 9, 9), None, SearchConfig())
        self.network = ChoiceNetwork(self.supernet).train()
        self.weights = sgd(self.network.weights(), 0.05, 1e-3, 0.9)
        self.factors = ProximalNAG(self.network.factors(), lr=0.05, penalty=0.01)
        self.engine, self.found = Engine(EngineConfig(device="cpu")), []
        self.engine.graphs = StepGraphs(capture) if capture else None


def test_models_with_choices_and_dropout_too():
    capture = RecordedCapture()
    plain, graphed = ChoiceRun(), ChoiceRun(capture)
    for run in (plain, graphed):
        run.steps(range(WARM + 2))
        run.supernet.remove({"mixed": ("1", "no")}, [run.weights])
        run.steps(range(WARM + 2))
    assert same(plain, graphed)
    assert (capture.captures, capture.replays) == (4, 8)


def test_a_batch_of_another_size_is_an_ordinary_step():
    capture = RecordedCapture()
    plain, graphed = pair(capture)
    for run in (plain, graphed):
        run.steps(range(WARM + 2))
        run.steps([7], size=5)
        run.steps([8, 9])
    assert same(plain, graphed)
    assert (capture.captures, capture.asides, capture.replays) == (2, 2 * WARM + 2, 2 * 4)


def test_batches_that_stay_of_another_size_get_their_own_graph():
    capture = RecordedCapture()
    plain, graphed = pair(capture)
    for run in (plain, graphed):
        run.steps(range(WARM + 1))
        run.steps(range(WARM + 1), size=6)
    assert same(plain, graphed)
    assert capture.captures == 4


class Failing(RecordedCapture):
    """Fails in the middle of a capture, when some gradients are there."""

    def capture(self, run):
        super().capture(run)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_what_cannot_be_captured_goes_on_by_ordinary_steps(caplog):
    capture = Failing()
    plain, graphed = pair(capture)
    with caplog.at_level(logging.WARNING):
        for run in (plain, graphed):
            run.steps(range(WARM + 3))
            run.shrink()
            run.steps(range(WARM + 3))
    assert same(plain, graphed)
    assert capture.captures == 2  # once for each kind of step
    assert [record.getMessage() for record in caplog.records] == [
        f"engine.graphs: steps of {part} without a CUDA graph "
        "(operation not permitted when stream is capturing more)"
        for part in ("weights", "factors")
    ]


def test_results_of_a_step_are_not_overwritten_by_the_next():
    capture = RecordedCapture()
    run = Run(supernet(SEED, "share", 0.0), capture)
    run.steps(range(WARM + 1))
    loss, logits = run.found[-4], run.found[-3]
    kept = loss.clone(), logits.clone()
    run.steps([8, 9])
    assert torch.equal(loss, kept[0])
    assert torch.equal(logits, kept[1])
    assert not logits.requires_grad


def test_a_whole_search_finds_the_same(monkeypatch):
    monkeypatch.setattr(searcher, "LEAST_STEPS", 8)  # between two rebuilds
    data = load_data(DataConfig(name="digits", max_train_images=160))
    skeleton = Skeleton(input_channels=1, image_size=8, blocks=(1,), channels=(4,))
    operations = ("separable_conv3x3", "max_pool3x3", "average_pool3x3")
    capture, found = RecordedCapture(), []
    for graphs in (None, StepGraphs(capture)):
        engine = Engine(EngineConfig(device="cpu"))
        engine.graphs = graphs
        result = search(
            SearchSpace(skeleton=skeleton, num_levels=2, operations=operations),
            data,
            pretrain=PretrainConfig(epochs=1, batch_size=16),
            config=SearchConfig(epochs=4, batch_size=8),
            engine=engine,
        )
        found.append(result)
    plain, graphed = found
    assert graphed.architecture == plain.architecture
    assert graphed.factors == plain.factors
    assert graphed.history == plain.history
    assert len(plain.chain) > 2
    assert capture.captures >= 1 + 2 * 2  # step 1; two kinds, the supernet and what follows it
    assert capture.replays > 20
    gc.collect()
    assert not capture.held  # step 3 needs the memory
    pairs = zip(plain.network.parameters(), graphed.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_cuda_there_are_no_graphs_and_nothing_is_said(caplog):
    assert Engine(EngineConfig(device="cpu")).graphs is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("device", "wish", "processes", "graphs", "said"),
    [
        ("cuda", "auto", 1, True, 0),
        ("cuda", "off", 1, False, 0),
        ("cuda", "auto", 2, False, 1),
        ("cpu", "auto", 2, False, 0),
    ],
)
def test_where_graphs_are_tried(monkeypatch, caplog, device, wish, processes, graphs, said):
    monkeypatch.setattr(engine_module, "CudaCapture", lambda device: RecordedCapture())
    engine = Engine(EngineConfig(device="cpu"))
    engine.device, engine.synchronises = torch.device(device), processes > 1
    assert isinstance(engine._graphs(wish), StepGraphs) == graphs
    assert len(caplog.records) == said


def test_other_wishes_are_refused():
    with pytest.raises(ValueError, match=r"engine\.graphs must be one of auto, off"):
        EngineConfig(graphs="on")
