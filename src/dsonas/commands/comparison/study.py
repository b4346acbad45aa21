"""What a study compares: its configuration, and the architectures, jobs and costs that follow.

Cost is counted, in multiply-adds of all images: a training image counts three times (forward, and
backward for features and weights), an evaluated one once. It needs no clock, so it is the same on
every machine; a random search gets as much of it as a search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice, product, zip_longest
from typing import NamedTuple

import torch

from dsonas._utils import derive_seed
from dsonas.commands.comparison.jobs import Unit
from dsonas.cost import (
    Budget,
    InfeasibleBudgetError,
    architecture_cost,
    exact_measures,
    fit_chain,
    fit_width,
    with_width,
)
from dsonas.data import ImageData
from dsonas.graph import SHARINGS, Architecture, SearchSpace
from dsonas.run import GROWTH, RunConfig, fitting_batch, part_sizes
from dsonas.search import (
    HAND_MADE,
    alternation,
    first_accepted,
    hand_made,
    planned_cost,
    random_architectures,
    random_plan_result,
    weight_steps_per_factor_step,
)

METHODS = ("searched", "random", "random_factors", "random_search", "hand_made")
RANKING_IMAGES = 5000
MAX_CANDIDATES = 1000
PASSES = 3  # of a training image


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study compares.

    Args:
        run: data, supernet, search and training, the same for all; its seed is the study's.
        budgets: what the networks must meet; at least one, each with a bound that is counted.
        spaces: ``share``, ``full`` or both.
        seeds: searches of each space
        train_seeds: trainings of each architecture that a search or a random search has found
        random: random architectures of each space, each trained once at each budget
        random_factors: networks of the search's plan with random scaling factors, the same
        random_searches: random searches of each space and budget
        hand_made: trainings of each hand-made network at each budget
        trial_epochs: epochs of a random search's trials
        held_out: share of the training images by which a random search chooses

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
        counts = ("train_seeds", "random", "random_factors", "random_searches", "hand_made")
        for name in ("seeds", "trial_epochs", *counts):
            least = 0 if name in counts else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
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
        names = {"budgets": [budget_label(one) for one in self.budgets], "spaces": self.spaces}
        for name, values in names.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not repeat a value, got {','.join(values)}")


def budget_label(budget: Budget) -> str:
    """Name a budget in a file name.

    Example:
        >>> budget_label(Budget(macs="1.5M")), budget_label(Budget(params=20000, macs=3e6))
        ('1.5M', '3M-20k-params')
    """
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
    parts = []
    for name, bound in budget.bounds.items():
        size, suffix = next((one for one in sizes if bound >= one[0]), sizes[-1])
        parts.append(f"{bound / size:.12g}{suffix}{'' if name == 'macs' else f'-{name}'}")
    return "-".join(parts)


def training_work(
    macs: int, epochs: int, num_train: int, batch_size: int, num_evaluated: int
) -> int:
    """Count the multiply-adds of training a network and evaluating it once.

    Example:
        >>> training_work(1000, 2, 100, 32, 10)  # 2 * 96 images count three times
        586000
    """
    seen = epochs * (num_train // batch_size * batch_size)
    return macs * (PASSES * seen + num_evaluated)


class Subject(NamedTuple):
    """What is trained at every budget that it meets."""

    name: str
    method: str
    space: str  # share or full; none of hand-made networks, which stand beside both
    trainings: int
    net: Architecture | None = None  # while it has yet to be found
    needs: tuple[str, ...] = ()  # names of the jobs that find it


class Study:
    """The architectures, jobs and costs of a study of one data set, of which the size matters.

    They depend on configuration and data alone. A smaller study (fewer seeds, spaces, budgets or
    random networks) has the same names, so it can be extended. Architectures are at the supernet's
    channels, until a job fits them to its budget.
    """

    def __init__(self, config: StudyConfig, data: ImageData) -> None:
        self.config, self.seed = config, config.run.seed
        self.num_train, self.num_test = len(data.train), len(data.test)
        self.num_held_out = round(config.held_out * self.num_train)
        if config.random_searches and not 1 <= self.num_held_out <= self.num_train - 2:
            raise ValueError(
                f"held_out must leave images to both parts, got {config.held_out}, which is "
                f"{self.num_held_out} of {self.num_train} training images: try 0.1"
            )
        self.labels = [budget_label(budget) for budget in config.budgets]
        self.spaces: dict[str, SearchSpace] = {
            name: self.space_config(name).space(data) for name in config.spaces
        }
        self.supernet = next(iter(self.spaces.values())).complete()
        network = config.run.network  # the supernet as wide as a network may become
        self.widest = with_width(self.supernet, GROWTH, network.channel_multiple)
        options = {"multiple": network.channel_multiple, "growth": GROWTH}
        # brings an architecture to a budget, as the result of a search
        self.fit = cache(lambda net, budget: fit_chain([net], budget, **options))

    def space_config(self, space: str) -> RunConfig:
        """The run configuration with one of the spaces."""
        run = self.config.run
        return replace(run, search=replace(run.search, space=space))

    def meets(self, architecture: Architecture, *budgets: Budget) -> bool:
        """Whether an architecture, with all its operations, meets budgets at some width."""
        multiple = self.config.run.network.channel_multiple
        try:
            for budget in budgets or self.config.budgets:
                fit_width(architecture, budget, multiple=multiple)
        except InfeasibleBudgetError:
            return False
        return True

    def _draw(self, space: str, purpose: str) -> Iterator[Architecture]:
        seed = derive_seed(self.seed, "study", space, purpose)
        return random_architectures(self.spaces[space], seed, accept=self.meets)

    def random(self, space: str) -> list[Architecture]:
        """Draw the random architectures of a space."""
        return list(islice(self._draw(space, "baseline"), self.config.random))

    def random_factors(self, space: str) -> list[Architecture]:
        """Follow the search's plan with random scaling factors; nothing if it has no plan."""
        config = self.space_config(space).search
        cost = exact_measures()[self.config.budgets[0].leading]
        seed, found = derive_seed(self.seed, "study", space, "random-factors"), []
        for index in range(0 if config.keep_cost is None else self.config.random_factors):
            generator = torch.Generator().manual_seed(derive_seed(seed, index))
            options = self.spaces[space], config, generator, cost
            found.append(first_accepted(partial(random_plan_result, *options), self.meets))
        return found

    def candidates(self, space: str, index: int, budget: Budget) -> list[Architecture]:
        """Draw the candidates of a random search: as many as the cost of a search pays for.

        The last one may exceed that cost, so a random search never gets less than a search; two
        is the least, to have a choice. ValueError if that would be more than a thousand.
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
        """Count the multiply-adds of pretraining and search, the cost following the plan.

        Where nothing is planned, the whole supernet counts until the end.
        """
        config, supernet = self.space_config(space), self.spaces[space].complete()
        search, whole = config.search, architecture_cost(supernet).macs
        weights, factors = part_sizes(config, self.num_train)
        size = config.pretrain.batch_size
        total = PASSES * config.pretrain.epochs * (weights // size * size) * whole
        size, ratio = search.batch_size, weight_steps_per_factor_step(config.data.factor_split)
        images = size * len(alternation(weights // size, factors // size, ratio))
        for epoch in range(search.epochs):
            rebuilt = epoch // search.rebuild_every * search.rebuild_every
            macs = whole
            if search.keep_cost is not None:
                macs = planned_cost(search, rebuilt / search.epochs, supernet)
            total += round(PASSES * images * macs)
        return total

    def trial_work(self, architecture: Architecture, budget: Budget) -> int:
        """Count the multiply-adds of a candidate's trial."""
        config, macs = self.config, architecture_cost(self.fit(architecture, budget)).macs
        images = self.num_train - self.num_held_out
        size = fitting_batch(config.run.train.batch_size, images)
        return training_work(macs, config.trial_epochs, images, size, self.num_held_out)

    def full_work(self, budget: Budget, architecture: Architecture | None = None) -> int:
        """Count the multiply-adds of a full training; at most those if it is not known of what."""
        if architecture is not None:
            macs = architecture_cost(self.fit(architecture, budget)).macs
        else:
            known = budget.macs or architecture_cost(self.supernet).macs
            macs = int(min(known, architecture_cost(self.widest).macs))
        train = self.config.run.train
        return training_work(macs, train.epochs, self.num_train, train.batch_size, self.num_test)

    @cached_property
    def subjects(self) -> list[Subject]:
        """What is trained of searches, random and hand-made networks."""
        config, found = self.config, []
        for index, space in product(range(config.seeds), self.spaces):
            name, needs = f"searched-{space}-{index}", (f"search-{space}-{index}",)
            found.append(Subject(name, "searched", space, config.train_seeds, needs=needs))
        for space in self.spaces:
            for name, net in numbered(f"random-{space}", self.random(space)).items():
                found.append(Subject(name, "random", space, 1, net))
            drawn = numbered(f"random-factors-{space}", self.random_factors(space))
            found += [Subject(name, "random_factors", space, 1, net) for name, net in drawn.items()]
        for kind in HAND_MADE:
            net = hand_made(next(iter(self.spaces.values())), kind)
            found.append(Subject(f"hand-made-{kind}", "hand_made", "", config.hand_made, net))
        return found

    @cached_property
    def random_searches(self) -> list[tuple[str, int, str, dict[str, Architecture]]]:
        """Space, position of the budget, name and candidates of each random search."""
        found, budgets = [], self.config.budgets
        searches = range(self.config.random_searches)
        for space, at, index in product(self.spaces, range(len(budgets)), searches):
            name = f"{space}-{index}-{self.labels[at]}"
            candidates = self.candidates(space, index, budgets[at])
            found.append((space, at, name, numbered(f"candidate-{name}", candidates)))
        return found

    @property
    def known(self) -> dict[str, Architecture]:
        """All architectures that are there before the first job, by name."""
        known = {subject.name: subject.net for subject in self.subjects if subject.net}
        candidates = [candidates for *_, candidates in self.random_searches]
        return {name: net for some in (known, *candidates) for name, net in some.items()}

    @cached_property
    def units(self) -> list[Unit]:
        """All jobs, none before one that it needs.

        Kinds of networks take turns, so that a study that is stopped half-way has some of each.
        """
        config, budgets = self.config, self.config.budgets
        units = [
            # one for all budgets: their bounds do not steer it, only the width that follows
            Unit(name=f"search-{space}-{index}", kind="search", method="searched", space=space,
                 subject=f"searched-{space}-{index}", seed=self.seed + index,
                 work=self.search_work(space))
            for index, space in product(range(config.seeds), self.spaces)
        ]  # fmt: skip
        by_kind: dict[tuple[str, str, int], list[Unit]] = defaultdict(list)
        for subject, at in product(self.subjects, range(len(budgets))):
            if subject.net is None or self.meets(subject.net, budgets[at]):
                by_kind[subject.method, subject.space, at] += self._trainings(subject, at)
        units += [unit for turn in zip_longest(*by_kind.values()) for unit in turn if unit]
        if config.random >= 3 and config.run.pretrain.epochs > 0:
            units += [self._ranking(space) for space in self.spaces]
        for space, at, name, candidates in self.random_searches:
            trials = [
                Unit(name=f"trial-{subject}", kind="trial", method="random_search", space=space,
                     subject=subject, budget=at, seed=self._seed_of(subject),
                     work=self.trial_work(net, budgets[at]))
                for subject, net in candidates.items()
            ]  # fmt: skip
            kept, needs = f"random-search-{name}", tuple(trial.name for trial in trials)
            subject = Subject(kept, "random_search", space, config.train_seeds, needs=needs)
            units += [*trials, *self._trainings(subject, at)]
        return units

    def _trainings(self, subject: Subject, at: int) -> Iterator[Unit]:
        for index in range(subject.trainings):
            yield Unit(
                name=f"train-{subject.name}-at-{self.labels[at]}-{index}", kind="train",
                method=subject.method, space=subject.space, subject=subject.name, budget=at,
                seed=self._seed_of(subject.name, self.labels[at], index), needs=subject.needs,
                work=self.full_work(self.config.budgets[at], subject.net),
            )  # fmt: skip

    def _ranking(self, space: str) -> Unit:
        """The pretrained supernet of the space's first search judges all random architectures."""
        macs, count = architecture_cost(self.spaces[space].complete()).macs, self.config.random
        return Unit(
            name=f"rank-{space}-{count}", kind="rank", space=space, subject=f"random-{space}",
            seed=self.seed, needs=(f"search-{space}-0",),
            work=macs * min(RANKING_IMAGES, self.num_train) * count,
        )  # fmt: skip

    def _seed_of(self, *parts: int | str) -> int:
        """A seed that no other training has; 31 bits, to be readable in a command."""
        return derive_seed(self.seed, "study", *parts) % 2**31


def numbered(name: str, found: Sequence[Architecture]) -> dict[str, Architecture]:
    """Name architectures one by one."""
    return {f"{name}-{i:03}": net for i, net in enumerate(found)}
