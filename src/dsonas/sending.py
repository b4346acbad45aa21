"""Bring small tensors to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

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


def mask_like(live: Sequence[bool], like: Tensor) -> Tensor:
    """1 where something is live and 0 elsewhere, of the type and on the device of a tensor.

    Example:
        >>> mask_like([True, False], torch.zeros(3))
        tensor([1., 0.])
    """
    return send(torch.tensor(live, dtype=like.dtype), like.device)
