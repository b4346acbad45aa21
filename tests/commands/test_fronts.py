"""A front: evenly spread costs from one chain, and honest accounts."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st

from cost.test_chains import cost, searched
from dsonas.commands.charts import LIGHT, front_svg
from dsonas.commands.pareto import FrontConfig, front_networks, mark_best, table, time_account
from dsonas.cost.budgets import Budget
from dsonas.cost.chains import fit_chain
from dsonas.run.run_config import RunConfig


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(0.03, 0.3))
def test_the_networks_of_a_front_are_spread_evenly_up_to_the_supernet(seed, points, share):
    chain = searched(seed)
    whole = {"macs": cost(chain[0], "macs")}
    budget = Budget(macs=share * whole["macs"])
    budgets = FrontConfig(points=points).budgets(budget, whole)
    networks = front_networks(chain, fit_chain(chain, budget), budgets, RunConfig())
    assert len(networks) == points
    for (network, bound), wanted in zip(networks.items(), budgets, strict=True):
        assert bound == wanted
        assert 0.95 * wanted.macs <= cost(network, "macs") <= wanted.macs
    assert budgets[-1].macs == pytest.approx(whole["macs"])
    ratios = [b.macs / a.macs for a, b in pairwise(budgets)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_large_networks_keep_the_supernets_width_and_small_ones_the_structure_found():
    chain = searched(5, shared=True)
    whole, found = cost(chain[0], "macs"), cost(chain[-1], "macs")
    budgets = FrontConfig(points=9).budgets(Budget(macs=found / 4), {"macs": whole})
    networks = front_networks(chain, fit_chain(chain, budgets[0]), budgets, RunConfig())
    for network, budget in networks.items():
        ratio = network.skeleton.channels[-1] / chain[0].skeleton.channels[-1]
        if budget.macs > found:
            assert 0.75 < ratio < 1.35
        else:
            assert ratio < 1.1
            assert cost(network.with_channels(chain[0].skeleton.channels), "macs") < 1.2 * found


def test_no_network_of_a_front_is_wider_than_four_times_its_supernet(caplog):
    chain = searched(5, shared=True)
    whole = cost(chain[0], "macs")
    budgets = FrontConfig(points=3, largest=900 * whole).budgets(
        Budget(macs=whole), {"macs": whole}
    )
    networks = front_networks(chain, chain[0], budgets, RunConfig())
    widths = [net.skeleton.channels for net in networks]
    assert widths[-1] == tuple(4 * width for width in chain[0].skeleton.channels)
    assert "is not used up" in caplog.text


def test_all_bounds_grow_alike():
    front = FrontConfig(points=3, largest=1600)
    budgets = front.budgets(Budget(macs=100, params=10), {"macs": 1e6, "params": 1e6})
    assert [(b.macs, b.params) for b in budgets] == [(100, 10), (400, 40), (1600, 160)]


def test_the_last_network_costs_what_is_asked_or_what_the_supernet_does():
    budget, whole = Budget(macs=100, params=10), {"macs": 1000.0, "params": 200.0}
    supernet, asked = FrontConfig(points=3), FrontConfig(points=3, largest=300)
    assert supernet.budgets(budget, whole)[-1].bounds == pytest.approx(
        {"macs": 2000, "params": 200}
    )
    assert asked.budgets(budget, whole)[-1].bounds == pytest.approx({"macs": 300, "params": 30})


@pytest.mark.parametrize("largest", [None, 50, 100])
def test_a_front_without_room_is_refused(largest):
    with pytest.raises(ValueError, match="lower the budget or raise --pareto_to"):
        FrontConfig(points=3, largest=largest).budgets(Budget(macs=100), {"macs": 100.0})


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_front_has_two_networks_at_least(points):
    with pytest.raises(ValueError, match=f"pareto must be at least 2 networks, got {points}"):
        FrontConfig(points=points)


results = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8)


@given(results)
def test_the_best_points_are_those_that_none_beats(pairs):
    points = [{"params": c, "test_error": e, "channels": [c]} for c, e in pairs]
    mark_best(points, "params")
    best = {(p["params"], p["test_error"]) for p in points if p["on_front"]}
    assert best
    for c, e in set(pairs):
        beaten = any(c2 <= c and e2 <= e and (c2, e2) != (c, e) for c2, e2 in pairs)
        assert ((c, e) in best) == (not beaten)


@given(st.floats(0, 1e5), st.lists(st.floats(0, 1e5), min_size=1, max_size=9))
def test_the_time_of_separate_searches_is_that_of_one_and_the_others(search, trained):
    times = time_account(search, trained)
    difference = times["separate_seconds"] - times["total_seconds"]
    assert difference == pytest.approx((len(trained) - 1) * search, abs=0.01)
    assert times["separate_searches"] == len(trained)


@pytest.mark.parametrize("measure", ["macs", "params", "memory_bytes", "latency_ms"])
def test_the_picture_shows_every_point_in_order(measure):
    points = [
        {measure: c, "test_error": e, "channels": [8, 16]}
        for c, e in ((1e5, 12.0), (4e5, 9.0), (2e5, 13.0), (9e5, 8.0))
    ]
    mark_best(points, measure)
    root = ElementTree.fromstring(front_svg(points, measure))
    name = "{http://www.w3.org/2000/svg}"
    circles = {
        group.findtext(f"{name}title", "").split()[0]: group.find(f".//{name}circle")
        for group in root.iter(f"{name}g")
        if group.find(f"{name}title") is not None
    }
    ordered = [circles[error] for error in ("12.00", "13.00", "9.00", "8.00")]
    places = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in ordered]
    assert places == sorted(places)
    heights = [y for _, y in places]
    assert heights[3] > heights[2] > heights[0] > heights[1]
    joined = [c for c in ordered if LIGHT["k0"] in c.get("style").partition("stroke")[0]]
    assert joined == [ordered[0], *ordered[2:]]
    corners = [path.get("d", "").replace("M", "").split("L") for path in root.iter(f"{name}path")
               if LIGHT["k0"] in path.get("style", "")]  # fmt: skip
    assert corners == [[f"{c.get('cx')} {c.get('cy')}" for c in joined]]


def test_one_point_is_a_picture_too():
    point = {"macs": 1e6, "test_error": 9.0, "channels": [8], "on_front": True}
    assert "<circle" in front_svg([point], "macs")


def test_the_table_has_the_measure_by_which_the_best_are_marked():
    point = {"test_error": 9.0, "macs": 20_000, "params": 700, "latency_ms": 0.2727,
             "on_front": True, "live_connections": 4, "train_seconds": 1.0, "channels": [3, 5],
             "folder": "."}  # fmt: skip
    for measure in ("macs", "latency_ms"):
        head, row = table([point], measure)
        assert len(head) - len("channels") == len(row) - len("3-5  .")
        assert ("latency_ms" in head, "0.273" in row) == (measure == "latency_ms",) * 2
