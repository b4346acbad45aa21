"""The small jobs that a study consists of, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dsonas._utils import derive_seed
from dsonas.commands.comparison.study import Study, budget_label
from dsonas.cost import architecture_cost
from dsonas.graph import Architecture

METHODS = ("searched", "random", "random_factors", "random_search", "hand_made")
RANKING_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One job of a study.

    Args:
        name: unique; also its folder.
        kind: ``search``, ``train``, ``trial`` (of a random search's candidate) or ``rank`` (random
            architectures judged by a pretrained supernet).
        method: one of ``METHODS``: whom its cost belongs to; empty for ``rank``.
        space: ``share`` or ``full``; empty for hand-made networks, which stand beside both.
        subject: name of the architecture that it finds or trains, or ranks the likes of.
        budget: position of the budget in the study; None where it plays no role.
        seed: of the job.
        needs: names of the jobs whose results it takes.
        work: counted multiply-adds of all its images; see ``comparison.work``.
    """

    name: str
    kind: str
    method: str = ""
    space: str = ""
    subject: str = ""
    budget: int | None = None
    seed: int = 0
    needs: tuple[str, ...] = ()
    work: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An architecture of a study.

    Args:
        name: also its file.
        method: one of ``METHODS``.
        space: ``share`` or ``full``; empty for hand-made networks.
        architecture: at the supernet's channels; None while it has yet to be found.
    """

    name: str
    method: str
    space: str = ""
    architecture: Architecture | None = None


def study_units(study: Study) -> list[Unit]:
    """All jobs of a study.

    The list depends on the study alone. Jobs of a smaller study (fewer seeds, spaces, budgets or
    random networks) keep their names in a larger one, so a study can be extended.
    """
    units = [*_searches(study), *_searched(study), *_random(study), *_hand_made(study)]
    return [*units, *_rankings(study), *_random_searches(study)]


def random_subjects(study: Study, space: str) -> list[Subject]:
    """The random architectures of a space."""
    return _subjects("random", space, study.random(space))


def random_factors_subjects(study: Study, space: str) -> list[Subject]:
    """The architectures of the search's plan with random factors."""
    return _subjects("random_factors", space, study.random_factors(space))


def _subjects(method: str, space: str, found: list[Architecture]) -> list[Subject]:
    name = f"{method.replace('_', '-')}-{space}"
    return [
        Subject(name=f"{name}-{i:03}", method=method, space=space, architecture=item)
        for i, item in enumerate(found)
    ]


def hand_made_subjects(study: Study) -> list[Subject]:
    """The hand-made architectures."""
    return [
        Subject(name=f"hand-made-{kind}", method="hand_made", architecture=item)
        for kind, item in study.hand_made().items()
    ]


def candidate_subjects(study: Study, space: str, index: int, budget: int) -> list[Subject]:
    """The candidates of a random search."""
    bounds = study.config.budgets[budget]
    name = f"candidate-{space}-{index}-{budget_label(bounds)}"
    return [
        Subject(name=f"{name}-{i:03}", method="random_search", space=space, architecture=item)
        for i, item in enumerate(study.candidates(space, index, bounds))
    ]


def known_subjects(study: Study) -> list[Subject]:
    """All architectures that are known before the first job."""
    found = hand_made_subjects(study)
    for space in study.spaces:
        found += random_subjects(study, space)
        found += random_factors_subjects(study, space)
        for budget in range(len(study.config.budgets)):
            for index in range(study.config.random_searches):
                found += candidate_subjects(study, space, index, budget)
    return found


def _searches(study: Study) -> Iterator[Unit]:
    """One search serves all budgets: their bounds do not steer it, only the width that follows."""
    for index in range(study.config.seeds):
        for space in study.spaces:
            yield Unit(
                name=f"search-{space}-{index}",
                kind="search",
                method="searched",
                space=space,
                subject=f"searched-{space}-{index}",
                seed=study.config.run.seed + index,
                work=study.search_work(space),
            )


def _searched(study: Study) -> Iterator[Unit]:
    for index in range(study.config.seeds):
        for space in study.spaces:
            subject = Subject(name=f"searched-{space}-{index}", method="searched", space=space)
            for budget in range(len(study.config.budgets)):
                needs, count = (f"search-{space}-{index}",), study.config.train_seeds
                yield from _trainings(study, subject, budget, count, needs)


def _random(study: Study) -> Iterator[Unit]:
    for space in study.spaces:
        for subject in (*random_subjects(study, space), *random_factors_subjects(study, space)):
            for budget in range(len(study.config.budgets)):
                yield from _trainings(study, subject, budget, 1)


def _hand_made(study: Study) -> Iterator[Unit]:
    """Fixed architectures, so that only trainings vary; none where no width meets the budget."""
    for subject in hand_made_subjects(study):
        assert subject.architecture is not None
        for budget, bounds in enumerate(study.config.budgets):
            if not study.meets(subject.architecture, bounds):
                continue
            yield from _trainings(study, subject, budget, study.config.hand_made)


def _trainings(
    study: Study, subject: Subject, budget: int, count: int, needs: tuple[str, ...] = ()
) -> Iterator[Unit]:
    bounds = study.config.budgets[budget]
    label = budget_label(bounds)
    for index in range(count):
        yield Unit(
            name=f"train-{subject.name}-at-{label}-{index}",
            kind="train",
            method=subject.method,
            space=subject.space,
            subject=subject.name,
            budget=budget,
            seed=_seed(study, subject.name, label, index),
            needs=needs,
            work=study.full_work(bounds, subject.architecture),
        )


def _seed(study: Study, *parts: int | str) -> int:
    """A seed that no other training has; 31 bits, to be readable in a command."""
    return derive_seed(study.config.run.seed, "study", *parts) % 2**31


def _rankings(study: Study) -> Iterator[Unit]:
    """The pretrained supernet of each space's first search judges all random architectures."""
    if study.config.random < 3 or study.config.run.pretrain.epochs == 0:
        return
    for space, searched in study.spaces.items():
        macs = architecture_cost(searched.complete()).macs
        images = min(RANKING_IMAGES, study.num_train)
        yield Unit(
            name=f"rank-{space}-{study.config.random}",
            kind="rank",
            space=space,
            subject=f"random-{space}",
            seed=study.config.run.seed,
            needs=(f"search-{space}-0",),
            work=macs * images * study.config.random,
        )


def _random_searches(study: Study) -> Iterator[Unit]:
    """The trials of each random search, then the trainings of the candidate that it keeps."""
    for space in study.spaces:
        for budget, bounds in enumerate(study.config.budgets):
            label = budget_label(bounds)
            for index in range(study.config.random_searches):
                trials = list(_trials(study, space, index, budget))
                yield from trials
                name = f"random-search-{space}-{index}-{label}"
                kept = Subject(name=name, method="random_search", space=space)
                needs = tuple(trial.name for trial in trials)
                yield from _trainings(study, kept, budget, study.config.train_seeds, needs)


def _trials(study: Study, space: str, index: int, budget: int) -> Iterator[Unit]:
    bounds = study.config.budgets[budget]
    for subject in candidate_subjects(study, space, index, budget):
        assert subject.architecture is not None
        yield Unit(
            name=f"trial-{subject.name}",
            kind="trial",
            method="random_search",
            space=space,
            subject=subject.name,
            budget=budget,
            seed=_seed(study, subject.name),
            work=study.trial_work(subject.architecture, bounds),
        )
