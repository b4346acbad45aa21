"""One search, several networks: resumed, read by the other commands, refused in one line."""

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture
from dsonas.run.runs import load_chain

pytestmark = pytest.mark.slow

BUDGET = ["--budget.macs", "12k", "--search.epochs", 4]


@pytest.fixture(scope="module")
def front(tmp_path_factory, tiny) -> Path:
    from dsonas.commands.cli import main

    out = tmp_path_factory.mktemp("front") / "run"
    command = ["run", *tiny, *map(str, BUDGET), "--pareto", "3", "--out", str(out)]
    assert main(command) == 0
    return out


def read(run: Path) -> dict:
    return json.loads((run / "pareto.json").read_text())


def test_every_network_is_a_run_folder_of_its_own(dsonas, front):
    value = read(front)
    assert [point["folder"] for point in value["points"]] == [".", "pareto/2", "pareto/3"]
    for point in value["points"]:
        folder = front / point["folder"]
        architecture = Architecture.load(folder / "architecture.json")
        assert architecture_cost(architecture).macs == point["macs"]
        assert list(architecture.skeleton.channels) == point["channels"]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["test_error"] == point["test_error"]
        ended = dsonas("evaluate", "--run", folder, "--json")
        assert json.loads(ended.out)["test_error"] == point["test_error"]


def test_costs_are_spread_evenly_from_the_budget_to_the_supernet(front):
    costs = [point["macs"] for point in read(front)["points"]]
    supernet = architecture_cost(load_chain(front / "chain.json")[0]).macs
    wanted = [12000, (12000 * supernet) ** 0.5, supernet]
    for cost, bound in zip(costs, wanted, strict=True):
        assert 0.97 * bound <= cost <= bound * (1 + 1e-9)


def test_the_chain_is_nested_from_the_supernet_to_the_structure_found(front):
    chain = load_chain(front / "chain.json")
    costs = [architecture_cost(member).macs for member in chain]
    assert len(chain) >= 3
    complete = Architecture.complete(chain[0].skeleton, chain[0].operations, 2, "share")
    assert chain[0] == complete
    for large, small in pairwise(chain):
        assert small != large
        assert all(
            b or not a
            for one, two in zip(small.blocks, large.blocks, strict=True)
            for a, b in zip(one.live, two.live, strict=True)
        )
    assert costs == sorted(costs, reverse=True)


