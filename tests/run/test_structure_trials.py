"""Trials at the end of a search: at the budget, interrupted or not; none without a budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsonas.cost.budgets import Budget
from dsonas.cost.costs import architecture_cost
from dsonas.data import DataConfig
from dsonas.run.console import Reporter
from dsonas.run.pipeline import Job
from dsonas.run.run_config import NetworkConfig, RunConfig
from dsonas.run.runs import RunFolder, load_chain
from dsonas.run.trials import FILE
from dsonas.search.search_config import PretrainConfig, SearchConfig
from dsonas.train.engine import EngineConfig
from dsonas.train.loop import Interrupted
from dsonas.train.training import TrainConfig

CONFIG = RunConfig(
    data=DataConfig(name="digits", max_train_images=120, max_test_images=20),
    network=NetworkConfig(levels=2, blocks=(1, 1), channels=4),
    pretrain=PretrainConfig(epochs=0),
    search=SearchConfig(epochs=2, batch_size=16, structure=0.2, trials=4),
    train=TrainConfig(epochs=1, batch_size=16),
    engine=EngineConfig(threads=1),
    budget=Budget(macs="20k"),
)


class Silent(Reporter):
    def step(self, stage, epoch, batch, row):
        pass

    def say(self, text: str) -> None:
        pass


def job(folder: Path, config: RunConfig = CONFIG, stop=lambda: False) -> Job:
    return Job(config, RunFolder(folder), Silent(), stop)


def test_the_chosen_structure_meets_the_budget_and_ends_the_chain(tmp_path):
    found = job(tmp_path).search()
    chain = load_chain(tmp_path / "chain.json")
    costs = [architecture_cost(member).macs for member in chain]
    assert costs == sorted(costs, reverse=True)
    assert 0.9 * 20000 < architecture_cost(found).macs <= 20000
    assert len(json.loads((tmp_path / FILE).read_text())["losses"]) == 4


def test_the_search_ends_with_the_structure_that_the_trials_measured(tmp_path):
    coarse = replace(CONFIG.network, channel_multiple=4)  # of the chain another would use more
    config = replace(CONFIG, network=coarse, budget=Budget(macs="24k"))
    found = job(tmp_path, config).search()
    assert found.blocks == load_chain(tmp_path / "chain.json")[-1].blocks


def test_an_interrupted_search_goes_on_behind_the_last_trial(tmp_path):
    whole = job(tmp_path / "whole").search()
    folder = tmp_path / "cut"

    def stop() -> bool:  # in the third trial
        path = folder / FILE
        return path.exists() and len(json.loads(path.read_text())["losses"]) == 2

    with pytest.raises(Interrupted):
        job(folder, stop=stop).search()
    assert job(folder).search() == whole
    held = [json.loads((tmp_path / name / FILE).read_text()) for name in ("whole", "cut")]
    assert held[0]["losses"] == held[1]["losses"]
    assert all(one["seconds"] > 0 for one in held)


@pytest.mark.parametrize(
    "other", [{"budget": Budget(macs="40k")}, {"train": replace(CONFIG.train, lr=0.01)}]
)
def test_losses_of_another_budget_or_other_trainings_are_not_taken_over(tmp_path, other):
    job(tmp_path).search()
    before = json.loads((tmp_path / FILE).read_text())["losses"]
    (tmp_path / "architecture.json").unlink()
    again = job(tmp_path, replace(CONFIG, **other)).search()
    after = json.loads((tmp_path / FILE).read_text())["losses"]
    assert len(after) == len(before)
    assert set(after).isdisjoint(before)
    assert again == job(tmp_path / "fresh", replace(CONFIG, **other)).search()


def test_the_time_of_trials_is_time_of_the_search(tmp_path):
    one = job(tmp_path)
    one.search()
    spent = json.loads((tmp_path / FILE).read_text())["seconds"]
    steps = sum(row["seconds"] for row in one.journal.rows if row["stage"] == "search")
    assert one.journal.seconds["search"] >= spent + 0.5 * steps


@pytest.mark.parametrize("left_out", ["budget", "trials"])
def test_without_a_budget_or_trials_the_plan_decides(tmp_path, left_out: str):
    search = replace(CONFIG.search, trials=0) if left_out == "trials" else CONFIG.search
    budget = Budget() if left_out == "budget" else CONFIG.budget
    job(tmp_path, replace(CONFIG, search=search, budget=budget)).search()
    assert not (tmp_path / FILE).exists()
