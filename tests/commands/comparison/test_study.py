"""What a study consists of: the same list every time, and nothing twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from dsonas._utils import write_atomically
from dsonas.commands.comparison.single_job import write_given
from dsonas.commands.comparison.study import Study, budget_label, training_work
from dsonas.cost.budgets import Budget, InfeasibleBudgetError, fit_width
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture
from dsonas.run.run_config import RunConfig, part_sizes
from dsonas.run.runs import RunFolder
from dsonas.search.baselines import HAND_MADE
from dsonas.search.stages import alternation


def kinds(study: Study) -> dict[str, int]:
    units = study.units
    return {kind: sum(u.kind == kind for u in units) for kind in ("search", "train", "rank")}


def test_the_jobs_are_those_of_the_protocol(study):
    """2 spaces, 2 budgets: 4 places; hand-made networks are shared by the spaces."""
    counts = kinds(study(train_seeds=2, random=3, random_searches=1))
    assert counts == {
        "search": 2 * 2,
        "train": 4 * 2 * 2 + 4 * 3 + 4 * 2 + 4 * 1 * 2 + 2 * 2 * 2,
        "rank": 2,
    }
    assert kinds(study(random=2, random_searches=0))["rank"] == 0


def test_the_list_is_deterministic_and_its_names_are_unique(study):
    first, second = study().units, study().units
    assert first == second
    assert [unit.work for unit in first] == [unit.work for unit in second]
    assert len({unit.name for unit in first}) == len(first)
    assert study().known == study().known
    assert len(study().known) == 2 + 2 * (3 + 2) + sum(unit.kind == "trial" for unit in first)


def test_a_study_that_is_stopped_half_way_has_some_of_each_kind(study):
    trainings = [unit for unit in study(random_searches=0).units if unit.kind == "train"]
    kinds = {(unit.method, unit.space, unit.budget) for unit in trainings}
    begun = [(unit.method, unit.space, unit.budget) for unit in trainings[: len(kinds)]]
    assert sorted(begun) == sorted(kinds)


def test_every_job_needs_jobs_of_the_list_that_stand_before_it(study):
    seen = set()
    for unit in study().units:
        assert set(unit.needs) <= seen
        assert unit.work > 0
        seen.add(unit.name)


def test_a_larger_study_holds_the_smaller_one(study):
    small = study(seeds=1, train_seeds=1, random=3, spaces=("share",), budgets=(Budget(macs=3e4),))
    large = study(seeds=3, train_seeds=2, random=3).units
    assert set(small.units) <= set(large)
    assert small.known.items() <= study(random=5).known.items()


def test_seeds_of_trainings_differ(study):
    seeds = [unit.seed for unit in study().units if unit.kind in ("train", "trial")]
    assert len(set(seeds)) == len(seeds)


def test_another_seed_draws_other_architectures(study, run_config):
    before, after = study(), study(run=replace(run_config, seed=1))
    assert before.random("full") != after.random("full")
    kinds = [f"hand-made-{kind}" for kind in HAND_MADE]
    assert [before.known[kind] for kind in kinds] == [after.known[kind] for kind in kinds]


def test_a_random_search_costs_what_a_search_costs(study):
    """At least as much, and more by less than one trial."""
    made = study(trial_epochs=1)
    for space in made.spaces:
        for budget in made.config.budgets:
            trials = [made.trial_work(c, budget) for c in made.candidates(space, 0, budget)]
            assert sum(trials) >= made.search_work(space)
            assert len(trials) == 2 or sum(trials[:-1]) < made.search_work(space)


def test_networks_of_random_factors_are_as_sparse_as_the_plan_and_differ(study):
    made = study(random_factors=4)
    for space in ("share", "full"):
        found = made.random_factors(space)
        assert found == made.random_factors(space)
        assert found[:2] == study(random_factors=2).random_factors(space)
        assert len(set(found)) > 1
    without = replace(made.config.run, search=replace(made.config.run.search, keep_cost=None))
    assert study(run=without).random_factors("share") == []


def test_networks_that_meet_the_budget_at_no_width_are_drawn_anew(study, run_config):
    """The fit would have taken operations from them, down to what meets it."""
    network = replace(run_config.network, channel_multiple=4)
    budget = Budget(macs="12k")
    tight = study(run=replace(run_config, network=network), budgets=(budget,), random=8)
    with pytest.raises(InfeasibleBudgetError):
        fit_width(tight.spaces["share"].complete(), budget, multiple=4)
    for drawn in (*tight.random("share"), *tight.random_factors("share")):
        fit_width(drawn, budget, multiple=4)


def test_a_hand_made_network_that_meets_a_budget_at_no_width_is_left_out_there(study, run_config):
    network = replace(run_config.network, channel_multiple=8)
    budgets = Budget(macs="60k"), Budget(macs="200k")
    made = study(run=replace(run_config, network=network), budgets=budgets, random=0)
    trained = {(u.subject, u.budget) for u in made.units if u.method == "hand_made"}
    assert trained == {("hand-made-residual", 0), *((f"hand-made-{k}", 1) for k in HAND_MADE)}


def test_candidates_are_not_those_of_the_random_baseline(study):
    made = study()
    first, second = (made.candidates("full", i, made.config.budgets[0]) for i in (0, 1))
    assert first[:2] != second[:2]
    assert first[:2] != made.random("full")[:2]


def test_all_are_fitted_to_the_budget_alike(study, tmp_path):
    made, budget = study(), Budget(macs="60k")
    for name, architecture in made.known.items():
        fitted = made.fit(architecture, budget)
        assert 45_000 < architecture_cost(fitted).macs <= 60_000
        assert given(made, tmp_path, name, architecture.to_json(), budget) == fitted


def given(made: Study, path: Path, name: str, chain: str, budget: Budget) -> Architecture:
    """What the job that trains an architecture at a budget makes of its file."""
    write_atomically(path / "architectures" / f"{name}.json", chain.encode())
    task = {"name": "a", "kind": "train", "method": "", "subject": name, "bounds": budget.bounds}
    write_given(path, task, made.config.run)
    return Architecture.load(path / "jobs" / "a" / "given.json")


def test_work_of_a_search_without_a_plan_is_that_of_the_supernet(study, run_config: RunConfig):
    dense = replace(run_config, search=replace(run_config.search, keep_cost=None))
    weights, factors = part_sizes(dense, 200)
    images = 2 * 96 + 4 * 16 * len(alternation(weights // 16, factors // 16, 1))
    macs = architecture_cost(study().spaces["share"].complete()).macs
    assert study(run=dense).search_work("share") == 3 * images * macs
    assert study().search_work("share") < 3 * images * macs


def test_work_follows_the_plan_and_so_the_log_of_a_search(study, run_config, digits, tmp_path):
    """What a real search logged costs no more than what is counted, and not much less."""
    from dsonas.run.console import Reporter
    from dsonas.run.pipeline import Job

    job = Job(replace(run_config, budget=Budget(macs="30k")), RunFolder(tmp_path), Reporter())
    job.search()
    macs = [row["macs"] for row in job.journal.rows if row["stage"] == "search"]
    supernet = architecture_cost(study().spaces["share"].complete()).macs
    steps = 16 * len(alternation(6, 6, 1))
    real = 3 * (2 * 96 * supernet + sum(steps * m for m in [supernet, *macs[:-1]]))
    counted = study().search_work("share")
    assert 0.85 * counted < real <= counted
    found = Architecture.load(tmp_path / "architecture.json")
    chain = (tmp_path / "chain.json").read_text()
    assert given(study(), tmp_path / "study", "searched", chain, Budget(macs="30k")) == found


def test_a_budget_that_no_network_uses_up_is_not_counted(study):
    made = study(budgets=(Budget(macs=1e12),))
    most = architecture_cost(made.widest).macs
    assert most < 1e9
    assert made.full_work(Budget(macs=1e12)) == training_work(most, 2, 200, 16, 50)


def test_a_trial_counts_the_batches_that_it_takes(study, run_config):
    """Of 180 images, 20 being held out, batches of 100 are lowered to 32."""
    run = replace(run_config, train=replace(run_config.train, batch_size=100))
    made, budget = study(run=run), Budget(macs="30k")
    net = made.random("share")[0]
    macs = architecture_cost(made.fit(net, budget)).macs
    assert made.trial_work(net, budget) == training_work(macs, 1, 180, 32, 20)


def test_training_work_counts_whole_batches():
    assert training_work(10, 3, 100, 32, 50) == 10 * (3 * 3 * 96 + 50)


def test_budgets_have_short_labels():
    assert budget_label(Budget(macs=1e6)) == "1M"
    assert budget_label(Budget(macs=1_250_000, memory_bytes=2e9)) == "1.25M-2G-memory_bytes"
    assert budget_label(Budget(params=999)) == "999-params"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"random": -1}, "random must be at least 0"),
        ({"trial_epochs": 0}, "trial_epochs must be at least 1"),
        ({"held_out": 1.0}, "held_out must be above 0"),
        ({"held_out": 0.001}, "held_out must leave images .* is 0 of 200 training images"),
        ({"held_out": 0.999}, "held_out must leave images .* is 200 of 200 training images"),
        ({"spaces": ("half",)}, "spaces must be names out of"),
        ({"spaces": ("share", "share")}, "spaces must not repeat a value, got share,share"),
        ({"budgets": (Budget(macs=2e4), Budget(macs="20k"))}, "must not repeat .*, got 20k,20k"),
        ({"budgets": ()}, "budgets must be given"),
        ({"budgets": (Budget(),)}, "budgets must be given"),
        ({"budgets": (Budget(latency_ms=1),)}, "latency_ms must be left out"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(study, changes, words):
    with pytest.raises(ValueError, match=words):
        study(**changes)


def test_no_network_of_a_study_is_wider_than_growth_allows(study, tmp_path):
    made, budget = study(budgets=(Budget(macs="1G"),)), Budget(macs="1G")
    for name, architecture in made.known.items():
        assert made.fit(architecture, budget).skeleton.channels == (16, 32)
        given_now = given(made, tmp_path, name, architecture.to_json(), budget)
        assert given_now.skeleton.channels == (16, 32)
