"""A search led by milliseconds: by parts that are timed once, or by the table of another device."""

import json

import pytest

from dsonas.cost.costs import architecture_cost
from dsonas.cost.latency import LatencyMeter, measure_table
from dsonas.cost.latency_table import latency_from_table
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.run import fitting
from dsonas.run.interrupts import StopSignal

pytestmark = pytest.mark.slow

OPTIONS = [
    "--budget.latency_ms",
    1,
    "--search.penalty_kind",
    "adaptive_latency",
]
IN_SECOND_EPOCH = 25  # stop is asked for after each step: 6 of pretraining, 12 for each epoch


def test_an_interrupted_search_goes_on_by_the_table_it_measured(
    dsonas, tiny, tmp_path, monkeypatch
):
    measured = []

    def measure(*arguments, **options):
        measured.append(options)
        return dict.fromkeys(measure_table(*arguments, rounds=1), 1.0)

    def whole_network(self, architecture):
        return architecture_cost(architecture).macs / 1e5

    monkeypatch.setattr(fitting, "measure_table", measure)
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


def test_a_table_of_another_device_leads_the_search_and_the_width(dsonas, tiny, tmp_path):
    table, run = tmp_path / "phone.json", tmp_path / "run"
    measured = dsonas("latency", *tiny, "--widths", "0.5,1,8", "--table", table)
    assert (measured.code, measured.err) == (0, "")
    assert "channels  supernet" in measured.out
    many = tmp_path / "many.json"
    options = ["--latency_batch", 64, "--widths", "1"]
    assert dsonas("latency", *tiny, *options, "--table", many).code == 0
    both = json.loads(table.read_text()), json.loads(many.read_text())
    assert sum(both[1].values()) > sum(both[0][key] for key in both[1])
    slow = {key: 1000 * value for key, value in json.loads(table.read_text()).items()}
    table.write_text(json.dumps(slow))
    skeleton = Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(4, 8))
    supernet = SearchSpace(skeleton=skeleton, num_levels=2).complete()
    budget = 0.5 * latency_from_table(slow)(supernet)
    options = ["--budget.latency_ms", budget, "--engine.latency_table", table]
    assert dsonas("run", *tiny, *options, "--out", run).code == 0
    found = Architecture.from_json((run / "architecture.json").read_text())
    latency = json.loads((run / "metrics.json").read_text())["latency_ms"]
    assert latency == pytest.approx(latency_from_table(slow)(found), abs=1e-3)
    assert 10 < latency <= budget  # thousand times this machine's


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{}", "JSON object"),
        ('{"base": 1, "separable_conv3x3@2x8": 1}', "phone.json: latency table must have an entry"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(
    dsonas, tiny, tmp_path, content, message
):
    table = tmp_path / "phone.json"
    if content:
        table.write_text(content)
    options = ["--budget.latency_ms", 5, "--engine.latency_table", table]
    ended = dsonas("search", *tiny, *options, "--out", tmp_path / "run")
    assert (ended.code, message in ended.err, ended.err.count("\n")) == (2, True, 1)


def test_a_table_that_ends_below_the_supernet_is_refused(dsonas, tiny, tmp_path):
    table = tmp_path / "phone.json"
    assert dsonas("latency", *tiny, "--widths", "0.5,1", "--table", table).code == 0
    options = ["--budget.latency_ms", 5, "--engine.latency_table", table]
    wide = ["--network.channels", 8]
    ended = dsonas("search", *tiny, *options, *wide, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "engine.latency_table must have milliseconds above 0 for 8-16 channels" in ended.err


@pytest.mark.parametrize("widths", ["2,1", "1,1", "0,1", "a", "2,3", ""])
def test_widths_that_make_no_sense_are_refused(dsonas, tiny, tmp_path, widths):
    ended = dsonas("latency", *tiny, "--widths", widths, "--table", tmp_path / "t.json")
    assert (ended.code, "widths must" in ended.err, ended.err.count("\n")) == (2, True, 1)


def test_a_network_wider_than_the_table_is_refused_before_it_is_trained(
    dsonas, tiny, finished, tmp_path
):
    table = tmp_path / "phone.json"
    assert dsonas("latency", *tiny, "--widths", "0.5,1", "--table", table).code == 0
    wide = json.loads((finished / "architecture.json").read_text())
    wide["skeleton"]["channels"] = [16, 32]
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    options = ["--budget.latency_ms", 5, "--engine.latency_table", table]
    path = tmp_path / "wide.json"
    ended = dsonas("train", *tiny, *options, "--architecture", path, "--out", tmp_path / "run")
    assert (ended.code, "16-32 channels" in ended.err) == (2, True)
    assert not (tmp_path / "run").exists()
