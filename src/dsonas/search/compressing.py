"""A trained model brought to a budget: its branches and channels as one supernet."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from dsonas.cost import Budget
from dsonas.search.scaled_supernet import ScaledSupernet, Structure
from dsonas.search.search_config import SearchConfig
from dsonas.search.searcher import Searcher, SearchResult
from dsonas.sparse import copied, find_channels, find_joins, is_unfelt, scale_joins, trace

COUNTING = 10**9  # announced steps of the first epoch, in which they are counted
EPOCHS = 2  # of a search: further epochs are worth more after the cut
FACTOR_LR = 0.02  # a trained model stands less than one at the start of its training
TRAVEL = 0.3  # see Supernet: what is due is pressed by the plan


def compress(
    model: nn.Module,
    example: Any,
    *,
    budget: Budget | str | float,
    fit: Callable[[nn.Module, Searcher[Structure]], Any] | None = None,
    epochs: int = EPOCHS,
    steps: int | None = None,
    channels: bool = True,
    branches: bool = True,
    config: SearchConfig | None = None,
    leaves: tuple[type[nn.Module], ...] = (),
    seed: int = 0,
) -> SearchResult[Structure]:
    """Bring a trained model to a budget: remove branches and channels while its weights train on.

    Args:
        model: any traceable module, trained. It is not changed.
        example: an input, a mapping of keyword arguments, or a tuple of inputs, of the size that
            the model will be used with; the budget is for one call with it.
        budget: upper bounds on the result; a text or number alone bounds multiply-adds: ``"50%"``
            of the model, ``"30M"``.
        fit: trains one epoch. It gets the model to train, in place of yours, and the searcher: its
            ``weights()`` are for your optimizer; ``searcher.step()`` follows the backward pass of a
            batch for the factors, after the weights' own step. None: what goes is decided by the
            weights alone.
        epochs: how often ``fit`` is called, >= 1. A short search is best, of about 80 steps of the
            searcher: epochs after the cut are worth more.
        steps: how often ``fit`` calls ``searcher.step()`` in an epoch. None: the first epoch counts
            them, and removes nothing.
        channels: whether channels may go, for which torch-pruning is needed.
        branches: whether inputs of sums and concatenations may go.
        config: how to search; of it ``lr``, ``schedule``, ``penalty``, ``normalise`` and
            ``hold_from`` act. None: a smaller ``lr`` than for a supernet that learns from scratch,
            and a penalty by which a factor without gradient moves by 0.3 in all.
        leaves: classes of modules to keep whole, where the code cannot be followed.
        seed: decides between factors that are equal.

    Returns:
        What was found: ``model``, an ordinary module with the weights, to be trained on and saved
        by ``save_model``; ``choices``, what is left; ``cost``, never above the budget.

    Raises:
        ValueError: before any training if the model cannot be traced, has nothing to remove, or
            cannot be brought to the budget; if ``fit`` never calls ``searcher.step()``, or calls
            ``searcher.finish()``.

    Warns:
        UserWarning: if ``fit`` called it less often than was known, so that factors had to be cut.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> result = compress(model, torch.zeros(1, 4), budget="50%")
        >>> result.cost, result.model(torch.zeros(1, 4)).shape
        (48.0, torch.Size([1, 2]))

    Source: arXiv 1811.01567, eq. 3-8; its penalty on what a structure costs, eq. 10.
    """
    given = _checked(budget, epochs, steps, counts=fit is not None)
    config = config or SearchConfig(lr=FACTOR_LR)
    supernet = scale_model(
        model, example, given, config, channels=channels, branches=branches, leaves=leaves
    )

    def begin(announced: int) -> Searcher[Structure]:
        return Searcher(supernet, budget=given, steps=announced, config=config, seed=seed)

    if fit is None:
        return begin(1).finish()
    searcher = begin(COUNTING if steps is None else steps * epochs)
    for epoch in range(epochs):
        if epoch == 1 and steps is None:
            searcher.optimizers.close()
            searcher = begin(searcher.done * (epochs - 1))
        before = searcher.done
        fit(supernet.model.train(), searcher)
        if searcher.finished:
            raise ValueError(
                "fit must leave the end of the search to compress, but called searcher.finish(): "
                "take that line out; compress returns what was found"
            )
        if searcher.done == before:
            raise ValueError(
                "fit must call searcher.step() after the backward pass of some batches, but never "
                "did: see dsonas.Searcher"
            )
    result = searcher.finish()
    if searcher.done < searcher.steps and result.removals.by_budget:
        warnings.warn(
            f"fit called searcher.step() {searcher.done} times, not {searcher.steps} as "
            f"{'its first epoch' if steps is None else 'steps='} said: what was not yet 0, "
            f"{result.removals.by_budget} factors, was cut off",
            stacklevel=2,
        )
    return result


def _checked(budget: Any, epochs: int, steps: int | None, *, counts: bool) -> Budget:
    """The budget, of which a text or number bounds multiply-adds; refuses what means nothing."""
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}: how often fit is called")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: calls of searcher.step() in fit")
    if counts and epochs == 1 and steps is None:
        raise ValueError("steps must be given for a single epoch: the first one only counts them")
    if isinstance(budget, int | float) and 0 < budget < 1:
        raise ValueError(
            f'budget must be a number of multiply-adds, or a share such as "{100 * budget:g}%", '
            f"got {budget}"
        )
    found = budget if isinstance(budget, Budget) else Budget(macs=budget)
    if not found.given:
        raise ValueError('budget must bound macs or params, such as "50%", got no bound')
    return found


def scale_model(
    model: nn.Module,
    example: Any,
    budget: Budget | None,
    config: SearchConfig,
    *,
    channels: bool = True,
    branches: bool = True,
    leaves: tuple[type[nn.Module], ...] = (),
) -> ScaledSupernet:
    """Make a supernet of a copy of a trained model: factors on its connections and channels.

    A concatenation that only batch normalisation reads has none on its inputs: they would get no
    gradient. Their channels have.
    """
    traced = copied(trace(model, example, leaves))
    found = find_channels(traced, example) if channels else None
    joins = find_joins(traced, example) if branches else []
    joins = [join for join in joins if not is_unfelt(traced, join[0])]
    if not joins and not (found and found.sizes):
        raise ValueError(
            "model must have something to remove, but no sums, concatenations or channels that can "
            "go were found: see the limits in docs/compress.md"
        )
    scale_joins(traced, joins)
    supernet = ScaledSupernet(traced, example, budget, config, channels=found)
    supernet.travel = TRAVEL
    return supernet
