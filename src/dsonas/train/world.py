"""What the command line knows of training before torch is there: its steps, its processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("pretrain", "search", "train")  # of a run, in order; also the groups of their settings


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of a process among those that train together."""

    rank: int = 0  # number of the process, from 0
    size: int = 1  # processes in all, >= 1
    local_size: int = 1  # processes on this machine, >= 1
    # ``torchrun``, ``srun``, ``pytorchjob`` (Kubernetes, one process a pod), or empty
    launcher: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and speaks for all."""
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        """Machines, each with as many processes."""
        return self.size // self.local_size

    def check_batch_size(self, name: str, batch_size: int) -> None:
        """Refuse a batch, of all processes together, that cannot be shared equally."""
        if batch_size % self.size:
            raise ValueError(
                f"{name} must be a multiple of the {self.size} processes that share a batch, got "
                f"{batch_size}"
            )


def current_world(environment: Mapping[str, str] | None = None) -> World:
    """Read the place of this process from its environment, or other variables.

    A ValueError if a variable of the launcher is missing or no number.

    Example:
        >>> variables = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
        >>> current_world(variables).num_nodes
        2
    """
    variables = os.environ if environment is None else environment
    if "WORLD_SIZE" in variables:  # first, for torchrun may itself be started by srun
        size, rank = _number(variables, "WORLD_SIZE"), "RANK"
        if "LOCAL_RANK" in variables:
            local, launcher = _number(variables, "LOCAL_WORLD_SIZE"), "torchrun"
        else:
            local, launcher = 1, "pytorchjob"
    elif "SLURM_STEP_NUM_TASKS" in variables:  # not in a batch script itself, only under srun
        size, rank = _number(variables, "SLURM_STEP_NUM_TASKS"), "SLURM_PROCID"
        nodes = int(variables.get("SLURM_STEP_NUM_NODES", "1"))
        local, launcher = size // nodes, "srun"
    else:
        return World()
    if size <= 1:
        return World()
    if size % local:
        raise ValueError(
            f"every machine must run as many processes, got {size} in all, {local} here"
        )
    place = _number(variables, rank)
    return World(rank=place, size=size, local_size=local, launcher=launcher)


def require_single(what: str, world: World) -> None:
    """Refuse what one process does alone, if there are several."""
    if world.size > 1:
        raise ValueError(
            f"{what} works in one process, got {world.size}: start it without torchrun or srun"
        )


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"{name} must be a number set by the launcher, got {text!r}: use torchrun")
    return int(text)
