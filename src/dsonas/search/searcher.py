"""One search for every supernet: the proximal step on scaling factors, and removal under a plan.

A ``Searcher`` steps like an optimizer in the user's own loop. What it drives is a ``Supernet``: our
blocks, a model with ``LayerChoice`` and ``InputChoice``, or one that ``scale_connections`` has
prepared. Penalty, alternation, plan, removal and budget exist here once, for all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, fx, nn

from dsonas._utils import mask_like
from dsonas.cost import Budget, exact_measures
from dsonas.nn import Network
from dsonas.search.block_supernet import BlockSupernet
from dsonas.search.choice_supernet import ChoiceSupernet
from dsonas.search.optimizer_watch import OptimizerWatch
from dsonas.search.ranking import Ranking
from dsonas.search.scaled_supernet import ScaledSupernet
from dsonas.search.search_config import CLIP, MOMENTUM, SearchConfig
from dsonas.search.showing import result_html
from dsonas.search.supernets import S, Supernet
from dsonas.sparse import (
    Choices,
    ProximalNAG,
    choices_of,
    mask_factors,
    save_choices,
    scaling_factors,
    unwrap,
)
from dsonas.train import Processes, restore, running, set_lr

logger = logging.getLogger(__name__)

FADE, FADE_STEP, FADE_MOST = 2.0, 1.5, 100.0  # see Searcher.penalty_scale
HORIZON = 4  # rebuilds that the plan is followed ahead
REBUILDS = 20  # at least, under a plan
LEAST_STEPS = 3  # between two rebuilds under a plan, for a factor to gather speed
LISTENING = 0.02  # of the learning rate, before it is judged what goes
CHECK_EVERY = 25  # steps between two looks at whether gradients are finite, on an accelerator


def idle_steps(steps: int) -> float:
    """Count how often a factor without gradient, from rest, moves by ``lr * Gamma`` in some steps.

    Example:
        >>> round(idle_steps(1), 2), round(idle_steps(100) - idle_steps(99), 2)
        (1.9, 10.0)
    """
    return sum((1 - MOMENTUM ** (k + 1)) / (1 - MOMENTUM) for k in range(1, steps + 1))


class NotFiniteError(ValueError):
    """A gradient is infinite or no number."""


@dataclass
class Removals:
    """How many factors have gone.

    Args:
        by_penalty: exactly 0 when they went.
        by_budget: not 0 when they went.
    """

    by_penalty: int = 0
    by_budget: int = 0


@dataclass
class SearchResult(Generic[S]):
    """What a search found.

    Args:
        model: the final network, with the weights of the search.
        choices: the names that are left, by label.
        cost: of the network, in the measure that the budget bounds first.
        structure: what is left, as the kind of supernet has it.
        removals: how many factors have gone, and whether they were 0.
        supernet: what there was to choose from; None: not known.
        supernet_cost: what that costs.
        budget: as it was given; None: there was none.

    Example:
        >>> model, chosen = nn.Sequential(nn.Linear(2, 2)), Choices({"layer": ["linear"]})
        >>> SearchResult(model, chosen, 4.0, chosen, Removals(by_penalty=1)).choices
        {'layer': ['linear']}
    """

    model: nn.Module
    choices: Choices
    cost: float
    structure: S
    removals: Removals
    supernet: S | None = None
    supernet_cost: float | None = None
    budget: Budget | None = None

    def _repr_html_(self) -> str:
        """Show choices, blocks, and cost against budget in a notebook."""
        budget, whole = self.budget or Budget(), self.supernet_cost
        bounds = budget.of(lambda name: whole or self.cost).bounds
        costs = (budget.leading, self.cost, bounds.get(budget.leading), whole)
        return result_html(self.choices, self.supernet, self.structure, costs)

    def save(self, path: str | Path) -> None:
        """Write the choices and the weights of the final network to one file.

        ``apply_choices(model, path)`` reads it, for a fresh instance of the model's class.
        """
        save_choices(path, self.choices, self.model)


class Searcher(Generic[S]):
    """Step the scaling factors of a supernet in the user's own loop, and remove what is 0.

    The user trains ``weights()`` with an optimizer of theirs, on one part of the data. After the
    backward pass of a batch of another part, ``step()`` does a proximal step of the factors,
    normalises them and, when it is due, removes parts of the supernet physically.

    Args:
        model: a supernet, see ``supernet_of``.
        example: an input, a mapping of keyword arguments, or a tuple of inputs, by which costs are
            counted; our own ``Network`` needs none. A model with choices needs one if its
            ``state_dict`` is to be loaded, for the normalisations of its candidates are made by it.
        budget: upper bounds on the result; shares are of the supernet. None for our own
            ``Network``, which meets one by its width: ``fit_width``.
        steps: how often ``step`` will be called, >= 1.
        config: how to search; its ``epochs`` and ``rebuild_every`` say how often to rebuild.
        seed: decides between factors that are equal.
        cost: a function of a structure to a number, in the measure that the budget bounds first;
            for a budget on another network than the one searched. None: counted.
        processes: those that search together; None: those of the process group, if the script has
            made one. The first decides for all.

    Attributes:
        penalty: gamma, the strength of the L1 penalty on factors.
        penalty_scale: under a plan, how often a factor without gradient would travel its distance
            to 0 until it is due; it grows while the zeros lag behind the plan. Without one, 1.
        live: the structure now.
        removals: how many factors have gone, and whether they were 0.
        passed: the structures that the search has passed through, from the supernet on.

    Raises:
        ValueError: if the model is no supernet, the budget is below its cheapest structure, or
            ``cost`` gives no number.

    Example:
        >>> from dsonas.sparse import LayerChoice
        >>> layer = LayerChoice({"linear": nn.Linear(2, 2), "skip": nn.Identity()}, label="layer")
        >>> model = nn.Sequential(layer, nn.Linear(2, 1))
        >>> searcher = Searcher(model, torch.zeros(1, 2), budget=Budget(macs=5), steps=20)
        >>> optimizer = torch.optim.SGD(searcher.weights(), lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.rand(8, 2)).square().mean().backward()
        ...     optimizer.step()
        ...     model(torch.rand(8, 2)).square().mean().backward()
        ...     searcher.step()
        >>> dict(searcher.finish().choices)
        {'layer': ['skip']}

    Source: arXiv 1811.01567, eq. 5-8.
    """

    def __init__(
        self,
        model: nn.Module | Supernet[S],
        example: Any = None,
        *,
        budget: Budget | None = None,
        steps: int,
        config: SearchConfig | None = None,
        seed: int = 0,
        cost: Callable[[S], float] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}: how often step() is called")
        self.config, self.steps = config or SearchConfig(), steps
        self.processes = processes or running()
        self.supernet: Supernet[S] = supernet_of(model, example, budget, self.config, cost, seed)
        self.budget = budget
        given = self.config.penalty
        idle = self.supernet.travel * (1 - MOMENTUM) / (self.config.lr * steps)
        self.penalty = idle if given is None else given
        self._ranking = Ranking(self.supernet.vectors())
        planned = self.supernet.planned(0, self._ranking.values) is not None
        self.penalty_scale = FADE if planned else 1.0
        self.done, self.finished = 0, False
        self.removals = Removals()
        self.passed: list[S] = [self.supernet.live]
        self._staying: S = self.supernet.live
        self._bad: Tensor | None = None
        self._rebuilds = self._rebuild_steps(planned)
        self._schedule = self.config.learning_rate(max(1, steps // self.config.epochs))
        self.optimizer = ProximalNAG(
            [{"params": [vector]} for vector in self.supernet.vectors()],
            lr=self.config.lr,
            penalty=self.penalty,
            momentum=MOMENTUM,
            clip=CLIP,
        )
        self._press(self.penalty)
        self._parameters = list(self.supernet.model.parameters())
        self.optimizers = OptimizerWatch(self)

    def _rebuild_steps(self, planned: bool) -> list[int]:
        """The steps after which to rebuild: as often as configured, under a plan not too rarely."""
        config = self.config
        if not planned:
            epochs = [e for e in range(1, config.epochs + 1) if config.rebuilds_after(e)]
            return [round(self.steps * epoch / config.epochs) for epoch in epochs]
        count = max(REBUILDS, config.epochs // config.rebuild_every)
        count = max(1, min(count, self.steps // LEAST_STEPS))
        return [round(self.steps * i / count) for i in range(1, count + 1)]

    @property
    def live(self) -> S:
        """The structure now."""
        return self.supernet.live

    def cost(self) -> float:
        """Compute what the live structure costs, in the measure that the budget bounds first."""
        return self.supernet.cost(self.supernet.live)

    def weights(self) -> list[nn.Parameter]:
        """List every parameter that is trained and no scaling factor: for the user's optimizer."""
        factors = {id(vector) for vector in self.supernet.vectors()}
        return [
            parameter
            for parameter in self.supernet.parameters()
            if id(parameter) not in factors and parameter.requires_grad
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The factors as an optimizer has them: by it ``GradScaler.step(searcher)`` unscales."""
        return self.optimizer.param_groups

    def step(self, *, lr: float | None = None) -> None:
        """Update the scaling factors by the gradients of a factor batch; rebuild when it is due.

        All gradients of the model are cleared: a factor batch must not move the weights.

        Args:
            lr: the learning rate; None takes that of ``config``.

        Raises:
            ValueError: if no backward pass came before, a gradient is not finite, or the search
                has come to its end.
        """
        if self.finished or self.done >= self.steps:
            reason = "finish() was called" if self.finished else f"all {self.steps} steps are done"
            raise ValueError(
                f"step() must come before the end of the search, but {reason}: say by steps= how "
                "often it will be called"
            )
        gradients = [v.grad for v in self.supernet.vectors() if v.grad is not None]
        if not gradients:
            raise ValueError(
                "step() must follow the backward pass of a batch for the scaling factors, but they "
                "have no gradients: call loss.backward() after the last step of the weights"
            )
        self.processes.average(gradients)
        self._check_finite(gradients)
        lr = self._schedule(self.done) if lr is None else lr
        set_lr(self.optimizer, LISTENING * lr if self._listens() else lr)
        self.optimizer.step()
        self._ranking.pull(lr / (1 - MOMENTUM))
        for parameter in self._parameters:
            parameter.grad = None
        if self.config.normalise:
            self.supernet.normalise(self.optimizer, self._staying)
        self.done += 1
        if self.done in self._rebuilds:
            self._rebuild()

    def _check_finite(self, gradients: list[Tensor]) -> None:
        """Refuse gradients that are not finite, without making an accelerator wait each time."""
        finite = torch.cat([gradient.flatten() for gradient in gradients]).sum().isfinite()
        self._bad = ~finite if self._bad is None else self._bad | ~finite
        due = finite.device.type == "cpu" or self.done % CHECK_EVERY == 0
        if due and self._bad.item():
            raise NotFiniteError(
                "gradients of the scaling factors must be finite numbers, got nan or inf: lower "
                "the learning rates, or check the loss and its inputs"
            )

    def _rebuild(self) -> None:
        """Remove what is exactly 0 and, under a plan, due; press on what is due later."""
        progress = self.done / self.steps
        self.processes.align(self.supernet.model)  # so that all come to the same decision
        if self._listens():
            return
        if self.supernet.judged is None:
            self._ranking.settle(last=self.done >= self.steps)
        else:
            self._ranking.held = True
        planned = self.supernet.planned(progress, self._ranking.values)
        if planned is None or self.done < self.steps:
            self._remove(self.supernet.alive(planned))
        else:
            self._remove(planned)
        self._press(self.penalty)
        self._staying = self.live
        if planned is not None:
            lags = self.live != planned
            scale = self.penalty_scale * (FADE_STEP if lags else 1 / FADE_STEP)
            self.penalty_scale = min(FADE_MOST, max(FADE, scale))
            self._steer()

    def _steer(self) -> None:
        """Press what the plan removes so strongly that it is exactly 0 when it is due.

        The plan is followed some rebuilds ahead by today's ranks. Without a gradient, a factor
        would travel ``penalty_scale`` times its distance to 0 in the time that is left; a gradient
        may hold it, and then another one is due at the next look.
        """
        groups, vectors = self.optimizer.param_groups, self.supernet.vectors()
        if self.penalty == 0:
            return
        pressed = [torch.zeros_like(vector) for vector in self._ranking.values]
        later = [step for step in self._rebuilds if step > self.done]
        for step in (later or [self.steps + 1])[:HORIZON]:
            planned = self.supernet.planned(step / self.steps, self._ranking.values)
            assert planned is not None
            travel = self._schedule(self.done) * idle_steps(step - self.done)
            flags = self.supernet.flags(planned)
            rows = zip(groups, vectors, flags, pressed, strict=True)
            for group, vector, stays, fades in rows:
                goes = 1 - mask_like(stays, vector)
                fades.add_(goes)
                fading = self.penalty_scale * vector.detach() / travel * goes
                group["penalty"] = torch.maximum(
                    fading, torch.as_tensor(group["penalty"]).to(fading)
                )
            self._staying = planned
        self._ranking.pressed = pressed

    def _listens(self) -> bool:
        """Whether it is still to be judged what goes: nothing is pressed, factors hardly move."""
        return self.supernet.judged is not None and self.done < self.supernet.judged * self.steps

    def _press(self, gamma: float) -> None:
        rows = self.supernet.penalties(0.0 if self._listens() else gamma)
        for group, row in zip(self.optimizer.param_groups, rows, strict=True):
            group["penalty"] = row

    def _remove(self, structure: S) -> None:
        """Remove what a structure lacks, in all processes what the first has chosen."""
        structure = self.processes.decide(lambda: structure)
        before = self.supernet.flags(self.live)
        after = self.supernet.flags(structure)
        for vector, old, new in zip(self.supernet.vectors(), before, after, strict=True):
            gone = [
                value
                for value, was, stays in zip(vector.tolist(), old, new, strict=True)
                if was and not stays
            ]
            self.removals.by_penalty += gone.count(0.0)
            self.removals.by_budget += len(gone) - gone.count(0.0)
        self.supernet.remove(structure, self.optimizers)
        mask_factors(self.supernet.vectors(), after, self.optimizer)
        self._ranking.drop(after)
        self._list_parameters()
        if self.live != self.passed[-1]:
            self.passed.append(self.live)

    def _list_parameters(self) -> None:
        """List the parameters after a removal: to walk the model at every step takes long."""
        self._parameters = list(self.supernet.model.parameters())
        self.optimizers.refresh()

    def finish(self) -> SearchResult[S]:
        """End the search: cut what the budget does not allow, and make the final network.

        Called before the structure is held, it cuts by what is known until then, and says so in the
        log.

        Returns:
            What was found; the supernet stays as it is.
        """
        if not self.finished:
            if self.done < self.config.hold_from * self.steps and self.steps > 1:
                logger.warning(
                    "finish() came after %d of %d steps, before the search had decided: what is "
                    "left was cut, not found; call step() as often as steps= says",
                    self.done,
                    self.steps,
                )
            self._ranking.settle(last=True)
            planned = self.supernet.planned(1.0, self._ranking.values)
            self._remove(self.supernet.alive() if planned is None else planned)
            self.finished = True
            self.optimizers.close()
        return SearchResult(
            model=self.supernet.final(),
            choices=self.supernet.choices(),
            cost=self.cost(),
            structure=self.live,
            removals=self.removals,
            supernet=self.passed[0],
            supernet_cost=self.supernet.cost(self.passed[0]),
            budget=self.budget,
        )

    def state_dict(self) -> dict[str, Any]:
        """Collect what the search has changed, besides the user's model and optimizer.

        Load it into a new searcher of a fresh model before the model's and the optimizer's states,
        for it removes what had been removed.
        """
        return {
            "live": self.supernet.to_state(self.live),
            "passed": [self.supernet.to_state(structure) for structure in self.passed],
            "done": self.done,
            "penalty_scale": self.penalty_scale,
            "staying": self.supernet.to_state(self._staying),
            "removals": [self.removals.by_penalty, self.removals.by_budget],
            "factors": [vector.detach().clone() for vector in self.supernet.vectors()],
            "ranking": self._ranking.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict`` into a searcher of a supernet that is still complete.

        Raises:
            ValueError: if the state is of another supernet, or of another version of dsonas.
        """
        if differing := state.keys() ^ self.state_dict().keys():
            raise ValueError(
                "the state must be of this version of dsonas, which saves other parts than it has "
                f"({', '.join(sorted(differing))}): go on with the version that saved it, or "
                "begin the search anew"
            )
        vectors = self.supernet.vectors()
        shapes = [tuple(values.shape) for values in state["factors"]]
        if shapes != [tuple(vector.shape) for vector in vectors]:
            raise ValueError("the state must be of the same supernet, but its factors are others")
        self.supernet.remove(self.supernet.from_state(state["live"]), self.optimizers)
        self.passed = [self.supernet.from_state(value) for value in state["passed"]]
        self.done, self.penalty_scale = int(state["done"]), float(state["penalty_scale"])
        self._staying = self.supernet.from_state(state["staying"])
        self.removals = Removals(*state["removals"])
        for vector, values in zip(vectors, state["factors"], strict=True):
            vector.copy_(values)
        self._ranking.load_state_dict(state["ranking"])
        restore(self.optimizer, state["optimizer"])
        self._list_parameters()


def supernet_of(
    model: Any,
    example: Any,
    budget: Budget | None,
    config: SearchConfig,
    cost: Callable[[Any], float] | None,
    seed: int,
) -> Any:
    """Make the ``Supernet`` of a model, or take the one that is given.

    Raises:
        ValueError: if it is none, or a budget is given for our own blocks.
    """
    if not isinstance(model, nn.Module):
        return model
    model = unwrap(model)
    cost = cost and _numbers(cost)
    if choices_of(model):
        return ChoiceSupernet(model, example, budget, config, cost, seed)
    if isinstance(model, Network):
        if budget is not None and budget.given:
            raise ValueError(
                f"budget.{budget.leading} of our own blocks is met by their width, which a search "
                "leaves as it is: give none here, then dsonas.fit_width(result.structure, budget)"
            )
        return BlockSupernet(model, config, cost or exact_measures()["macs"])
    if isinstance(model, fx.GraphModule) and scaling_factors(model):
        return ScaledSupernet(model, example, budget, config, cost)
    raise ValueError(
        "model must have something to choose, but has neither LayerChoice nor InputChoice nor "
        "scaling factors: see dsonas.LayerChoice and dsonas.scale_connections"
    )


def _numbers(cost: Callable[[Any], float]) -> Callable[[Any], float]:
    """A user's cost function that refuses what is no number, rather than bound nothing by it."""

    def number(structure: Any) -> float:
        given = cost(structure)
        try:
            found = float(given)
        except (TypeError, ValueError, RuntimeError):
            found = math.nan
        if math.isnan(found):
            raise ValueError(
                f"cost must give a number for every structure, got {given!r} for {structure}: "
                "return one in all cases"
            )
        return found

    return number
