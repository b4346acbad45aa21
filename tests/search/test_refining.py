"""Trials choose the structure of least loss, and every neighbour is a valid structure."""

from dataclasses import replace

import pytest
import torch

from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.search.baselines import random_architectures
from dsonas.search.refining import neighbour, refine

SKELETON = Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(4, 8))
SPACES = [SearchSpace(skeleton=SKELETON, num_levels=3, sharing=name) for name in ("share", "full")]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(space: SearchSpace) -> list[Architecture]:
    """Some structures, largest first, as a search leaves them."""
    drawn = random_architectures(space, 0, ("cost",))
    found = sorted((next(drawn) for _ in range(4)), key=lambda net: -architecture_cost(net).macs)
    return [space.complete(), *found]


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_are_cleaned_and_differ_little(seed: int):
    generator, sizes = seeded(seed), []
    complete = SPACES[0].complete().blocks[0]
    graph = next(random_architectures(SPACES[0], seed, ("cost",))).blocks[0]
    for _ in range(200):
        found = neighbour(graph, complete, generator)
        assert found == found.clean()
        gone, new = set(graph.kept_nodes) - set(found.kept_nodes), set(found.kept_nodes)
        assert len(new - set(graph.kept_nodes)) <= 1
        sizes.append(len(gone))
        if found.kept_nodes:
            graph = found
    assert min(sizes) == 0


def test_neighbours_lead_everywhere():
    complete = SPACES[0].complete().blocks[0]
    graph, generator, seen = chain(SPACES[0])[-1].blocks[0], seeded(0), set()
    for _ in range(2000):
        found = neighbour(graph, complete, generator)
        if found.kept_nodes:
            graph = found
            seen |= set(graph.kept_nodes)
    assert seen == set(range(1, complete.output_node))


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.sharing)
def test_the_structure_of_least_loss_is_last(space: SearchSpace):
    tried: list[Architecture] = []

    def loss(structure: Architecture) -> float:
        return abs(len(structure.blocks[0].kept_nodes) - 3) + structure.num_live / 1000

    def trial(structure: Architecture, number: int) -> float:
        assert number == len(tried)
        tried.append(structure)
        return loss(structure)

    members = chain(space)
    found = refine(members, 16, trial, seeded(1), shared=space.sharing == "share")
    assert len(tried) == 16
    assert tried[:4] == members[:0:-1]  # from the smallest on, without the supernet
    assert len(set(tried[:12])) == 12  # all new
    assert set(tried[12:]) <= set(tried[:12])  # repeated
    assert loss(found[-1]) == min(map(loss, tried))
    costs = [architecture_cost(member).macs for member in found]
    assert costs == sorted(costs, reverse=True)
    assert set(found[:-1]) <= set(members)
    if space.sharing == "share":
        assert all(len(set(structure.blocks)) == 1 for structure in tried)


def test_luck_does_not_choose():
    """The first trial of the worst structure is the best of all; repeated, it is found out."""
    members = chain(SPACES[0])
    seen: list[Architecture] = []

    def trial(structure: Architecture, number: int) -> float:
        lucky = structure == members[-1] and structure not in seen
        seen.append(structure)
        return 0.0 if lucky else 10.0 if structure == members[-1] else 1.0

    assert refine(members, 16, trial, seeded(0), shared=True)[-1] != members[-1]


def test_a_single_trial_takes_the_smallest_member():
    members = chain(SPACES[0])
    found = refine(members, 1, lambda structure, number: 0.0, seeded(0), shared=True)
    assert found[-1] == members[-1]


def test_a_space_of_one_structure_has_no_choice():
    space = SearchSpace(skeleton=SKELETON, num_levels=1, operations=("max_pool3x3",))
    only = space.complete()
    assert refine([only], 12, lambda net, number: 1.0, seeded(0), shared=True) == [only]


def test_the_same_generator_makes_the_same_choice():
    def size(structure: Architecture, number: int) -> float:
        return structure.num_live

    members = chain(SPACES[1])
    one, two = (refine(members, 10, size, seeded(3), shared=False) for _ in range(2))
    assert one == two


def test_reductions_stay_as_they_are():
    members = [replace(member, reductions=((True, True),)) for member in chain(SPACES[0])]
    seen = []

    def trial(structure: Architecture, number: int) -> float:
        seen.append(structure.reductions)
        return float(number)

    refine(members, 8, trial, seeded(0), shared=True)
    assert set(seen) == {((True, True),)}
