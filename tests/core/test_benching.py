"""The benchmark harness: what it reports, at a size that takes seconds."""

import json

import pytest

from dsonas.benching import BenchConfig, bench_search, bench_step, time_in_turn
from dsonas.cli import main

TINY = BenchConfig(levels=2, blocks=(1, 1), channels=4, batch_size=4, image_size=8, repeats=2)


def test_variants_are_called_in_turn_and_the_first_round_is_not_counted():
    calls = []
    times = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert all(value["median"] >= 0 for value in times.values())


def test_bench_step_reports_the_contract():
    measured = bench_step(TINY)
    wanted = {"images_per_second", "speedup_vs_reference", "memory_vs_reference"}
    wanted |= {"lambda_vs_weight_step", "device", "threads", "roofline"}
    assert wanted <= set(measured)
    json.dumps(measured)
    assert measured["images_per_second"] == pytest.approx(
        TINY.batch_size / measured["seconds"]["fused_weight"]["median"]
    )


def test_a_search_ends_in_the_same_architecture_with_and_without_shrinking():
    measured = bench_search(TINY)
    assert measured["same_architecture"]
    assert measured["seconds_shrinking"] > 0


def test_the_command_prints_one_json_object(capsys):
    options = "--levels 2 --channels 4 --batch_size 4 --image_size 8 --repeats 1 --json"
    assert main(["bench", "step", *options.split()]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["threads"] >= 1


@pytest.mark.parametrize("arguments", [["bench", "nothing"], ["bench", "step", "--levels", "0"]])
def test_bad_arguments_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
