"""What a study compares: its configuration, and the architectures that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from dsonas._utils import derive_seed
from dsonas.commands.comparison.work import search_work, training_work
from dsonas.cost import (
    Budget,
    InfeasibleBudgetError,
    architecture_cost,
    cost_function,
    fit_chain,
    fit_width,
)
from dsonas.data import ImageData
from dsonas.graph import SHARINGS, Architecture, SearchSpace
from dsonas.run import RunConfig
from dsonas.search import (
    HAND_MADE,
    first_accepted,
    hand_made,
    random_architectures,
    random_plan_result,
)

MAX_CANDIDATES = 1000


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study compares.

    Args:
        run: data, supernet, search and training, the same for all; its seed is the study's.
        budgets: what the networks must meet; at least one, each with a bound that is counted.
        spaces: ``share``, ``full`` or both.
        seeds: searches of each space, >= 1.
        train_seeds: trainings of each searched architecture, >= 0; 0 only searches.
        random: random architectures of each space, >= 0, each trained once.
        random_factors: architectures of the search's plan with random scaling factors, of each
            space, >= 0, each trained once; none where the search has no plan.
        random_searches: random searches of each space and budget, >= 0.
        hand_made: trainings of each hand-made network at each budget, >= 0.
        trial_epochs: length of the training of a random search's candidate, >= 1.
        held_out: share of the training images by which a random search chooses, in (0, 1).

    Raises:
        ValueError: if a value breaks its rule.
    """

    run: RunConfig
    budgets: tuple[Budget, ...]
    spaces: tuple[str, ...] = ("share",)
    seeds: int = 3
    train_seeds: int = 2
    random: int = 8
    random_factors: int = 8
    random_searches: int = 1
    hand_made: int = 3
    trial_epochs: int = 1
    held_out: float = 0.1

    def __post_init__(self) -> None:
        least = {"seeds": 1, "trial_epochs": 1}
        counts = ("train_seeds", "random", "random_factors", "random_searches", "hand_made")
        least |= dict.fromkeys(counts, 0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be above 0 and below 1, got {self.held_out}: try 0.1")
        if not self.spaces or not set(self.spaces) <= set(SHARINGS):
            raise ValueError(f"spaces must be names out of {SHARINGS}, got {list(self.spaces)}")
        if not self.budgets or not all(budget.bounds for budget in self.budgets):
            raise ValueError("budgets must be given: --budgets 1M,3M, or --budget.macs 1M")
        if any(budget.latency_ms is not None for budget in self.budgets):
            raise ValueError(
                "budget.latency_ms must be left out of a comparison, since a measured width is "
                "not repeatable: bound macs, params or memory_bytes"
            )
        for name in ("budgets", "spaces"):
            values = getattr(self, name)
            if len({str(value) for value in values}) < len(values):
                raise ValueError(f"{name} must not repeat a value, got {list(values)}")


def budget_label(budget: Budget) -> str:
    """A budget in a file name.

    Example:
        >>> budget_label(Budget(macs="1.5M")), budget_label(Budget(params=20000, macs=3e6))
        ('1.5M', '3M-20k-params')
    """
    parts = []
    for name, bound in budget.bounds.items():
        suffix = "" if name == "macs" else f"-{name}"
        parts.append(_short(bound) + suffix)
    return "-".join(parts)


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.12g}{suffix}"
    return f"{number:.12g}"


