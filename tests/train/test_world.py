"""Where a process stands, from the variables of its launcher; and one process alone."""

import pytest
import torch
from torch import nn

from dsonas.data import Batches, DataConfig, DataError, load_data
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.processes import Processes
from dsonas.train.world import World, current_world

TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, World(rank=5, size=8, local_size=4, launcher="torchrun")),
        (SRUN, World(rank=3, size=4, local_size=2, launcher="srun")),
        ({**SRUN, **TORCHRUN}, World(rank=5, size=8, local_size=4, launcher="torchrun")),
        (
            {"WORLD_SIZE": "3", "RANK": "2"},
            World(rank=2, size=3, local_size=1, launcher="pytorchjob"),
        ),
        ({"WORLD_SIZE": "1", "RANK": "0"}, World()),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, World()),  # a batch script, not under srun
    ],
)
def test_every_launcher_is_understood(variables, expected):
    assert current_world(variables) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "x"}, "RANK must be a number set by the launcher, got 'x'"),
        ({"LOCAL_WORLD_SIZE": "3"}, "every machine must run as many processes, got 8 in all, 3"),
    ],
)
def test_a_broken_environment_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        current_world({**TORCHRUN, **change})


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("augmented", [True, False])
def test_parts_of_batches_make_up_the_whole(number, augmented):
    data = load_data(DataConfig(name="digits", max_train_images=60, cutout=2, augment="crop"), 0)

    def epoch(share):
        batches = Batches(
            data.train, data, batch_size=12, shuffle=True, drop_last=True, seed=1, share=share,
            augmentation=data.train_augmentation if augmented else None,
        )  # fmt: skip
        return list(batches.epoch(1, start=2))

    parts = zip(*(epoch((rank, number)) for rank in range(number)), strict=True)
    for (images, labels), shares in zip(epoch((0, 1)), parts, strict=True):
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    data = load_data(DataConfig(name="digits", max_train_images=60), 0)
    with pytest.raises(DataError, match="multiple of the 5 processes that share a batch, got 12"):
        Batches(
            data.train, data, batch_size=12, shuffle=True, drop_last=True, seed=1, share=(0, 5),
            augmentation=None,
        )  # fmt: skip


def test_batch_sizes_are_checked_before_anything_is_done():
    World(size=4).check_batch_size("search.batch_size", 16)
    with pytest.raises(
        ValueError, match=r"search\.batch_size must be a multiple of the 3 .*, got 16"
    ):
        World(size=3).check_batch_size("search.batch_size", 16)


def test_one_process_alone_changes_nothing():
    alone, module, values = Processes(), nn.Linear(2, 1), torch.ones(3)
    module(torch.ones(1, 2)).sum().backward()
    gradient = module.weight.grad
    alone.average([parameter.grad for parameter in module.parameters()])
    alone.align(module)
    assert module.weight.grad is gradient
    assert alone.sum(values) is values
    assert alone.share == (0, 1)
    assert alone.is_first
    assert not Engine(EngineConfig(device="cpu")).synchronises
