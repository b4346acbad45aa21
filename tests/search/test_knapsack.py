"""The best combination within bounds is the best of all, by looking at all of them."""

from itertools import combinations, product

import pytest
from hypothesis import given, settings, strategies as st

from dsonas.cost import Item
from dsonas.search.knapsack import Bound, best_choices, smallest_choices


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    options = {f"l{i}": tuple(map(str, range(n))) for i, n in enumerate(sizes)}
    keep = {label: draw(st.sampled_from([1, 1, 2, None])) for label in options}
    every = [(label, name) for label, names in options.items() for name in names]
    scores = {candidate: draw(st.floats(0, 1)) for candidate in every}
    items = [Item(draw(st.integers(0, 50)), (frozenset(),))]
    items += [Item(draw(st.integers(0, 10**7)), (frozenset({c}),)) for c in every]
    for _ in range(draw(st.integers(0, 4))):
        contexts = st.frozensets(st.sampled_from(every), min_size=1, max_size=3)
        items.append(
            Item(
                draw(st.integers(0, 10**6)), tuple(draw(st.lists(contexts, min_size=1, max_size=2)))
            )
        )
    return options, keep, scores, items, draw(st.floats(0.05, 1.2))


def combos(options, keep):
    sets = []
    for label, names in options.items():
        most = keep[label] or len(names)
        sets.append(
            [(label, some) for size in range(1, most + 1) for some in combinations(names, size)]
        )
    return [dict(some) for some in product(*sets)]


def price(items, chosen) -> int:
    return sum(item.amount for item in items if item.is_in(chosen))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_it_is_the_best_of_all(problem) -> None:
    options, keep, scores, items, share = problem
    limit = int(share * price(items, options))
    able = [one for one in combos(options, keep) if price(items, one) <= limit]
    found = best_choices(options, keep, scores, [Bound("macs", items, limit)])
    if not able:
        assert found is None
        return

    def worth(one) -> float:
        return sum(scores[label, name] for label, names in one.items() for name in names)

    assert found is not None
    assert price(items, found) <= limit
    assert all(1 <= len(found[k]) <= (keep[k] or len(names)) for k, names in options.items())
    assert worth(found) == pytest.approx(max(map(worth, able)), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_the_smallest_is_the_smallest(problem) -> None:
    options, _, _, items, _ = problem
    one_each = combos(options, dict.fromkeys(options, 1))
    least = min(price(items, one) for one in one_each)
    assert price(items, smallest_choices(options, items)) == least
