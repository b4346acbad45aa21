"""A block found on one data set in a network for another."""

from random import Random
from types import SimpleNamespace

import pytest

from dsonas.cost.budgets import Budget, exact_measures
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.run.fitting import TransferError, transfer, transferred
from dsonas.run.run_config import NetworkConfig, RunConfig
from helpers.builders import random_architecture, random_skeleton

LARGER = Skeleton(stem="imagenet", image_size=64, num_classes=5, blocks=(1, 2), channels=(8, 16))
IMAGES = SimpleNamespace(image_size=64, input_channels=3, num_classes=5)
NETWORK = NetworkConfig(blocks=(1, 2), channels=8, stem="imagenet", transfer=True)


def found(seed: int, **options) -> Architecture:
    """A shared architecture that has operations."""
    rng = Random(seed)
    while True:
        made = random_architecture(rng, random_skeleton(rng), **{"shared": True, **options}).clean()
        if made.blocks[0].kept_nodes:
            return made


@pytest.mark.parametrize("seed", range(20))
def test_every_place_has_the_block_and_reductions_what_any_had(seed: int):
    source = found(seed)
    result = transfer(source, LARGER)
    assert result.skeleton == LARGER
    assert set(result.blocks) == {source.blocks[0]}
    assert Architecture.from_json(result.to_json()) == result
    kept = {
        number for flags in source.reductions for number, alive in enumerate(flags) if alive
    } or {0, 1}
    assert {number for number, alive in enumerate(result.reductions[0]) if alive} == kept


def test_transferring_to_its_own_skeleton_changes_nothing():
    source = transfer(found(1), LARGER)
    assert transfer(source, LARGER) == source


def test_different_blocks_are_refused():
    source = random_architecture(Random(3), Skeleton(), shared=False, density=0.5, num_levels=3)
    with pytest.raises(TransferError, match=r"must be the same, got \d+ .*--search\.space share"):
        transfer(source, LARGER)


def test_an_empty_block_is_refused():
    whole = found(0)
    empty = whole.blocks[0].prune([False] * len(whole.blocks[0].live))
    nothing = Architecture(whole.skeleton, (empty,) * len(whole.blocks), whole.reductions)
    with pytest.raises(TransferError, match="at least one operation"):
        transfer(nothing, LARGER)


def test_the_width_meets_the_budget_and_stays_when_a_run_goes_on():
    source, measures = found(5), exact_measures()
    config = RunConfig(network=NETWORK, budget=Budget(macs="2M"))
    images: object = IMAGES
    first = transferred(source, config, images, measures)  # type: ignore[arg-type]
    assert 0.8 < measures["macs"](first) / 2e6 <= 1
    narrower = first.with_channels([3, 5])
    again = transferred(source, config, images, measures, held=narrower)  # type: ignore[arg-type]
    assert again == narrower
    another = transfer(found(6), LARGER)
    assert transferred(source, config, images, measures, held=another) == first  # type: ignore[arg-type]


def test_a_huge_budget_widens_a_transferred_network_fourfold_at_most(caplog):
    images: object = IMAGES
    config = RunConfig(network=NETWORK, budget=Budget(macs="100G"))
    first = transferred(found(5), config, images, exact_measures())  # type: ignore[arg-type]
    assert first.skeleton.channels == (32, 64)
    assert "budget.macs 1e+11 is not used up" in caplog.text