class Study:
    """A study of one data set.

    Args:
        config: what to compare.
        data: the images; only their number and shape matter here.
    """

    def __init__(self, config: StudyConfig, data: ImageData) -> None:
        self.config = config
        self.num_train, self.num_test = len(data.train), len(data.test)
        self.spaces: dict[str, SearchSpace] = {
            name: self.space_config(name).space(data) for name in config.spaces
        }
        self._random_factors: dict[str, list[Architecture]] = {}
        self._fitted: dict[tuple[tuple[Architecture, ...], Budget], Architecture] = {}

    def space_config(self, space: str) -> RunConfig:
        """The run configuration with one of the spaces."""
        run = self.config.run
        return replace(run, search=replace(run.search, space=space))

    def fit(self, chain: Sequence[Architecture], budget: Budget) -> Architecture:
        """What meets the budget: the fit that a search's result gets, for every kind of network.

        Args:
            chain: nested architectures of a search, largest first, or a single architecture; at
                any channels.
            budget: the bounds.

        Raises:
            InfeasibleBudgetError: if the fewest channels are too much already.
        """
        channels = next(iter(self.spaces.values())).skeleton.channels
        key = (tuple(member.with_channels(channels) for member in chain), budget)
        if key not in self._fitted:
            multiple = self.config.run.network.channel_multiple
            self._fitted[key] = fit_chain(key[0], budget, multiple=multiple)
        return self._fitted[key]

    def random(self, space: str) -> list[Architecture]:
        """The random architectures of a space, at the supernet's channels."""
        return list(islice(self._draw(space, "baseline"), self.config.random))

    def random_factors(self, space: str) -> list[Architecture]:
        """Architectures of the search's plan with random factors, at the supernet's channels."""
        if space not in self._random_factors:
            self._random_factors[space] = self._draw_random_factors(space)
        return self._random_factors[space]

    def _draw_random_factors(self, space: str) -> list[Architecture]:
        config = self.space_config(space).search
        if config.plan is None:
            return []
        measure, leading = cost_function(), self.config.budgets[0].leading
        seed = derive_seed(self.config.run.seed, "study", space, "random-factors")

        def drawn(index: int) -> Architecture:
            generator = torch.Generator().manual_seed(derive_seed(seed, index))
            return first_accepted(
                lambda: random_plan_result(
                    self.spaces[space], config, generator, lambda net: measure(net)[leading]
                ),
                self._meets_budgets,
            )

        return [drawn(index) for index in range(self.config.random_factors)]

    def hand_made(self) -> dict[str, Architecture]:
        """The hand-made architectures by kind, at the supernet's channels."""
        space = next(iter(self.spaces.values()))
        return {kind: hand_made(space, kind) for kind in HAND_MADE}

    def candidates(self, space: str, index: int, budget: Budget) -> list[Architecture]:
        """The candidates of a random search: as many as the cost of a search pays for.

        The last one may exceed that cost, so a random search never gets less than a search; two
        is the least, to have a choice.

        Raises:
            ValueError: if that would be more than a thousand.
        """
        left, found = self.search_work(space), []
        for architecture in islice(self._draw(space, f"candidates-{index}"), MAX_CANDIDATES):
            if left <= 0 and len(found) >= 2:
                break
            left -= self.trial_work(architecture, budget)
            found.append(architecture)
        if left > 0:
            raise ValueError(
                f"trial_epochs {self.config.trial_epochs} must be larger: more than "
                f"{MAX_CANDIDATES} trials so short would not cost as much as a search"
            )
        return found

    def search_work(self, space: str) -> int:
        """Counted multiply-adds of a search."""
        return search_work(self.spaces[space], self.space_config(space), self.num_train)

    def trial_work(self, architecture: Architecture, budget: Budget) -> int:
        """Counted multiply-adds of a candidate's trial."""
        config, macs = self.config, architecture_cost(self.fit([architecture], budget)).macs
        held_out = round(config.held_out * self.num_train)
        images, size = self.num_train - held_out, config.run.train.batch_size
        return training_work(macs, config.trial_epochs, images, size, held_out)

    def full_work(self, budget: Budget, architecture: Architecture | None = None) -> int:
        """Counted multiply-adds of a full training; an estimate if the architecture is not known.

        Args:
            budget: what the width is fitted to.
            architecture: what is trained.
        """
        if architecture is not None:
            macs = architecture_cost(self.fit([architecture], budget)).macs
        else:
            macs = self._macs_at(budget)
        train = self.config.run.train
        return training_work(macs, train.epochs, self.num_train, train.batch_size, self.num_test)

    def _macs_at(self, budget: Budget) -> int:
        """Of a network that meets a budget; at most those of the supernet if these are free."""
        space = next(iter(self.spaces.values()))
        return int(budget.macs or architecture_cost(space.complete()).macs)

    def _draw(self, space: str, purpose: str) -> Iterator[Architecture]:
        seed = derive_seed(self.config.run.seed, "study", space, purpose)
        return random_architectures(self.spaces[space], seed, accept=self._meets_budgets)

    def _meets_budgets(self, architecture: Architecture) -> bool:
        return all(self.meets(architecture, budget) for budget in self.config.budgets)

    def meets(self, architecture: Architecture, budget: Budget) -> bool:
        """Whether an architecture, with all its operations, meets a budget at some width."""
        multiple = self.config.run.network.channel_multiple
        try:
            fit_width(architecture, budget, multiple=multiple)
        except InfeasibleBudgetError:
            return False
        return True
