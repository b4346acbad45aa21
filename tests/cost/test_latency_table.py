"""Latency tables: sums, interpolation between channels, what a file may hold."""

import json
import math

import pytest

from dsonas.cost.budgets import Budget, exact_measures, fit_width
from dsonas.cost.latency import LatencyMeter, measure_table
from dsonas.cost.latency_table import latency_from_table, read_table
from dsonas.graph.spaces import cifar_space

OPERATIONS = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")


def table_of(*places: str, scale: float = 0.1) -> dict[str, float]:
    parts = (*OPERATIONS, "output")
    return {"base": 0.5, **{f"{part}@{place}": scale for part in parts for place in places}}


def test_a_table_is_added_up_and_a_gap_is_named():
    architecture = cifar_space(channels=4, blocks=(1, 1)).complete()
    latency = latency_from_table(table_of("4x32", "8x16"))
    assert latency(architecture) == pytest.approx(0.5 + 2 * 16 * 0.2)
    with pytest.raises(ValueError, match="@8x16"):
        latency_from_table(table_of("4x32"))(architecture)


def test_what_a_block_and_its_sums_take_counts_if_the_table_says_so():
    architecture = cifar_space(channels=4, blocks=(1,)).complete()
    plain = table_of("4x32")
    graph = architecture.blocks[0]
    extra = sum(len(graph.inputs[node]) - 1 for node in graph.kept_nodes)
    full = {**plain, "add@4x32": 0.01, "block@4x32": 0.5}
    difference = latency_from_table(full)(architecture) - latency_from_table(plain)(architecture)
    assert difference == pytest.approx(0.5 + 0.01 * extra)
    assert latency_from_table(full)(architecture.without_blocks()) == full["base"]


def test_between_two_widths_it_is_linear_and_never_below_what_is_known():
    architecture = cifar_space(channels=16, blocks=(1,)).complete()
    table = {**table_of("8x32", scale=0.1), **table_of("32x32", scale=0.4)}
    latency = latency_from_table(table)
    at = {c: latency(architecture.with_channels([c])) - 0.5 for c in (2, 8, 16, 20, 32, 33)}
    assert at[2] == at[8] == pytest.approx(32 * 0.1)
    assert at[16] == pytest.approx(32 * 0.2)
    assert at[20] == pytest.approx(32 * 0.25)
    assert at[32] == pytest.approx(32 * 0.4)
    assert at[33] == math.inf


def test_a_width_of_which_nothing_is_known_is_never_chosen():
    architecture = cifar_space(channels=16, blocks=(1,)).complete()
    latency = latency_from_table({**table_of("8x32"), **table_of("32x32")})
    fitted = fit_width(architecture, Budget(latency_ms=1000), measures=exact_measures(latency))
    assert fitted.skeleton.channels == (32,)


def test_the_rest_may_depend_on_the_channels_of_the_first_stage():
    architecture = cifar_space(channels=16, blocks=(1, 1)).complete().without_blocks()
    latency = latency_from_table({"base@8x32": 1.0, "base@32x32": 4.0})
    assert latency(architecture) == pytest.approx(2.0)


def test_a_measured_table_adds_up_to_about_what_the_network_takes():
    space = cifar_space(channels=8, blocks=(1, 1))
    table = measure_table([space.complete()], rounds=5)
    places = ("8x32", "16x16")
    for name in (*space.operations, "add", "output", "block"):
        assert all(table[f"{name}@{place}"] >= 0 for place in places)
    assert len(table) == 1 + len(places) * (len(space.operations) + 3)
    complete, summed = space.complete(), latency_from_table(table)
    assert 1 / 4 < summed(complete) / LatencyMeter()(complete) < 4  # both are measured


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "JSON object"),
        ("{}", "JSON object"),
        ("{", "JSON file"),
        ('{"base": -1}', "from 0 to 1e.09, got '-1'"),
        ('{"base": "1"}', "from 0 to 1e.09, got '1'"),
        ('{"base": true}', "from 0 to 1e.09, got 'True'"),
        ('{"base": NaN}', "from 0 to 1e.09, got 'nan'"),
        ('{"base": 1%s}' % ("0" * 400), "from 0 to 1e.09"),
        ("[" * 100000, "JSON file"),
        ('{"base": 1, "max_pool3x3": 1}', "NAME@CxS.*'max_pool3x3'"),
        ('{"base": 1, "max_pool3x3@0x8": 1}', "NAME@CxS"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of("4x32")))
    assert read_table(path) == table_of("4x32")
