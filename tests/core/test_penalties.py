"""Penalties follow what a block still costs."""

from dataclasses import replace

import pytest

from dsonas.architecture import Architecture, Skeleton
from dsonas.costs import architecture_cost
from dsonas.penalties import block_penalties

SKELETON = Skeleton(image_size=8, blocks=(1, 2), channels=(4, 8))
WHOLE = Architecture.complete(SKELETON, ("separable_conv3x3", "max_pool3x3"), 2)
EMPTY = WHOLE.blocks[0].prune([False] * len(WHOLE.blocks[0].live))
HALF = WHOLE.blocks[0].prune([1 not in pair for pair in WHOLE.blocks[0].connections]).clean()


@pytest.mark.parametrize(("sharing", "sets"), [("share", 1), ("full", 3)])
def test_uniform_is_gamma_and_a_complete_network_gets_gamma(sharing: str, sets: int):
    empty = replace(WHOLE, blocks=(EMPTY,) * 3)
    assert block_penalties("uniform", 0.3, WHOLE, empty, sharing) == [0.3] * sets
    found = block_penalties("adaptive_macs", 0.3, WHOLE, WHOLE, sharing)
    assert found == pytest.approx([0.3] * sets)
    assert block_penalties("adaptive_macs", 0.3, WHOLE, empty, sharing) == [0.0] * sets


def test_adaptive_is_in_proportion_to_the_live_cost():
    """Costs of blocks from differences of whole networks, in which all else is equal."""

    def of_block(graph, place: int) -> int:
        blocks = [EMPTY] * 3
        bare = architecture_cost(replace(WHOLE, blocks=tuple(blocks))).macs
        blocks[place] = graph
        return architecture_cost(replace(WHOLE, blocks=tuple(blocks))).macs - bare

    current = replace(WHOLE, blocks=(HALF, WHOLE.blocks[0], EMPTY))
    shares = [of_block(g, i) / of_block(WHOLE.blocks[0], i) for i, g in enumerate(current.blocks)]
    found = block_penalties("adaptive_macs", 2.0, WHOLE, current, "full")
    assert found == pytest.approx([2 * share for share in shares])
    assert 0 < shares[0] < 1
    halves = replace(WHOLE, blocks=(HALF,) * 3)
    now = sum(of_block(HALF, i) for i in range(3))
    whole = sum(of_block(WHOLE.blocks[0], i) for i in range(3))
    assert block_penalties("adaptive_macs", 2.0, WHOLE, halves, "share") == pytest.approx(
        [2 * now / whole]
    )


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"search\.penalty_kind must be one of .*'magic'"):
        block_penalties("magic", 0.1, WHOLE, WHOLE, "share")