def test_table_and_account(front):
    value = read(front)
    with open(front / "pareto.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in rows] == [point["macs"] for point in value["points"]]
    assert rows[0]["channels"] == "-".join(map(str, value["points"][0]["channels"]))
    assert any(point["on_front"] for point in value["points"])
    search = json.loads((front / "metrics.json").read_text())["search_seconds"]
    assert value["search_seconds"] == search
    assert value["separate_seconds"] - value["total_seconds"] == pytest.approx(2 * search, abs=0.01)
    assert (front / "pareto.svg").read_text().count("<circle") == 3


def test_a_finished_front_is_shown_again_and_trains_nothing(dsonas, tiny, front):
    files = [path for path in front.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    ended = dsonas("run", *tiny, *BUDGET, "--pareto", 3, "--out", front)
    assert (ended.code, ended.err) == (0, "")
    assert "3 train  " not in ended.out
    assert "with a search for each" in ended.out
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.parametrize("text", ["{", '{"networks": 1}', "[" * 100_000])
def test_a_damaged_plan_of_a_front_is_named(dsonas, tiny, front, tmp_path, text):
    run = shutil.copytree(front, tmp_path / "run")
    (run / "pareto" / "plan.json").write_text(text)
    ended = dsonas("run", *tiny, *BUDGET, "--pareto", 3, "--out", run)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{run}/pareto/plan.json is damaged: delete it" in ended.err
    (run / "pareto" / "plan.json").unlink()
    assert dsonas("run", *tiny, *BUDGET, "--pareto", 3, "--out", run).code == 0


def test_an_interrupted_front_goes_on_to_the_same_networks(
    dsonas, tiny, front, tmp_path, monkeypatch
):
    from dsonas.run.interrupts import StopSignal

    run, calls = shutil.copytree(front, tmp_path / "run"), iter(range(1000))
    for name in ("pareto.json", "pareto.csv", "pareto.svg"):
        (run / name).unlink()
    shutil.rmtree(run / "pareto")
    command = ["run", *tiny, *BUDGET, "--pareto", 3, "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda self: next(calls) == 30)
        ended = dsonas(*command)
    assert ended.code == 130
    assert "resume with: dsonas run" in ended.out
    ended = dsonas(*command)
    assert ended.code == 0
    assert "resuming train" in ended.out
    for place in ("pareto/2", "pareto/3"):
        one, two = (load_file(root / place / "network.safetensors") for root in (run, front))
        assert all(one[name].tobytes() == value.tobytes() for name, value in two.items())


def test_a_front_by_measured_latency_is_planned_once(dsonas, tiny, front, tmp_path, monkeypatch):
    """Latencies are never measured twice alike; the networks stay those of the first time."""
    from dsonas.cost.latency import LatencyMeter

    speed = iter(range(1, 1000))

    def measure(self, architecture):
        return architecture_cost(architecture).macs / 1e5 * (1 + next(speed) % 7 / 10)

    monkeypatch.setattr(LatencyMeter, "_measure", measure)
    command = ["run", *tiny, "--budget.latency_ms", 0.2, "--pareto", 3, "--out", tmp_path / "run"]
    assert dsonas(*command).code == 0
    first = read(tmp_path / "run")["points"]
    assert all(point["latency_ms"] > 0 for point in first)
    (tmp_path / "run" / "pareto.json").unlink()
    assert dsonas(*command).code == 0
    assert read(tmp_path / "run")["points"] == first


def test_a_front_can_be_asked_of_a_finished_run(dsonas, tiny, front, tmp_path):
    run = shutil.copytree(front, tmp_path / "run")
    shutil.rmtree(run / "pareto")
    ended = dsonas("run", *tiny, *BUDGET, "--pareto", 2, "--pareto_to", "24k", "--out", run)
    assert (ended.code, "2 search" in ended.out) == (0, False)
    costs = [point["macs"] for point in read(run)["points"]]
    assert len(costs) == 2
    assert 0.97 * 24000 <= costs[1] <= 24000


def test_without_a_budget_a_front_begins_with_the_network_found(dsonas, tiny, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert dsonas("run", *tiny, "--pareto", 2, "--out", run).code == 0
    first, last = read(run)["points"]
    assert first["macs"] == architecture_cost(Architecture.load(run / "architecture.json")).macs
    supernet = architecture_cost(load_chain(run / "chain.json")[0]).macs
    assert 0.97 * supernet <= last["macs"] <= supernet


def test_another_front_in_the_same_folder_is_refused(dsonas, tiny, front):
    ended = dsonas("run", *tiny, *BUDGET, "--pareto", 5, "--out", front)
    assert (ended.code, "not about this architecture" in ended.err) == (2, True)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pareto", 1], "pareto must be at least 2 networks, got 1"),
        (["--pareto", "x"], "pareto must be a whole number"),
        (["--pareto_to", "2M"], "needs --pareto K"),
        (["--pareto", 3, "--pareto_to", "much"], "pareto_to must be a positive number"),
        (["--pareto", 3, "--budget.macs", "9M"], "needs costs above the budget"),
        (["--pareto", 3, "--budget.macs", "20k", "--pareto_to", "10k"], "raise --pareto_to"),
    ],
)
def test_bad_fronts_are_refused_before_any_training(dsonas, tiny, tmp_path, options, words):
    ended = dsonas("run", *tiny, *options, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err
    assert not (tmp_path / "run").exists()


def test_another_budget_is_met_from_the_same_search(dsonas, tiny, front, tmp_path):
    """The finished run is not touched; the message of its refusal names the command."""
    ended = dsonas("run", *tiny, *BUDGET, "--budget.macs", "30k", "--out", front)
    assert ended.code == 2
    assert (
        f"dsonas train --config {front}/config.yaml --architecture {front}/chain.json" in ended.err
    )
    command = ["train", "--config", front / "config.yaml", "--architecture", front / "chain.json"]
    ended = dsonas(*command, "--budget.macs", "30k", "--out", tmp_path / "other")
    assert (ended.code, ended.err) == (0, "")
    assert "2 search" not in ended.out
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert 0.97 * 30000 <= metrics["macs"] <= 30000


def test_a_search_that_was_not_trained_serves_another_budget(dsonas, tiny, tmp_path):
    out = ["--out", tmp_path / "run"]
    for limit in (12000, 30000, 9000):
        ended = dsonas("search", *tiny, *BUDGET, "--budget.macs", limit, *out)
        assert ended.code == 0
        architecture = Architecture.load(tmp_path / "run" / "architecture.json")
        assert 0.97 * limit <= architecture_cost(architecture).macs <= limit


def test_a_folder_without_a_chain_says_so(dsonas, tiny, front, tmp_path):
    run = shutil.copytree(front, tmp_path / "run")
    (run / "chain.json").unlink()
    ended = dsonas("run", *tiny, *BUDGET, "--pareto", 4, "--out", run)
    assert (ended.code, "chain.json does not exist" in ended.err) == (2, True)


def test_the_options_of_a_front_are_no_settings(dsonas, tiny):
    printed = dsonas("run", *tiny, "--print_config").out
    assert "seed: 0" in printed
    assert "pareto" not in printed
