"""Networks of a search's plan, where the scaling factors say nothing."""

from dataclasses import replace

import pytest
import torch

from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.search.baselines import blocks_macs, random_plan_result
from dsonas.search.search_config import SearchConfig

SPACE = SearchSpace(skeleton=Skeleton(image_size=8, blocks=(1, 2), channels=(8, 16)), num_levels=2)
CONFIG = SearchConfig(epochs=8, keep_cost=0.4, keep_connections=0.2)


def drawn(sharing: str, seed: int, config: SearchConfig = CONFIG, **options) -> Architecture:
    generator = torch.Generator().manual_seed(seed)
    return random_plan_result(replace(SPACE, sharing=sharing), config, generator, **options)


@pytest.mark.parametrize("sharing", ["share", "full"])
def test_they_are_as_sparse_as_the_plan(sharing: str):
    supernet = SPACE.complete()
    found = [drawn(sharing, seed) for seed in range(6)]
    assert len(set(found)) > 1
    assert found == [drawn(sharing, seed) for seed in range(6)]
    for network in found:
        assert network == network.clean()
        assert 0.2 < blocks_macs(network) / blocks_macs(supernet) < 0.6
        assert network.reductions == supernet.reductions
        assert (len(set(network.blocks)) == 1) or sharing == "full"


def test_every_kind_of_operation_stays_somewhere():
    """The draw prefers no operation, since no factor stands for one."""
    found = [drawn("full", seed) for seed in range(8)]
    names = {g.operation(node) for net in found for g in net.blocks for node in g.kept_nodes}
    assert names == set(SPACE.operations)


def test_the_measure_that_is_planned_can_be_another():
    free = drawn("share", 0, cost=lambda net: 1.0)
    assert len(free.blocks[0].kept_nodes) > len(drawn("share", 0).blocks[0].kept_nodes)


def test_without_a_plan_there_is_none():
    with pytest.raises(ValueError, match=r"search\.keep_cost must be set"):
        drawn("share", 0, SearchConfig(keep_cost=None))
