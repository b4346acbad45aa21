"""Large buffers that are used again in every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class BufferPool:
    """Large CPU buffers that are used again in every step.

    A fresh buffer of tens of MB must be mapped and zeroed by the system page by page, which takes
    longer than the work done on it. Accelerators have a caching allocator of their own.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[Tensor]] = {}
        self._scratch: dict[tuple[Any, ...], Tensor] = {}

    def take(self, like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the device of ``like``."""
        free = self._free.get((like.device, *shape, dtype))
        return free.pop() if free else like.new_empty(shape, dtype=dtype)

    def give(self, *tensors: Tensor) -> None:
        """Hand back tensors that nobody reads any more."""
        for tensor in tensors:
            if tensor.device.type == "cpu":
                self._free.setdefault((tensor.device, *tensor.shape, tensor.dtype), []).append(
                    tensor
                )

    def scratch(self, role: str, like: Tensor, shape: Sequence[int]) -> Tensor:
        """An uninitialised tensor of the device and type of ``like``, for a moment's use.

        The next call for the same role takes the same memory, whatever its shape.
        """
        size = math.prod(shape)
        if like.device.type != "cpu":
            return like.new_empty(shape)
        key = (role, like.device, like.dtype)
        if key not in self._scratch or self._scratch[key].numel() < size:
            self._scratch.pop(key, None)  # first, so that both are never there together
            self._scratch[key] = like.new_empty(size)
        return self._scratch[key][:size].view(tuple(shape))

    def clear(self) -> None:
        """Free all buffers."""
        self._free.clear()
        self._scratch.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> BufferPool:
        return BufferPool()
