"""The benchmark harness: what it reports, at a size that takes seconds."""

import json

import pytest
import torch

from dsonas.commands.cli import main as dsonas
from dsonas.cost.costs import architecture_cost
from dsonas.train.engine import Engine, EngineConfig
from step import BENCHES, main
from stepper import BenchConfig, Stepper, time_in_turn

pytestmark = pytest.mark.slow

TINY = BenchConfig(levels=2, blocks=(1, 1), channels=4, batch_size=4, image_size=8, repeats=2)
HOSTS = ("", "_buffer", "_recompute", "_plain", "_frozen")


def test_variants_are_called_in_turn_and_the_first_round_is_not_counted():
    calls = []
    times = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert all(value["median"] >= 0 for value in times.values())


def test_bench_step_reports_the_contract():
    measured = BENCHES["step"](TINY)
    wanted = {"images_per_second", "speedup_vs_reference", "memory_vs_reference"}
    wanted |= {"lambda_vs_weight_step", "device", "cpu", "threads", "roofline"}
    wanted |= {f"host_ms_{kind}_step{path}" for kind in ("weight", "factor") for path in HOSTS}
    assert wanted <= set(measured)
    json.dumps(measured)
    for shares in measured["components"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert measured["images_per_second"] == pytest.approx(
        TINY.batch_size / measured["seconds"]["fused_weight"]["median"]
    )


def test_a_whole_search_is_timed():
    measured = BENCHES["search"](TINY)
    assert measured["seconds_search"] > 0
    assert measured["live_connections"] > 0


def test_the_last_line_is_one_json_object(capsys):
    options = "--levels 2 --blocks [1,1] --channels 4 --batch_size 4 --image_size 8 --repeats 1"
    main(["sparse", *options.split(), "--engine.threads", "1", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["threads"] == 1


def test_sparse_steps_and_growth_report_every_point():
    rows = BENCHES["sparse"](TINY)["rows"]
    assert [row["share"] <= share for row, share in zip(rows, (1, 0.5, 0.25, 0.1), strict=True)]
    growth = BENCHES["growth"](TINY)
    assert sorted(growth["seconds_by_levels"]) == [2, 3, 4, 5, 6]
    assert growth["batch_exponent"] == growth["batch_exponent"]
    json.dumps(growth)


@pytest.mark.parametrize("kind", ["levels", "buffer", "recompute", "frozen", "plain"])
def test_every_kind_takes_the_same_steps(kind: str):
    steppers = [Stepper(TINY.complete(), TINY, Engine(EngineConfig()), k) for k in ("fused", kind)]
    for stepper in steppers:
        stepper.weight()
        stepper.factor()
    one, two = (dict(stepper.network.named_parameters()) for stepper in steppers)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        Stepper(TINY.complete(), TINY, Engine(EngineConfig()), "fast")


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_sparse_supernet_keeps_to_its_share(share: float):
    wide = BenchConfig()
    cost = architecture_cost(wide.sparse(share)).macs / architecture_cost(wide.complete()).macs
    assert 0.5 * share < cost <= share


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "step", "--json"]])
def test_the_former_command_says_where_it_is_now(arguments, capsys):
    assert dsonas(arguments) == 2
    said = capsys.readouterr().err
    assert "python benchmarks/step.py" in said
    assert said.count("\n") == 1
