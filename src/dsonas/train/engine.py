"""Where and how tensors are computed: device, precision, threads, allocator."""

from __future__ import annotations

import ctypes
import logging
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dsonas._utils import NonNegativeFloat, PositiveInt, Threads, check_settings, derive_seed
from dsonas.nn import BatchNorm, Network
from dsonas.train.graphs import CudaCapture, StepGraphs
from dsonas.train.processes import Processes, join
from dsonas.train.world import World

logger = logging.getLogger(__name__)

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how to compute.

    Args:
        device: ``auto`` (an accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: ``float32``, or ``bfloat16`` for autocast.
        threads: CPU threads, from 1 to 1024. None: all cores, as torch decides.
        checkpoint_seconds: time between two checkpoints of a run, >= 0: what a crash costs at
            most. Longer where writing one is slow; 0 saves after every step.
        accumulate: parts of a batch that a process takes one after the other, adding up their
            gradients, to save memory, >= 1; batch normalisation then sees parts.
        graphs: ``auto`` launches the passes of a search step as one CUDA graph where a run in one
            process has a CUDA device, and has not run on one yet; ``off`` call by call.
        latency_table: JSON file of milliseconds by part, as ``dsonas latency`` writes it on another
            device: latencies are then that device's. None: measured on this one, one image on one
            thread.

    Raises:
        ValueError: if a value breaks its rule.

    Example:
        >>> EngineConfig(device="cpu", threads=2).precision
        'float32'
    """

    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Threads | None = None
    checkpoint_seconds: NonNegativeFloat = 20.0
    accumulate: PositiveInt = 1
    graphs: Literal["auto", "off"] = "auto"
    latency_table: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "engine")


class Engine:
    """A resolved ``EngineConfig``.

    Args:
        config: what to resolve. None: the defaults.
        world: processes to train together with, all of which make such an engine; see
            ``current_world``. None: this process alone.

    Raises:
        ValueError: if the device does not exist on this machine.
        LostProcessError: if the other processes do not come.

    Example:
        >>> engine = Engine(EngineConfig(device="cpu"))
        >>> engine.place(nn.Linear(2, 1)).weight.device
        device(type='cpu')
    """

    def __init__(self, config: EngineConfig | None = None, world: World | None = None) -> None:
        config = config or EngineConfig()
        self.precision, self.accumulate = config.precision, config.accumulate
        if world is None or world.size == 1:
            self.processes, self.device = Processes(), _resolve_device(config.device)
        else:
            self.processes, self.device = join(world, config.device)
        self.synchronises = self.processes.share[1] > 1
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        elif self.device.type == "cuda":
            tune_cuda()
        self.graphs = self._graphs(config.graphs)

    def _graphs(self, wish: str) -> StepGraphs | None:
        """What runs the passes of a search step at once; None: they run call by call."""
        if wish == "off" or self.device.type != "cuda":
            return None
        if not self.synchronises:
            return StepGraphs(CudaCapture(self.device))
        if self.processes.is_first:  # they exchange sums in the middle of a pass
            told = "engine.graphs: steps without CUDA graphs, which are for one process alone"
            logger.warning(told)
        return None

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, ours in a fast format; make it equal in all processes."""
        module.to(self.device)
        if isinstance(module, Network):  # others may view their features as rows
            module.nchw = suits_nchw(self.device, self.precision, module)
            form = torch.contiguous_format if module.nchw else torch.channels_last
            module.to(memory_format=form)  # type: ignore[call-overload]
        for part in module.modules():
            if isinstance(part, BatchNorm):
                part.synchronised = self.synchronises
        self.processes.align(module)
        return module

    def seed_step(self, seed: int, name: str, update: int) -> None:
        """Let what a network draws in a step follow from its number, so that a run can resume."""
        rank = self.processes.world.rank  # other images, so other draws
        torch.manual_seed(derive_seed(seed, name, update, *[rank] * (rank > 0)))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def wait(self) -> None:
        """Until the device has done what it was given, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # clocks wait for the current device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"engine.device {name!r} cannot be used here: {reason}") from None
    return device


def suits_nchw(device: torch.device, precision: str, network: Network) -> bool:
    """Whether features in NCHW are faster than in channels_last.

    On CUDA by what is known of its kernels, without a measurement: tensor cores read channels_last
    in half precision; depthwise convolutions in float32 have fast kernels for NCHW alone, and
    supernets run by levels, which are NCHW.
    """
    return device.type == "cuda" and (precision == "float32" or network.scaling is not None)


def tune_cuda() -> None:
    """Let convolutions and products both use TF32, and cuDNN measure its kernels.

    By default only convolutions use TF32, so that the same sums differ by 1e-3 with the path that
    computes them. The shapes of a run are the same in every step, so one measurement pays.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Ask glibc to reuse large freed buffers rather than return them to the system.

    Every training step allocates the same buffers of tens of MB; by default each would be mapped
    and zeroed by the kernel anew, a third of the time of a supernet's step. Other C libraries are
    left alone.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
