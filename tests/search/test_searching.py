"""Steps 1 and 2 on a few digits: the same bits again, resumed or not, shrunk or not."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dsonas.cost.budgets import Budget, exact_measures
from dsonas.cost.costs import architecture_cost
from dsonas.data import Batches, DataConfig, ImageData, load_data
from dsonas.graph.architecture import Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.nn.network import Network
from dsonas.search.penalties import penalty_of
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.search.stages import BlockResult, Searching, alternation, search
from dsonas.train.checkpoints import CheckpointFolder
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.loop import DivergedError, Interrupted, Journal
from dsonas.train.optimizers import sgd
from helpers.builders import randomise, write_zeros

pytestmark = pytest.mark.slow

SPACE = SearchSpace(
    skeleton=Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(4, 8)), num_levels=2
)
PRETRAIN = PretrainConfig(epochs=1, batch_size=32)
CONFIG = SearchConfig(epochs=3, batch_size=32, keep_cost=0.5, keep_connections=0.5)
STEPS = 3 + 3 * 6  # of pretraining and of search


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(name="digits", max_train_images=200))


def run(data, *, seed: int = 0, sharing: str = "share", config=CONFIG, **options) -> BlockResult:
    return search(
        replace(SPACE, sharing=sharing),
        data,
        seed=seed,
        pretrain=options.pop("pretrain", PRETRAIN),
        config=replace(config, space=sharing),
        engine=Engine(EngineConfig(device="cpu", threads=1)),
        **options,
    )


def plain(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same(one: BlockResult, two: BlockResult) -> None:
    assert one.architecture == two.architecture
    assert one.factors == two.factors
    assert one.chain == two.chain
    assert plain(one.rows) == plain(two.rows)
    states = one.network.state_dict(), two.network.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.fixture(scope="module")
def uninterrupted(data):
    found = {}
    for sharing in ("share", "full"):
        journal = Journal()
        found[sharing] = run(data, sharing=sharing, journal=journal), journal
    return found


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(data, uninterrupted, sharing: str):
    expected, journal = uninterrupted[sharing]
    torch.rand(7)
    again = Journal()
    assert_same(run(data, sharing=sharing, journal=again), expected)
    assert plain(again.rows) == plain(journal.rows)
    other = run(data, sharing=sharing, seed=1)
    assert other.factors != expected.factors


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_the_plan_is_met_and_the_result_is_consistent(uninterrupted, sharing: str):
    result, journal = uninterrupted[sharing]
    whole, found = result.supernet, result.architecture
    assert whole == replace(SPACE, sharing=sharing).complete()
    assert found.clean() == found
    graphs = found.blocks[:1] if sharing == "share" else found.blocks
    complete = whole.blocks[: len(graphs)]
    live, possible = (sum(graph.num_live for graph in g) for g in (graphs, complete))
    assert 0 < live <= 0.5 * possible
    bare = replace(whole, blocks=tuple(g.prune([False] * len(g.live)) for g in whole.blocks))
    fixed, full = architecture_cost(bare).macs, architecture_cost(whole).macs
    assert 0.2 < (architecture_cost(found).macs - fixed) / (full - fixed) < 0.7
    for graph, vector in zip(graphs, result.factors, strict=True):
        assert [value > 0 for value in vector] == list(graph.live)
    assert [row["stage"] for row in journal.rows] == ["pretrain"] + ["search"] * 3
    assert plain(result.rows) == plain(journal.rows[1:])
    assert result.rows[-1]["live_connections"] == found.num_live
    assert result.rows[-1]["macs"] == architecture_cost(found).macs


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_the_chain_is_nested_and_every_member_is_derivable(data, uninterrupted, sharing: str):
    result, _ = uninterrupted[sharing]
    assert (result.chain[0], result.chain[-1]) == (result.supernet, result.architecture)
    assert len(result.chain) >= 3
    for large, small in pairwise(result.chain):
        assert small != large
        assert small.clean() == small
        for one, two in zip(small.blocks, large.blocks, strict=True):
            assert all(b or not a for a, b in zip(one.live, two.live, strict=True))
    costs = [architecture_cost(member).macs for member in result.chain]
    assert costs == sorted(set(costs), reverse=True)
    assert costs[-1] == result.rows[-1]["macs"]
    images, _ = next(batches_of(data).epoch(0))
    for member in result.chain:
        assert Network(member).eval()(images).shape == (32, 10)


def test_removal_meets_the_plan(data):
    result = run(data, config=CONFIG)
    whole, found = result.supernet, result.architecture
    bare = replace(whole, blocks=tuple(g.prune([False] * len(g.live)) for g in whole.blocks))
    fixed, full = architecture_cost(bare).macs, architecture_cost(whole).macs
    assert 0.2 < (architecture_cost(found).macs - fixed) / (full - fixed) < 0.7
    assert all(graph.kept_nodes for graph in found.blocks)


def test_a_search_without_a_plan_has_a_chain_too(data):
    config = replace(CONFIG, keep_cost=None, penalty=0.5)
    result = run(data, config=config)
    assert (result.chain[0], result.chain[-1]) == (result.supernet, result.architecture)
    connections = [member.num_live for member in result.chain]
    assert connections == sorted(connections, reverse=True)


def stop_after(steps: int):
    left = [steps]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    return stop


def resumed(data, folder: CheckpointFolder, sharing: str, after: list[int], config=CONFIG):
    """A search that is stopped after so many steps, again and again, each time from disk."""
    state, journal = None, Journal()
    for steps in after:
        journal = Journal(
            rows=list(state["rows"]) if state else [],
            seconds=dict(state["seconds"]) if state else {},
            save=folder.save,
            stop=stop_after(steps),
        )
        with pytest.raises(Interrupted):
            run(data, sharing=sharing, config=config, journal=journal, resume=state)
        torch.rand(3)
        state = folder.load_last()
    journal = Journal(rows=list(state["rows"]), seconds=dict(state["seconds"]), save=folder.save)
    return run(data, sharing=sharing, config=config, journal=journal, resume=state), journal


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize(
    "after", [[1], [3], [4], [9], [10], [14, 1], [2, 3, 6, 5], [STEPS]], ids=str
)
def test_a_resumed_search_gives_the_same_bits(data, uninterrupted, tmp_path, sharing, after):
    result, journal = resumed(data, CheckpointFolder(tmp_path), sharing, after)
    assert_same(result, uninterrupted[sharing][0])
    assert plain(journal.rows) == plain(uninterrupted[sharing][1].rows)


def test_a_finished_search_resumes_to_its_result(data, uninterrupted, tmp_path):
    folder = CheckpointFolder(tmp_path)
    run(data, journal=Journal(save=folder.save))
    state = folder.load_last()
    journal = Journal(rows=state["rows"], stop=lambda: pytest.fail("no step is left"))
    assert_same(run(data, journal=journal, resume=state), uninterrupted["share"][0])


@pytest.mark.parametrize("sharing", ["share", "full"])
@pytest.mark.parametrize("structure", [0.4, None])
def test_shrinking_does_not_change_the_result(data, sharing: str, structure, float64, monkeypatch):
    """In float64: removing zeros changes the order of sums."""
    assert next(batches_of(data).epoch(0))[0].dtype == torch.float64
    config = replace(CONFIG, epochs=4, keep_cost=structure, keep_connections=0.4)
    if structure is None:  # the penalty alone, as published
        config = replace(config, penalty=0.5, normalise=False)
    one = run(data, sharing=sharing, config=config)
    monkeypatch.setattr(Searching, "step", _with_zeros(Searching.step))
    monkeypatch.setattr(sys.modules["dsonas.search.block_supernet"], "shrink", lambda *_: None)
    two = run(data, sharing=sharing, config=config)
    assert one.architecture.num_live < one.supernet.num_live
    assert one.architecture == two.architecture
    for mine, theirs in zip(one.factors, two.factors, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def _with_zeros(step):
    """The same step, after which what a rebuild has removed is 0 again, though still there."""

    def stepped(self: Searching, *arguments):
        found = step(self, *arguments)
        searcher = self.searcher
        write_zeros(self.supernet.scaling, searcher.live, searcher.optimizer)
        if self.config.normalise and searcher.done not in searcher._rebuilds:
            self.supernet.normalise(searcher.optimizer, searcher._staying)
        return found

    return stepped


def batches_of(data: ImageData, seed: int = 0) -> Batches:
    return Batches(
        data.train, data, batch_size=32, augmentation=data.search_augmentation,
        shuffle=True, drop_last=True, seed=seed,
    )  # fmt: skip


def stage_of(data: ImageData, dead: set[tuple[int, int]], **options) -> Searching:
    """A search stage, unplanned and without penalty, in which some factors are 0."""
    torch.manual_seed(0)
    network = randomise(Network(SPACE.complete(), scaled=True), 0)
    graph = network.architecture.blocks[0]
    zero = torch.tensor([pair in dead for pair in graph.connections])
    network.scaling.blocks[0].data[zero] = 0
    given = {"keep_cost": None, "penalty": 0.0, **options}
    config = SearchConfig(epochs=9, batch_size=32, **given)
    engine = Engine(EngineConfig(device="cpu", threads=1))
    return Searching(network, batches_of(data), batches_of(data, 1), config, engine)


@pytest.fixture(scope="module")
def pressed():
    """A search by the default, long enough for its plan."""
    data = load_data(DataConfig(name="digits", max_train_images=800))
    config = SearchConfig(epochs=10, batch_size=32)
    return search(
        SPACE, data, pretrain=PretrainConfig(epochs=2, batch_size=32), config=config, seed=3
    )


def test_what_goes_is_exactly_0_and_the_plan_is_met(pressed):
    """The proximal step decides: nothing but what it has brought to 0 is cut."""
    last = pressed.rows[-1]
    by_penalty, by_budget = last["removed_by_penalty"], last["removed_by_budget"]
    whole = sum(cell.num_live for cell in pressed.supernet.cells)
    left = sum(cell.num_live for cell in pressed.architecture.cells)
    assert by_penalty + by_budget == whole - left > 0
    assert by_penalty >= 0.95 * (by_penalty + by_budget)
    fixed = architecture_cost(pressed.supernet.without_blocks()).macs
    full, found = (architecture_cost(net).macs for net in (pressed.supernet, pressed.architecture))
    assert 0.15 < (found - fixed) / (full - fixed) < 0.45


def test_without_penalty_the_plan_cuts_at_the_end(data):
    result = run(data, config=replace(CONFIG, penalty=0.0))
    rows = [row["removed_by_budget"] for row in result.rows]
    assert rows[-1] > 0
    assert set(rows[:-1]) == {0}
    assert result.rows[-1]["removed_by_penalty"] == 0


@pytest.mark.parametrize("normalise", [True, False])
def test_what_a_rebuild_removed_never_comes_back(data, normalise: bool):
    stage = stage_of(data, {(1, 5), (0, 6)}, normalise=normalise)
    stage.searcher._rebuild()
    live = stage.searcher.live.blocks[0].live
    assert live.count(False) == 2
    for index, batch in zip(range(6), stage.batches(1, 0), strict=False):
        stage.step(batch, 1, index)
        values = stage.supernet.scaling.blocks[0].tolist()
        assert [value == 0 for value in values] == [not alive for alive in live]


def test_what_a_rebuild_leaves_is_normalised_alone(data):
    """Without a plan too: what has gone does not count in the mean square."""
    stage = stage_of(data, {(1, 5), (0, 6)}, normalise=True)
    stage.searcher._rebuild()
    stage.step(next(stage.batches(1, 0)), 1, 0)
    kind, *batch = next(b for b in stage.batches(1, 0) if b[0] == "factors")
    stage.step((kind, *batch), 1, 1)
    vector, graph = stage.supernet.scaling.blocks[0], stage.searcher.live.blocks[0]
    for target in {t for (_, t), alive in zip(graph.connections, graph.live, strict=True) if alive}:
        into = [
            value**2
            for value, (_, t), alive in zip(
                vector.tolist(), graph.connections, graph.live, strict=True
            )
            if t == target and alive
        ]
        assert sum(into) / len(into) == pytest.approx(1, abs=1e-4)


def test_a_rebuild_keeps_the_outputs_in_evaluation_mode(data):
    """Node 5 has lost its inputs; the constant that it still gives must not be lost."""
    stage = stage_of(data, {(source, 5) for source in range(5)})
    for block in stage.network.blocks:
        block.nodes["5"].bn.bias.data.fill_(0.5)
        block.nodes["5"].bn.running_mean.zero_()
    images, _ = next(batches_of(data).epoch(0))
    with torch.no_grad():
        before = stage.network.eval()(images)
        stage.searcher._rebuild()
        assert 5 not in stage.network.architecture.blocks[0].kept_nodes
        torch.testing.assert_close(stage.network.eval()(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "adaptive_memory", "adaptive_latency"])
@pytest.mark.parametrize("sharing", ["share", "full"])
def test_every_penalty_can_lead_a_search(data, uninterrupted, sharing: str, kind: str):
    measures = exact_measures(lambda architecture: architecture_cost(architecture).macs / 1e6)
    config = replace(CONFIG, penalty_kind=kind)
    found = run(data, sharing=sharing, config=config, measures=measures)
    assert found.architecture.num_live < found.supernet.num_live
    assert found.history != uninterrupted[sharing][0].history  # by adaptive_macs, the default


def test_penalties_by_memory_access_hold_from_the_first_step(data):
    network = Network(SPACE.complete(), scaled=True)
    config = SearchConfig(batch_size=32, penalty=0.5, penalty_kind="adaptive_memory")
    engine = Engine(EngineConfig(device="cpu", threads=1))
    stage = Searching(network, batches_of(data), batches_of(data, 1), config, engine)
    whole = network.architecture
    (weights,) = penalty_of("adaptive_memory").weights(whole, whole)
    expected = [0.5 * weight for weight in weights]
    assert len(set(expected)) > 1
    assert stage.searcher.optimizer.param_groups[0]["penalty"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_a_planned_search_does_not_press_the_factors_of_reduction_blocks(data, seed: int):
    """Their scale is nearly free: under the penalty it fell until a branch went by chance."""
    config = SearchConfig(epochs=5, batch_size=16)
    found = run(data, seed=seed, config=config)
    for factors in found.network.scaling.reductions:
        assert factors.min() > 0.3
    assert found.architecture.reductions == found.supernet.reductions


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("structure", [0.3, None])
def test_what_presses_the_factors_of_reduction_blocks(data, normalise: bool, structure):
    """The penalty alone decides in the published form only."""
    stage = stage_of(data, set(), normalise=normalise, keep_cost=structure, penalty=0.1)
    alone = 0.1 if structure is None and not normalise else 0.0
    groups = stage.searcher.optimizer.param_groups
    assert [group["penalty"] for group in groups] == [0.1, alone]
    stage.searcher._press(0.2)
    assert [group["penalty"] for group in groups] == [0.2, 2 * alone]


def test_a_budget_on_parameters_leads_by_parameters(data):
    by_macs = run(data, budget=Budget(macs="1M"))
    by_params = run(data, budget=Budget(params="1k"))
    bare = replace(
        by_macs.supernet,
        blocks=tuple(g.prune([False] * len(g.live)) for g in by_macs.supernet.blocks),
    )
    fixed, full, found = (
        architecture_cost(net).params for net in (bare, by_params.supernet, by_params.architecture)
    )
    assert 0.2 < (found - fixed) / (full - fixed) < 0.7


def test_no_pretraining_and_no_split(data):
    journal = Journal()
    result = run(data, pretrain=PretrainConfig(epochs=0), factor_split=0.0, journal=journal)
    assert [row["stage"] for row in journal.rows] == ["search"] * 3
    assert result.architecture.num_live < result.supernet.num_live


def test_the_space_of_the_supernet_overrides_that_of_the_config(data):
    space = replace(SPACE, sharing="full")
    config = replace(CONFIG, epochs=1, space="share")
    assert len(search(space, data, pretrain=PRETRAIN, config=config).factors) == 2


def test_images_that_are_not_finite_end_the_search_and_save_nothing(data):
    saved = []
    broken = replace(data, mean=(float("nan"),))
    with pytest.raises(DivergedError, match=r"--pretrain\.lr") as caught:
        run(broken, journal=Journal(save=saved.append))
    assert caught.value.stage == "pretrain"
    with pytest.raises(DivergedError, match=r"--search\.lr"):
        run(broken, pretrain=PretrainConfig(epochs=0), journal=Journal(save=saved.append))
    assert saved == []


@pytest.mark.parametrize("ratio", range(1, 6))
def test_alternation(ratio: int):
    for weights in range(0, 30, 3):
        for factors in range(0, 12, 2):
            kinds = alternation(weights, factors, ratio)
            used = kinds.count("weights"), kinds.count("factors")
            assert used[0] <= weights
            assert used[1] <= factors
            group = ["weights"] * ratio + ["factors"]
            whole = (group * (len(kinds) // len(group) + 2))[: len(kinds) + 1]
            assert kinds == whole[:-1]
            assert used[whole[-1] == "factors"] == (weights, factors)[whole[-1] == "factors"]


def test_weight_decay_spares_biases_and_gammas():
    network = Network(SPACE.complete(), scaled=True)
    decayed, spared = sgd(network.weights(), 0.1, 1e-3, 0.9).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    together = {id(p) for p in decayed["params"] + spared["params"]}
    assert together == {id(p) for p in network.weights()}
    assert not together & {id(p) for p in network.scaling.parameters()}
