"""Steps 1 and 2 as stages of the loop, and in one call: pretrain a supernet, then search it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dsonas._utils import derive_seed
from dsonas.cost import Budget, Measures, exact_measures
from dsonas.data import Batches, ImageData, split_for_search
from dsonas.graph import Architecture, SearchSpace
from dsonas.nn import Network, ScaledModule
from dsonas.search.block_supernet import BlockSupernet
from dsonas.search.choice_supernet import ChoiceNetwork
from dsonas.search.search_config import (
    CLIP,
    MOMENTUM,
    PretrainConfig,
    SearchConfig,
    weight_steps_per_factor_step,
)
from dsonas.search.searcher import NotFiniteError, Searcher
from dsonas.train import (
    DivergedError,
    Engine,
    Journal,
    Row,
    factor_gradients,
    restore,
    run_stage,
    set_lr,
    sgd,
    weight_step,
)

logger = logging.getLogger(__name__)


@dataclass
class BlockResult:
    """What a search of blocks found.

    Args:
        architecture: the cleaned result, at the supernet's channels.
        supernet: the complete architecture it was found in.
        factors: the packed scaling factors of each cell.
        network: the live supernet with its weights.
        rows: the log, one entry per epoch.
        history: what ``factors`` were after each epoch.
        chain: the nested architectures that it passed through at rebuilds, cleaned, at the
            supernet's channels: from the supernet to ``architecture``, each smaller than the one
            before.

    Example:
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1, 1)).complete()
        >>> result = BlockResult(supernet, supernet, factors=[], network=Network(supernet))
        >>> result.architecture.num_live, result.chain  # as before the first rebuild
        (250, [])
    """

    architecture: Architecture
    supernet: Architecture
    factors: list[list[float]]
    network: Network
    rows: list[Row] = field(default_factory=list)
    history: list[list[list[float]]] = field(default_factory=list)
    chain: list[Architecture] = field(default_factory=list)


class Pretraining:
    """Step 1 as a stage of the loop."""

    name = "pretrain"

    def __init__(
        self,
        network: ScaledModule,
        batches: Batches,
        config: PretrainConfig,
        engine: Engine,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.network, self.engine, self.seed = network, engine, seed
        self.source = batches
        self.num_epochs, self.num_batches = config.epochs, len(batches)
        self.optimizer = sgd(network.weights(), config.lr, weight_decay, MOMENTUM)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Iterate over batches of the weight part."""
        return self.source.epoch(epoch, start)

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Update the weights."""
        images, labels = batch
        self.engine.seed_step(self.seed, self.name, epoch * self.num_batches + index)
        self.network.train()
        with self.engine.autocast():
            loss, logits = weight_step(
                self.network, self.optimizer, images, labels, engine=self.engine
            )
        return loss, logits, labels

    def end_epoch(self, epoch: int) -> Row:
        """Add nothing to the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Collect weights and momenta."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.network.load_state_dict(state["network"])
        restore(self.optimizer, state["optimizer"])


