"""Notice when the user's optimizers step, without asking the user to register them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class OptimizerWatch:
    """The optimizers that step the weights of a ``Searcher``, found when they first do.

    Nothing here keeps the searcher or an optimizer alive.
    """

    def __init__(self, searcher: Any) -> None:
        self._searcher = weakref.ref(searcher)
        self._factors = {id(vector) for vector in searcher.supernet.vectors()}
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.refresh()
        this = weakref.ref(self)

        def hook(name: str) -> Callable[..., None]:
            def call(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
                if (watch := this()) is not None:
                    getattr(watch, name)(optimizer)

            return call

        self._handles = [
            register_optimizer_step_pre_hook(hook("_before")),
            register_optimizer_step_post_hook(hook("_after")),
        ]
        weakref.finalize(self, _remove, self._handles)

    def __iter__(self) -> Iterator[Optimizer]:
        """Iterate over the optimizers that are known."""
        return iter(list(self._known))

    def refresh(self) -> None:
        """Take note of weights that have been replaced or removed."""
        searcher = self._searcher()
        self._weights = {id(weight) for weight in searcher.weights()} if searcher else set()

    def add(self, optimizer: Optimizer) -> None:
        """Make an optimizer known before it steps.

        Raises:
            ValueError: if it holds scaling factors.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & self._factors:
            raise ValueError(
                "the optimizer of the weights must not hold scaling factors, which the searcher "
                "steps itself, but it does: give it searcher.weights() in place of "
                "model.parameters()"
            )
        if held & self._weights:
            self._known.add(optimizer)

    def close(self) -> None:
        """Look no more."""
        _remove(self._handles)

    def _before(self, optimizer: Optimizer) -> None:
        searcher = self._searcher()
        if searcher and optimizer is not searcher.optimizer and optimizer not in self._known:
            self.add(optimizer)

    def _after(self, optimizer: Optimizer) -> None:
        searcher = self._searcher()
        if searcher and optimizer in self._known:
            for vector in searcher.supernet.vectors():  # they learn from batches of their own
                vector.grad = None


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
