"""What stands in for a CUDA graph on a CPU: calls of torch taken down, and done again."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Takes down every call below autograd, with the tensors that it got and gave.

    Attributes:
        calls: function, arguments, and the new tensors that it gave.
        outside: what was there before the first call, by its memory, and what it held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self.outside: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()
        self._random = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._made and place not in self.outside:
                self.outside[place] = tensor.detach(), tensor.detach().clone()
        given = func(*args, **kwargs)
        returns, results = func._schema.returns, given if isinstance(given, tuple) else (given,)
        new = [
            (at, value)
            for at, value in enumerate(results)
            if isinstance(value, Tensor) and returns[at].alias_info is None
        ]
        self._made |= {value.untyped_storage().data_ptr() for _, value in new}
        self.calls.append((func, args, kwargs, new))
        return given

    @torch.no_grad()
    def undo(self) -> None:
        """As if nothing had been computed: old memory as it was, new memory without meaning."""
        torch.set_rng_state(self._random)
        for tensor, value in self.outside.values():
            tensor.copy_(value)
        for *_, new in self.calls:
            for _, tensor in new:
                if tensor.is_floating_point():
                    tensor.detach().fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        """Do all calls again, in the same memory."""
        for func, args, kwargs, new in self.calls:
            given = func(*args, **kwargs)
            results = given if isinstance(given, tuple) else (given,)
            for at, tensor in new:
                tensor.detach().copy_(results[at])


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class RecordedCapture:
    """``Capture`` on a CPU.

    Attributes:
        captures: how many there have been.
        asides: how many steps have been ordinary ones.
        replays: how many have been replays.
        held: the captures that somebody may still replay.
    """

    def __init__(self) -> None:
        self.captures = self.asides = self.replays = 0
        self.held: WeakSet[Recorder] = WeakSet()

    def aside(self, run: Callable[[], Any]) -> Any:
        self.asides += 1
        return run()

    def capture(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with Recorder() as recorder:
            found = run()
        recorder.undo()
        self.captures += 1
        self.held.add(recorder)

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return found, replay
