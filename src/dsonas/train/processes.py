"""What processes that train together tell each other; a process alone asks nobody.

Lightning Fabric reads the launcher's environment, picks the device and sets up the process group.
Gradients are averaged here, in one flat buffer after backward, rather than by hooks of torch's DDP:
those hold on to the parameters they were made for, and a search changes in every other step which
parameters have gradients, and at every rebuild which parameters there are.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dsonas._utils import answering, flatten, sum_over_processes, write_back
from dsonas.train.world import World

Result = TypeVar("Result")
TIMEOUT_SECONDS = 600.0  # how long processes wait for one that does not answer
HEARTBEAT_SECONDS = 5.0  # between signs of life of one that others wait for
FABRIC = 'lightning-fabric is not installed: pip install "dsonas[distributed]"'


class Processes:
    """The processes that train together, with the place of this one among them.

    Of several the process group exists. Flags and decisions go by the group ``control``, so that no
    step waits for an accelerator; None: the same.

    Example:
        >>> alone = Processes()
        >>> alone.decide(lambda: "prune it"), alone.any(False, True)
        ('prune it', (False, True))
    """

    def __init__(self, world: World | None = None, control: Any = None) -> None:
        self.world, self._control = world or World(), control
        self._alone = self.world.size == 1

    @property
    def share(self) -> tuple[int, int]:
        """The part of every batch that is this process's: its number, and of how many."""
        return self.world.rank, self.world.size

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and speaks for all."""
        return self.world.is_first

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, the same bits in each; ``values`` are left as they are."""
        return values if self._alone else sum_over_processes(values.clone())

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set in any process."""
        if self._alone:
            return flags
        values = torch.tensor(flags, dtype=torch.int32)
        return tuple(sum_over_processes(values, self._control).gt(0).tolist())

    def decide(self, choose: Callable[[], Result]) -> Result:
        """Let the first process choose for all; what it raises is a ValueError in the others."""
        if self._alone:
            return choose()
        value, problem = None, None
        if self.is_first:
            try:
                value = choose()
            except Exception as error:  # the others wait for an answer
                problem = error
        with answering():
            told = None if problem is None else str(problem)
            told_all = [value, told]
            torch.distributed.broadcast_object_list(told_all, group=self._control)
        value, reason = told_all
        if problem is not None:
            raise problem
        if reason is not None:
            raise ValueError(reason)
        return value

    def one_before_others(self, work: Callable[[], Result]) -> Result:
        """Do work in each process, on every machine first in one: the others find what it keeps.

        There another thread does it: however long that takes, nobody is taken for lost.
        """
        if self._alone:
            return work()
        begun: Future[Result] | None = None
        with ThreadPoolExecutor(1) as pool:
            if self.world.rank % self.world.local_size == 0:
                begun = pool.submit(work)
            waiting = True
            while waiting:
                if begun:
                    wait([begun], HEARTBEAT_SECONDS)
                (waiting,) = self.any(begun is not None and not begun.done())
        return begun.result() if begun else work()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors their means over the processes, in place, in one exchange for each type."""
        if self._alone:
            return
        for some in _by_type(tensors):
            flat = sum_over_processes(flatten(some)).div_(self.world.size)
            write_back(flat, some)

    @torch.no_grad()
    def align(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first."""
        if self._alone:
            return
        for some in _by_type([*module.parameters(), *module.buffers()]):
            flat = flatten(some)
            with answering():
                torch.distributed.broadcast(flat, 0)
            write_back(flat, some)


def running() -> Processes:
    """Find the processes of the group that the caller's script has made, if it has made one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return Processes()
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Processes(World(rank=rank, size=size, local_size=size))


def join(world: World, device: str) -> tuple[Processes, torch.device]:
    """Meet the other processes of a world.

    The device is ``auto``, ``cpu`` or the name of an accelerator, without a number; that of this
    process is returned beside the processes.
    """
    try:
        from lightning_fabric import Fabric  # takes seconds
        from lightning_fabric.plugins.environments.kubeflow import KubeflowEnvironment
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError:
        raise ValueError(f"training in {world.size} processes: {FABRIC}") from None
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    environments = {
        "torchrun": TorchElasticEnvironment,
        "srun": SLURMEnvironment,
        "pytorchjob": KubeflowEnvironment,
    }
    try:
        fabric = Fabric(
            accelerator=device,
            devices=world.local_size,
            num_nodes=world.num_nodes,
            strategy=DDPStrategy(timeout=timeout),
            plugins=[environments[world.launcher]()],
        )
    except (ValueError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"engine.device {device!r} cannot be used by the {world.local_size} processes of this "
            f"machine: {reason}"
        ) from None
    with answering():
        fabric.launch()
        on_cpu = fabric.device.type == "cpu"
        control = None if on_cpu else torch.distributed.new_group(backend="gloo", timeout=timeout)
    atexit.register(_part)
    return Processes(world, control), fabric.device


def _part() -> None:
    """End the process group while the interpreter is whole: its threads still hold tensors."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    types = dict.fromkeys(tensor.dtype for tensor in tensors)
    return [[tensor for tensor in tensors if tensor.dtype == kind] for kind in types]