class Searching:
    """Step 2 as a stage of the loop: weight steps, and factor steps by a ``Searcher``, in turn.

    Args:
        network: our blocks with scaling factors, a model with choices, or a traced one.
        weight_batches, factor_batches: of the images from which each kind learns.
        config, engine: how and where to search.
        supernet: of our blocks; None: one whose multiply-adds are planned.
        ratio: weight steps for each factor step.
        seed: of what the network draws, such as dropout.
    """

    name = "search"

    def __init__(
        self,
        network: Network | ChoiceNetwork,
        weight_batches: Batches,
        factor_batches: Batches,
        config: SearchConfig,
        engine: Engine,
        supernet: BlockSupernet | None = None,
        ratio: int = 1,
        seed: int = 0,
    ) -> None:
        self.network, self.config, self.engine, self.seed = network, config, engine, seed
        self.weight_batches, self.factor_batches = weight_batches, factor_batches
        self.num_epochs = config.epochs
        self.kinds = alternation(len(weight_batches), len(factor_batches), ratio)
        self.num_batches = len(self.kinds)
        self.schedule = config.learning_rate(self.num_batches)
        own = isinstance(network, Network)
        self.supernet: Any = supernet or BlockSupernet(network, config) if own else network.supernet
        steps = max(1, self.num_epochs * self.kinds.count("factors"))
        self.searcher: Searcher[Any] = Searcher(
            self.supernet, steps=steps, config=config, processes=engine.processes
        )
        self.weight_optimizer = sgd(network.weights(), config.lr, config.weight_decay, MOMENTUM)
        self.searcher.optimizers.add(self.weight_optimizer)
        self.history: list[list[list[float]]] = []  # the factors after each epoch

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Iterate over batches of both parts in the order of ``alternation``, with their kinds."""
        done = self.kinds[:start]
        sources = {
            "weights": self.weight_batches.epoch(epoch, done.count("weights")),
            "factors": self.factor_batches.epoch(epoch, done.count("factors")),
        }
        for kind in self.kinds[start:]:
            yield (kind, *next(sources[kind]))

    def step(self, batch: Any, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Update the weights, or the scaling factors."""
        kind, images, labels = batch
        update = epoch * self.num_batches + index
        lr = self.schedule(update)
        self.engine.seed_step(self.seed, self.name, update)
        self.network.train()
        with self.engine.autocast():
            if kind == "weights":
                set_lr(self.weight_optimizer, lr)
                loss, logits = weight_step(
                    self.network,
                    self.weight_optimizer,
                    images,
                    labels,
                    clip=CLIP,
                    engine=self.engine,
                )
            else:
                loss, logits = factor_gradients(self.network, images, labels, engine=self.engine)
                try:
                    self.searcher.step(lr=lr)
                except NotFiniteError as error:
                    raise DivergedError(f"{error}: --search.lr", self.name) from None
        return loss, logits, labels

    def end_epoch(self, epoch: int) -> Row:
        """Log what is live and what it costs."""
        vectors = self.supernet.logged_factors()
        self.history.append([vector.tolist() for vector in vectors])
        mean = sum(float(vector.detach().sum()) for vector in vectors)
        removals = self.searcher.removals
        return {
            **self.supernet.measured(),
            "mean_factor": round(mean / sum(vector.numel() for vector in vectors), 5),
            "penalty_scale": round(self.searcher.penalty_scale, 4),
            "removed_by_penalty": removals.by_penalty,
            "removed_by_budget": removals.by_budget,
        }

    def state_dict(self) -> dict[str, Any]:
        """Collect live architecture, weights, factors and momenta."""
        return {
            "searcher": self.searcher.state_dict(),
            "history": self.history,
            "network": self.network.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict`` into a supernet that is still complete."""
        self.history = _checked(state["history"], self.supernet.logged_factors())
        self.searcher.load_state_dict(state["searcher"])
        self.network.load_state_dict(state["network"])
        restore(self.weight_optimizer, state["weight_optimizer"])

    def result(self, rows: list[Row]) -> BlockResult:
        """Find the architecture that the scaling factors of our blocks stand for now."""
        assert isinstance(self.network, Network)
        architecture = self.supernet.alive()
        if not any(graph.kept_nodes for graph in architecture.blocks):
            logger.warning(
                "the penalty %.3g removed every operation: lower search.penalty, or leave it out",
                self.searcher.penalty,
            )
        passed = self.searcher.passed
        return BlockResult(
            architecture=architecture,
            supernet=self.supernet.whole,
            factors=[vector.tolist() for vector in self.supernet.scaling.blocks],
            network=self.network,
            rows=[row for row in rows if row["stage"] == self.name],
            history=self.history,
            chain=passed if passed[-1] == architecture else [*passed, architecture],
        )


def _checked(history: Any, blocks: Iterable[Tensor]) -> list[list[list[float]]]:
    """What a checkpoint holds as history, if it is one of these factors."""
    kinds = [[float] * len(vector) for vector in blocks]
    if any([list(map(type, factors)) for factors in epoch] != kinds for epoch in history):
        raise ValueError("the history is of other scaling factors")
    return list(history)


def alternation(num_weight: int, num_factor: int, ratio: int) -> list[str]:
    """List the kinds of the batches of a search epoch.

    It starts with a weight batch; after batch n, from 0, the next is a factor batch iff
    (n + 2) mod (ratio + 1) = 0; it ends when the part asked for is exhausted.

    Example:
        >>> alternation(4, 2, 2)
        ['weights', 'weights', 'factors', 'weights', 'weights', 'factors']
    """
    left = {"weights": num_weight, "factors": num_factor}
    kinds: list[str] = []
    while True:
        kind = "factors" if (len(kinds) + 1) % (ratio + 1) == 0 else "weights"
        if left[kind] == 0:
            return kinds
        left[kind] -= 1
        kinds.append(kind)


def search(
    space: SearchSpace,
    data: ImageData,
    *,
    budget: Budget | None = None,
    measures: Measures | None = None,
    seed: int = 0,
    factor_split: float = 0.5,
    pretrain: PretrainConfig | None = None,
    config: SearchConfig | None = None,
    engine: Engine | None = None,
    journal: Journal | None = None,
    resume: dict[str, Any] | None = None,
    workers: int = 0,
) -> BlockResult:
    """Pretrain a supernet and search it (steps 1 and 2); it is one of our blocks.

    A thin loop around ``Searcher``; for models and data of your own use that.

    Args:
        space: what to search; its sharing overrides that of ``config``.
        data: images; only the training part is used.
        budget: its first bound leads the search: macs, latency, memory access, or parameters.
        measures: functions of an architecture by name; needed for a latency bound or penalty. None:
            the exact counts.
        seed: of weights, split, order and augmentation; it fixes the result on one machine.
        factor_split: share of the training images that updates the scaling factors, in [0, 1);
            0 does not split.
        pretrain: step 1.
        config: step 2.
        engine: device, precision, and the processes that search together.
        journal: log, checkpoints and progress.
        resume: a checkpoint of either step.
        workers: decoding processes for images that are streamed, >= 0.

    Returns:
        The architecture found, with the live supernet.

    Example:
        >>> from dsonas.graph.architecture import Skeleton
        >>> from dsonas.data import DataConfig, load_data
        >>> data = load_data(DataConfig(name="digits", max_train_images=64))
        >>> skeleton = Skeleton(input_channels=1, image_size=8, blocks=(1,), channels=(8,))
        >>> result = search(
        ...     SearchSpace(skeleton=skeleton, num_levels=2),
        ...     data,
        ...     pretrain=PretrainConfig(epochs=1, batch_size=16),
        ...     config=SearchConfig(epochs=2, batch_size=16),
        ... )
        >>> result.architecture.num_live < result.supernet.num_live
        True
    """
    config = replace(config or SearchConfig(), space=space.sharing)
    engine, journal = engine or Engine(), journal or Journal()
    torch.manual_seed(derive_seed(seed, "supernet"))
    network = Network(space.complete(), scaled=True, recompute=config.recompute)
    engine.place(network)
    measures = measures or exact_measures()
    leading = measures[(budget or Budget()).leading]
    stage = search_network(
        network,
        data,
        supernet=BlockSupernet(network, config, leading, measures.get("latency_ms")),
        seed=seed,
        factor_split=factor_split,
        pretrain=pretrain,
        config=config,
        engine=engine,
        journal=journal,
        resume=resume,
        workers=workers,
    )
    return stage.result(journal.rows)


def search_network(
    network: Network | ChoiceNetwork,
    data: ImageData,
    *,
    supernet: BlockSupernet | None = None,
    seed: int = 0,
    factor_split: float = 0.5,
    pretrain: PretrainConfig | None = None,
    config: SearchConfig,
    engine: Engine,
    journal: Journal,
    resume: dict[str, Any] | None = None,
    workers: int = 0,
) -> Searching:
    """Pretrain and search a supernet that is on its device; see ``search``.

    Args:
        network: our blocks, or a model with choices or a traced one, which bring their supernet.
        supernet: of our blocks; see ``Searching``.

    Returns:
        The stage of the search, done.
    """
    pretrain = pretrain or PretrainConfig()
    parts = split_for_search(data.train, factor_split, derive_seed(seed, "split"))

    def batches(part: int, size: int, name: str) -> Batches:
        return Batches(
            parts[part],
            data,
            batch_size=size,
            augmentation=data.search_augmentation,
            shuffle=True,
            drop_last=True,
            seed=derive_seed(seed, name),
            device=engine.device,
            workers=workers,
            share=engine.processes.share,
        )

    stage = resume["stage"] if resume else "pretrain"
    if stage == "pretrain" and pretrain.epochs:
        source = batches(0, pretrain.batch_size, "pretrain")
        first = Pretraining(network, source, pretrain, engine, config.weight_decay, seed)
        run_stage(first, journal, engine.device, resume, engine.processes)
        resume = None
    second = Searching(
        network,
        batches(0, config.batch_size, "weights"),
        batches(1, config.batch_size, "factors"),
        config,
        engine,
        supernet,
        weight_steps_per_factor_step(factor_split),
        seed,
    )
    begun = resume if stage == "search" else None
    run_stage(second, journal, engine.device, begun, engine.processes)
    if engine.graphs is not None:
        engine.graphs.forget()
    return second
