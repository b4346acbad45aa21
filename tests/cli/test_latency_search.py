"""A search led by milliseconds: parts are timed once, and an interrupted search goes on by them."""

import json

from dsonas import pipeline
from dsonas.costs import architecture_cost
from dsonas.interrupts import StopSignal
from dsonas.latency import LatencyMeter
from dsonas.latency_table import measure_table

OPTIONS = ["--budget.latency_ms", 1, "--search.penalty_kind", "adaptive_latency"]
IN_SECOND_EPOCH = 25  # stop is asked for after each step: 6 of pretraining, 12 for each epoch


def test_an_interrupted_search_goes_on_by_the_table_it_measured(
    dsonas, tiny, tmp_path, monkeypatch
):
    measured = []

    def measure(*arguments, **options):
        measured.append(arguments)
        return dict.fromkeys(measure_table(*arguments, **options, rounds=1), 1.0)

    def whole_network(self, architecture):
        return architecture_cost(architecture).macs / 1e5

    monkeypatch.setattr(pipeline, "measure_table", measure)
    monkeypatch.setattr(LatencyMeter, "_measure", whole_network)
    whole, run, calls = tmp_path / "whole", tmp_path / "run", iter(range(1000))
    assert dsonas("search", *tiny, *OPTIONS, "--out", whole).code == 0
    command = ["search", *tiny, *OPTIONS, "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__call__", lambda self: next(calls) == IN_SECOND_EPOCH)
        assert dsonas(*command).code == 130
    ended = dsonas(*command)
    assert (ended.code, "resuming search" in ended.out) == (0, True)
    assert len(measured) == 2  # once for each search
    chains = [json.loads((folder / "chain.json").read_text()) for folder in (whole, run)]
    assert chains[0] == chains[1]
    assert len(chains[0]) > 2
