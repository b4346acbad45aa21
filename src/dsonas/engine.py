"""Where and how tensors are computed: device, precision, threads, allocator."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how to compute.

    Args:
        device: ``auto`` (an accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: ``float32``, or ``bfloat16`` for autocast.
        threads: CPU threads, >= 1. None: all cores, as torch decides.

    Raises:
        ValueError: if a value breaks its rule.
    """

    device: str = "auto"
    precision: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"engine.precision must be one of {PRECISIONS}, got {self.precision!r}"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"engine.threads must be at least 1, got {self.threads}")


class Engine:
    """A resolved ``EngineConfig``.

    Raises:
        ValueError: if the device does not exist on this machine.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self.precision = config.precision
        self.device = _resolve_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.device.type == "cpu":
            keep_freed_memory()

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, its convolutions in channels_last."""
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def scalars(self, *values: Tensor) -> list[float]:
        """Read numbers from the device with a single synchronisation."""
        return torch.stack([value.float() for value in values]).tolist()


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"engine.device {name!r} cannot be used here: {reason}") from None
    return device


def keep_freed_memory() -> bool:
    """Ask glibc to reuse large freed buffers rather than return them to the system.

    Every training step allocates the same buffers of tens of MB; by default each would be mapped
    and zeroed by the kernel anew, a third of the time of a supernet's step.

    Returns:
        Whether the C library took the request; other libraries are left alone.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
