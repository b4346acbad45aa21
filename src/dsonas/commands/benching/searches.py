"""Whole searches on random images, with and without physical shrinking."""

from __future__ import annotations

from typing import Any

import torch

from dsonas.commands.benching.stepper import BenchConfig, environment
from dsonas.data import Augmentation, ImageData, TensorImages
from dsonas.graph import Architecture, SearchSpace
from dsonas.search import PretrainConfig, SearchConfig, search
from dsonas.train import Engine, Journal


def bench_search(config: BenchConfig) -> dict[str, Any]:
    """A whole search from the complete supernet to 25 %, with and without shrinking."""
    seconds_shrinking, shrunk = _timed_search(config, shrinks=True)
    seconds_whole, whole = _timed_search(config, shrinks=False)
    return {
        **environment(Engine(config.engine)),
        "seconds_shrinking": seconds_shrinking,
        "seconds_whole": seconds_whole,
        "shrinking_vs_whole": seconds_shrinking / seconds_whole,
        "same_architecture": shrunk == whole,
    }


SEARCH_BATCHES, SEARCH_EPOCHS = 4, 12


def _timed_search(config: BenchConfig, shrinks: bool) -> tuple[float, Architecture]:
    """Seconds of step 2 on random images, and what it found."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * SEARCH_BATCHES * config.batch_size
    shape = (count, 3, config.image_size, config.image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(count) % 10)
    data = ImageData(
        train=images,
        test=images,
        class_names=tuple("0123456789"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        train_augmentation=Augmentation(crop_padding=4, flip=True),
    )
    complete = config.complete()
    space = SearchSpace(
        skeleton=complete.skeleton, num_levels=config.levels, sharing=config.sharing
    )
    searching = SearchConfig(
        space=config.sharing,
        epochs=SEARCH_EPOCHS,
        batch_size=config.batch_size,
        penalty=0.0,  # random labels teach nothing: a penalty would remove everything at once
        structure=0.25,
        connections=0.25,
        shrink=shrinks,
    )
    journal = Journal()
    result = search(
        space,
        data,
        pretrain=PretrainConfig(epochs=0),
        config=searching,
        engine=Engine(config.engine),
        journal=journal,
    )
    return journal.seconds["search"], result.architecture
