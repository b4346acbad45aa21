"""Why does a search win or lose against random networks? Small trials that choose our defaults.

The setting of the study on Fashion-MNIST (compare_fashion_mnist.yaml) with blocks, channels, images
and epochs as the options say; docs/research/log.md has the commands. Errors are those on other
training images; the test images are not used. Each group of cases is asked for by name; the result
file holds all rows, and the same command goes on where it was cut off.

    python benchmarks/method_pilots.py random hand-made rules --out pilots.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

from dsonas.search.baselines import HAND_MADE, INVERTED_BOTTLENECK, hand_made, random_architectures
from pilot import Pilot, Row, kept_share
from small_study import Study, mean_and_spread

PROBES = {  # sources of each target; nodes are 1 to 4 (3x3, 5x5, maximum, average), 5 to 8, ...
    "5x5, maximum": {7: [2], 13: [7]},
    "3x3, maximum, 3x3": {7: [1], 9: [7], 13: [9]},
    "3x3, 3x3, maximum": {5: [1], 11: [5], 13: [11]},
    "3x3, maximum; both to the output": {7: [1], 13: [1, 7]},
    "3x3 and input, maximum": {7: [0, 1], 13: [7]},
    "maximum, 3x3": {5: [3], 13: [5]},
    "3x3 beside maximum": {13: [1, 3]},
}
FEW = {"keep_connections": 0.1, "epochs": 5}
CHAINS = {
    "5x5": {13: [2]},
    "3x3, 3x3": {5: [1], 13: [5]},
    "3x3, 3x3, maximum": PROBES["3x3, 3x3, maximum"],
    "5x5, 5x5": {6: [2], 13: [6]},
    "3x3, 3x3, 3x3": {5: [1], 9: [5], 13: [9]},
    "3x3": {13: [1]},
    "3x3 beside 5x5": {13: [1, 2]},
    "5x5, maximum": PROBES["5x5, maximum"],
    "3x3, 5x5 and maximum side by side": {13: [1, 2, 3]},
    "3x3, 5x5; both to the output": {6: [1], 13: [1, 6]},
    "all of level 1": {13: [1, 2, 3, 4]},
}
DEEPER = {
    "3x3 beside 5x5": CHAINS["3x3 beside 5x5"],
    "3x3 and 5x5, then 5x5; all to the output": {6: [1, 2], 13: [1, 2, 6]},
    "3x3 and 5x5, then both again": {5: [1, 2], 6: [1, 2], 13: [5, 6]},
    "3x3, 5x5 and maximum, then 5x5; all to the output": {6: [0, 1, 2, 3], 13: [1, 2, 3, 6]},
}
BOTTLENECK = (INVERTED_BOTTLENECK, "separable_conv3x3", "separable_conv5x5")
BOTTLENECKS = {
    "bottleneck": {10: [1]},
    "bottleneck beside 3x3": {10: [1, 2]},
    "bottleneck beside 5x5": {10: [1, 3]},
    "bottleneck, 3x3 and 5x5 side by side": {10: [1, 2, 3]},
}
CONVOLUTIONS = {name: CHAINS[name] for name in ("5x5", "3x3, 3x3")}
REDUCTIONS = {"1x1": (True, False), "3x3": (False, True), "both": (True, True)}
RULES = {"flow": {}, "flow, few connections": FEW}
SHARES = (0.35, 0.2, 0.12)  # of the blocks' multiply-adds, for members of a chain
SPARSE = {"keep_cost": 0.2, "keep_connections": 0.1}
AGAIN = (5, 7, 12, 6)  # two of the best of the first 15 random architectures, two of the worst
CHAIN = {"keep_cost": 0.05, "keep_connections": 1.0, "hold_from": 1.0}


Inputs = Mapping[int, Sequence[int]]
Group = Callable[[Pilot, Study], Iterator[Row]]


def random_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """Random architectures, the two kinds in turn."""
    drawn = random_architectures(pilot.space(), 0)
    for index, architecture in enumerate(islice(drawn, pilot.options.random)):
        case = {"group": "random", "index": index}
        if not results.has(**case):
            yield {**case, **pilot.train([architecture], 1000 + index)}


def again_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """Further trainings of some random architectures: how much of the spread is training noise?"""
    drawn = list(islice(random_architectures(pilot.space(), 0), max(AGAIN) + 1))
    for repeat in range(1, pilot.options.trainings):
        for index in AGAIN:
            case = {"group": "again", "index": index, "repeat": repeat}
            if not results.has(**case):
                yield {**case, **pilot.train([drawn[index]], 1000 + 100 * repeat + index)}


def hand_made_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """The hand-made networks."""
    for kind in HAND_MADE:
        for index in range(pilot.options.trainings):
            case = {"group": "hand-made", "kind": kind, "index": index}
            if not results.has(**case):
                yield {**case, **pilot.train([hand_made(pilot.space(), kind)], 2000 + index)}


def rule_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """Members of the chain of a search that is led down to a small structure, rule by rule."""
    supernet = pilot.space().complete()
    for (rule, settings), seed in product(RULES.items(), range(pilot.options.seeds)):
        cases = [{"group": "rules", "rule": rule, "search": seed, "share": s} for s in SHARES]
        if all(results.has(**case) for case in cases):
            continue
        chain, seconds = pilot.search(seed, **{**CHAIN, **settings})
        for place, case in enumerate(cases):
            if not results.has(**case):
                member = min(chain, key=lambda net: abs(kept_share(net, supernet) - case["share"]))
                row = pilot.train([member], 3000 + 10 * seed + place)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


def probe_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """A few structures written down by hand after the first random ones had been seen."""
    yield from written_rows(pilot, results, "probes", PROBES, 4000)


def chain_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """A few operations, one after the other or side by side."""
    yield from written_rows(pilot, results, "chains", CHAINS, 9500)


def deeper_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """More operations than the search leaves, for a budget that has room for them."""
    yield from written_rows(pilot, results, "deeper", DEEPER, 9600)


def bottleneck_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """An inverted bottleneck as a candidate operation."""
    richer = copy(pilot)
    network = replace(pilot.config.network, operations=BOTTLENECK)
    richer.config = replace(pilot.config, network=network)
    yield from written_rows(richer, results, "bottlenecks", BOTTLENECKS, 9700)


def written_rows(
    pilot: Pilot, results: Study, group: str, structures: Mapping[str, Inputs], first_seed: int
) -> Iterator[Row]:
    """Structures written by hand, each trained ``--trainings`` times."""
    wanted = pilot.options.only or structures
    for repeat in range(pilot.options.trainings):
        for place, (name, inputs) in enumerate(structures.items()):
            case: Row = {"group": group, "name": name} | ({"index": repeat} if repeat else {})
            if name in wanted and not results.has(**case):
                seed = first_seed + 1000 * repeat + place
                yield {**case, **pilot.train([pilot.structure(inputs)], seed)}


def reduction_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """The reduction block with one of its convolutions, so that all else is wider."""
    cases = product(CONVOLUTIONS.items(), REDUCTIONS.items())
    for place, ((name, inputs), (reduction, live)) in enumerate(cases):
        case = {"group": "reductions", "name": name, "reduction": reduction}
        if not results.has(**case):
            network = pilot.structure(inputs, live)
            yield {**case, **pilot.train([network], 9000 + place)}


def sparse_rows(pilot: Pilot, results: Study) -> Iterator[Row]:
    """Searches that remove operations by flow, whatever they cost, and leave few connections."""
    for seed in range(pilot.options.seeds):
        cases = [{"group": "sparse", "search": seed, "index": i} for i in range(2)]
        if all(results.has(**case) for case in cases):
            continue
        chain, seconds = pilot.search(seed, pretrain=2, epochs=5, **SPARSE)
        for index, case in enumerate(cases):
            if not results.has(**case):
                row = pilot.train(chain, 7000 + 10 * seed + index)
                yield {**case, **row, "search_seconds": round(seconds, 1)}


GROUPS: dict[str, Group] = {
    "random": random_rows,
    "again": again_rows,
    "hand-made": hand_made_rows,
    "rules": rule_rows,
    "probes": probe_rows,
    "reductions": reduction_rows,
    "chains": chain_rows,
    "deeper": deeper_rows,
    "bottlenecks": bottleneck_rows,
    "sparse": sparse_rows,
}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/method-pilots.json"))
    parser.add_argument("--budget", default="1M")
    parser.add_argument("--blocks", type=numbers, default=(1, 1), help="of each stage")
    parser.add_argument("--channels", type=numbers, default=(32, 64), help="of each stage")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--held_out", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=3)
    written = [*PROBES, *CHAINS, *DEEPER, *BOTTLENECKS]
    parser.add_argument("--only", action="append", choices=written, metavar="NAME")
    options = parser.parse_args()
    growing = ("groups", "random", "trainings", "only")
    pilot, results = Pilot(options), Study(options, growing)
    for name in options.groups:
        for row in GROUPS[name](pilot, results):
            results.add(row)
        found = [row["error"] for row in results.rows if row["group"] == name]
        print(name, mean_and_spread(found), len(found))


if __name__ == "__main__":
    main()
