"""From results to JSON, table and picture: the contract, and no number from nowhere."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from dsonas.commands.comparison.jobs import Unit, read_json, result_file, to_json
from dsonas.commands.comparison.results import (
    comparison,
    cost,
    hardware,
    markdown,
    rank_correlation,
    svg,
    welch_p,
)
from dsonas.commands.comparison.single_job import begin, read_task, write_given
from dsonas.commands.comparison.study import Study
from dsonas.cost.budgets import Budget
from dsonas.run.runs import RunError

CONTRACT = {"macs", "space", "relative_error_reduction", "p_value", "searched", "random",
            "random_factors", "random_search", "hand_made"}  # fmt: skip
BASE = {"searched": 8.0, "random": 10.0, "random_factors": 9.5, "random_search": 9.0,
        "hand_made": 11.0}  # fmt: skip


def fake_result(unit: Unit, number: int) -> dict:
    """An error that depends on method, budget and job, so that mixing any of them up shows."""
    value = {**asdict(unit), "work": unit.work, "core_seconds": 2.0}
    noise = 0.1 * ((7 * number) % 5)
    if unit.kind == "train":
        error = BASE[unit.method] - (unit.budget or 0) + noise
        value |= {"test_error": error, "macs": 29_000, "params": 500, "channels": [4, 8]}
    if unit.kind == "trial":
        value |= {"validation_error": 20 + noise, "loss": 1.0, "macs": 29_000}
    if unit.kind == "search":
        value |= {"live_connections": 9, "structure_share": 0.3}
    if unit.kind == "rank":
        value |= {"errors": {f"{unit.subject}-{i:03}": 30.0 - i for i in range(5)}}
    return value


class Filled(NamedTuple):
    """A study whose jobs are done."""

    study: Study
    path: Path

    @property
    def units(self) -> list[Unit]:
        return self.study.units

    def compared(self, **failed: str) -> dict:
        return comparison(self.study, self.path, failed)


@pytest.fixture
def filled(study, tmp_path):
    made = study(random=5, seeds=3, hand_made=3)
    for number, unit in enumerate(made.units):
        path = result_file(tmp_path, unit.name)
        path.parent.mkdir(parents=True)
        path.write_bytes(to_json(fake_result(unit, number)))
    return Filled(made, tmp_path)


def test_the_contract_and_the_numbers_behind_it(filled):
    value = json.loads(to_json(filled.compared()))
    assert value["complete"]
    places = [(entry["macs"], entry["space"]) for entry in value["budgets"]]
    assert places == [(3e4, "share"), (3e4, "full"), (6e4, "share"), (6e4, "full")]
    for entry in value["budgets"]:
        assert entry.keys() >= CONTRACT
        assert [len(entry[m]) for m in BASE] == [3 * 2, 5, 2, 1 * 2, 2 * 3]
        lower = 1 if entry["macs"] == 6e4 else 0
        for method, base in BASE.items():
            assert all(0 <= error - (base - lower) < 0.5 for error in entry[method])
        searched = [sum(entry["searched"][i : i + 2]) / 2 for i in (0, 2, 4)]
        mean = sum(searched) / 3
        assert entry["summary"]["searched"]["mean"] == pytest.approx(mean)
        other = sum(entry["random"]) / 5
        assert entry["relative_error_reduction"] == pytest.approx(1 - mean / other)
        assert entry["p_value"] == pytest.approx(welch_p(searched, entry["random"]))
        assert set(entry["against"]) == {"random", "random_factors", "random_search",
                                         "hand_made_residual", "hand_made_mobile"}  # fmt: skip
        tau = rank_correlation([30.0 - i for i in range(5)], entry["random"])
        assert tau is not None
        assert entry["kendall_tau"]["tau"] == pytest.approx(tau["tau"])
    assert len(value["networks"]) == sum(unit.kind == "train" for unit in filled.units)


def test_results_keep_their_budget_when_the_list_changes(filled, study):
    made = study(random=5, seeds=3, hand_made=3, budgets=(Budget(macs="60k"), Budget(macs="30k")))
    value = comparison(made, filled.path, {})
    assert value["complete"]
    for entry in value["budgets"]:
        lower = 1 if entry["macs"] == 6e4 else 0
        assert all(0 <= e - (BASE["random"] - lower) < 0.5 for e in entry["random"])


def test_the_cost_is_the_sum_of_its_parts(filled):
    value = filled.compared()["cost"]
    assert value["core_hours"] == pytest.approx(2 * len(filled.units) / 3600, abs=1e-3)
    assert sum(s["candidates"] for s in value["random_search"].values()) == sum(
        unit.kind == "trial" for unit in filled.units
    )
    for name, search in value["random_search"].items():
        counted = value["search"][name.split("-")[2]]["counted_macs"]
        assert search["counted_macs"] >= counted
    assert cost([], {"share": 7})["search"] == {"share": {"counted_macs": 7, "core_seconds": []}}


@pytest.mark.parametrize("content", ["{}", "[]", '{"name": "search-share-1"}', '{"na'])
def test_a_damaged_result_is_named(filled, content):
    file = result_file(filled.path, "search-share-0")
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} is damaged: delete it")):
        filled.compared()


def test_a_study_that_is_not_complete_says_so(filled):
    for unit in filled.units:
        if unit.kind == "rank" or unit.method == "random_search":
            result_file(filled.path, unit.name).unlink()
    value = filled.compared(**{"rank-full-5": "exit code 1"})
    assert not value["complete"]
    assert value["budgets"][0]["random_search"] == []
    assert "random_search" not in value["budgets"][0]["against"]
    assert value["budgets"][0]["kendall_tau"]["tau"] is None
    page = markdown(value)
    assert "Not complete" in page
    assert "rank-full-5: exit code 1" in page
    ElementTree.fromstring(svg(value))


def test_networks_that_may_not_be_wider_are_counted(filled):
    assert "as wide as may be" not in markdown(filled.compared())
    for unit in [unit for unit in filled.units if unit.kind == "train"][:3]:
        file = result_file(filled.path, unit.name)
        file.write_bytes(to_json({**json.loads(file.read_text()), "channels": [16, 32]}))
    value = filled.compared()
    assert value["widest"] == 3
    page = markdown(value)
    assert f"- 3 of {len(value['networks'])} networks are as wide as may be" in page


def test_a_study_without_any_result_is_no_error(study, tmp_path):
    made = study()
    value = comparison(made, tmp_path, {})
    assert value["budgets"][0]["p_value"] is None
    ElementTree.fromstring(svg(value))
    assert "Not complete" in markdown(value)


def test_the_table_shows_what_the_json_holds(filled):
    value = filled.compared()
    rows = [line for line in markdown(value).splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4 * 6
    summary = value["budgets"][0]["summary"]["searched"]
    assert f"{summary['mean']:.2f} ± {summary['std']:.2f}" in rows[1]
    reduction = value["budgets"][0]["relative_error_reduction"]
    assert f"{100 * reduction:.1f} %" in rows[2]
    assert f"{value['cost']['core_hours']:.2f} core-hours" in markdown(value)


def test_the_picture_has_a_dot_for_each_training(filled):
    value = filled.compared()
    root = ElementTree.fromstring(svg(value))
    shown = sum(len(entry[method]) for entry in value["budgets"] for method in BASE)
    name = "{http://www.w3.org/2000/svg}"
    legend = 6
    circles = list(root.iter(f"{name}circle"))
    assert len(circles) == shown + legend
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    texts = [element.text for element in root.iter(f"{name}text")]
    assert {"share space", "full space", "30 k", "60 k", "searched"} <= set(texts)


def test_a_budget_of_parameters_is_shown_as_one(filled):
    """Its networks have different numbers of multiply-adds, so none of these stands for all."""
    value = filled.compared()
    for entry in value["budgets"]:
        entry["bounds"] = {"params": 2000.0}
    page = markdown(value)
    assert "| space | parameters | networks |" in page
    assert "| share | 2 k | searched |" in page
    root = ElementTree.fromstring(svg(value))
    assert {"parameters →", "2 k"} <= {part.text for part in root.iter()}


def test_bars_of_the_picture_are_two_standard_deviations_long_and_not_cut_off(filled):
    value = filled.compared()
    value["budgets"][0]["summary"]["random"]["std"] = 40.0
    paths = (path.get("d", "") for path in ElementTree.fromstring(svg(value)).iter())
    ends = [[float(x) for x in re.findall(r"[\d.]+", path)] for path in paths]
    bars = sorted(abs(p[3] - p[1]) for p in ends if len(p) == 4 and p[0] == p[2] and p[1] != p[3])
    wanted = sorted(found["std"] for entry in value["budgets"]
                    for found in entry["summary"].values() if found["std"])  # fmt: skip
    assert len(bars) == len(wanted)
    assert [bar / bars[-1] for bar in bars] == pytest.approx([x / 40 for x in wanted], abs=1e-3)


def test_the_winner_of_a_random_search_is_chosen_by_held_out_images(filled):
    """The lowest held-out error; the test error of a trial is not even known."""
    study, path = filled.study, filled.path
    begin(path, study, "seed: 0\n")
    task = read_task(path, "train-random-search-share-0-30k-at-30k-0")
    trials = [read_json(result_file(path, name)) for name in task["needs"]]
    assert not any("test_error" in trial for trial in trials)
    best = min(trials, key=lambda trial: trial["validation_error"])["subject"]
    write_given(path, task, study.config.run)
    kept = (path / "architectures" / f"{task['subject']}.json").read_text()
    assert kept == (path / "architectures" / f"{best}.json").read_text()
    budget = study.config.budgets[0]
    fitted = study.fit(study.candidates("share", 0, budget)[int(best[-3:])], budget)
    given = result_file(path, task["name"]).with_name("given.json")
    assert given.read_text() == fitted.to_json()


def test_other_random_architectures_are_refused(filled):
    begin(filled.path, filled.study, "seed: 0\n")
    other = filled.path / "architectures" / "random-share-000.json"
    other.write_text((filled.path / "architectures" / "random-share-001.json").read_text())
    with pytest.raises(RunError, match="not what this study would draw"):
        begin(filled.path, filled.study, "seed: 0\n")


def test_the_hardware_has_no_name_of_the_machine():
    import platform

    assert hardware()["cores"] >= 1
    assert platform.node() not in json.dumps(hardware()).split('"')
