"""Steps 1 and 2 in one call: pretrain the supernet, then search it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dsonas._utils import derive_seed
from dsonas.cost import Budget, CostFunction, cost_function
from dsonas.data import Batches, ImageData, split_for_search
from dsonas.graph import SearchSpace
from dsonas.nn import Network
from dsonas.search.pretraining import Pretraining
from dsonas.search.search_config import PretrainConfig, SearchConfig, weight_steps_per_factor_step
from dsonas.search.search_stages import Searching, SearchResult
from dsonas.train import Engine, Journal, run_stage


def search(
    space: SearchSpace,
    data: ImageData,
    *,
    budget: Budget | None = None,
    cost: CostFunction | None = None,
    seed: int = 0,
    lambda_fraction: float = 0.5,
    pretrain: PretrainConfig | None = None,
    config: SearchConfig | None = None,
    engine: Engine | None = None,
    journal: Journal | None = None,
    resume: dict[str, Any] | None = None,
    workers: int = 0,
) -> SearchResult:
    """Pretrain a supernet and search it (steps 1 and 2).

    Args:
        space: what to search; its sharing overrides that of ``config``.
        data: images; only the training part is used.
        budget: its first bound leads the search: macs, latency, memory access, or parameters.
        cost: all measures of an architecture; needed for a latency bound or penalty. None: the
            exact counts.
        seed: of weights, split, order and augmentation; it fixes the result on one machine.
        lambda_fraction: share of the training images that updates the scaling factors, in [0, 1);
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
    pretrain = pretrain or PretrainConfig()
    config = replace(config or SearchConfig(), space=space.sharing)
    engine, journal = engine or Engine(), journal or Journal()
    torch.manual_seed(derive_seed(seed, "supernet"))
    network = Network(space.complete(), sharing=space.sharing, recompute=config.recompute)
    engine.place(network)
    parts = split_for_search(data.train, lambda_fraction, derive_seed(seed, "split"))

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
        first = Pretraining(network, source, pretrain, engine, config.weight_decay)
        run_stage(first, journal, engine.device, resume, engine.processes)
        resume = None
    leading = (budget or Budget()).leading
    measures = cost or cost_function()
    second = Searching(
        network,
        batches(0, config.batch_size, "weights"),
        batches(1, config.batch_size, "factors"),
        config,
        engine,
        lambda architecture: measures(architecture)[leading],
        lambda architecture: measures(architecture)["latency_ms"],
        weight_steps_per_factor_step(lambda_fraction),
    )
    begun = resume if stage == "search" else None
    run_stage(second, journal, engine.device, begun, engine.processes)
    return second.result(journal.rows)
