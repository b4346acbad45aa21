"""Bring small tensors to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device.

    ``torch.tensor(..., device="cuda")`` and indexing by a list copy from pageable memory, which
    waits until the device has done all its work; a copy from pinned memory is only queued.

    Args:
        tensor: on the CPU.
        device: where it is wanted; if that is the CPU, the tensor itself is returned.

    Example:
        >>> send(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
