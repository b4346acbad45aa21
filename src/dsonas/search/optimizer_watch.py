"""Notice when the user's optimizers step, without asking the user to register them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class OptimizerWatch:
    """The optimizers that step some weights, found when they first do.

    Args:
        weights: gives the weights that count; a bound method, like ``stepped``, whose object is not
            kept alive.
        forbidden: parameters that no optimizer but ``owner`` may hold.
        owner: the one that may.
        stepped: called after every step of an optimizer that holds some of the weights.
    """

    def __init__(
        self,
        weights: Callable[[], Iterable[nn.Parameter]],
        forbidden: Iterable[nn.Parameter],
        owner: torch.optim.Optimizer,
        stepped: Callable[[], None],
    ) -> None:
        self._list_weights = weakref.WeakMethod(weights)
        self.refresh()
        self._forbidden = {id(parameter) for parameter in forbidden}
        self._owner = weakref.ref(owner)
        self._known: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._stepped = weakref.WeakMethod(stepped)
        before, after = _weak(self, "_before"), _weak(self, "_after")
        self._handles = [
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]
        weakref.finalize(self, _remove, self._handles)

    def __iter__(self):
        """Iterate over the optimizers that are known."""
        return iter(list(self._known))

    def refresh(self) -> None:
        """Take note of weights that have been replaced or removed."""
        weights = self._list_weights()
        self._weights = {id(weight) for weight in weights()} if weights else set()

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an optimizer known before it steps.

        Raises:
            ValueError: if it holds scaling factors.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if held & self._forbidden:
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

    def _before(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is not self._owner() and optimizer not in self._known:
            self.add(optimizer)

    def _after(self, optimizer: torch.optim.Optimizer) -> None:
        stepped = self._stepped()
        if stepped is not None and optimizer in self._known:
            stepped()


def _weak(watch: OptimizerWatch, name: str) -> Callable[..., None]:
    """A hook that does not keep its watch alive."""
    reference = weakref.ref(watch)

    def hook(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            getattr(found, name)(optimizer)

    return hook


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
