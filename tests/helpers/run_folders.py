"""Run folders made in a moment: a network with random weights, a made-up log and factors."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
import yaml

from dsonas.cost.costs import architecture_cost
from dsonas.data import ImageData
from dsonas.data.augmentation import Augmentation
from dsonas.data.images import TensorImages
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import build
from dsonas.run.runs import Preprocessing, RunFolder, Shape
from helpers.builders import random_graph

OPERATIONS = ("separable_conv3x3", "max_pool3x3")


def make_data(class_names: tuple[str, ...] = ("cat", "dog", "owl"), count: int = 30) -> ImageData:
    """Random grey images of 8 pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(count) % len(class_names))
    return ImageData(
        train=images,
        test=images,
        class_names=class_names,
        mean=(0.5,),
        std=(0.25,),
        train_augmentation=Augmentation(crop_padding=0, flip=False, cutout=0),
    )


def make_folder(
    root: Path,
    name: str = "run",
    class_names: tuple[str, ...] = ("cat", "dog", "owl"),
    operations: tuple[str, ...] = OPERATIONS,
    num_levels: int = 2,
    blocks: tuple[int, ...] = (1, 2),
    shared: bool = True,
    epochs: int = 3,
) -> Path:
    """The folder of a finished run."""
    folder = RunFolder(root / name)
    skeleton = Skeleton(
        input_channels=1, image_size=8, num_classes=len(class_names), blocks=blocks,
        channels=tuple(4 * 2**i for i in range(len(blocks))),
    )  # fmt: skip
    rng = Random(name)
    supernet = Architecture.complete(skeleton, operations, num_levels)
    graphs = [random_graph(rng, operations, num_levels, 0.6) for _ in supernet.blocks]
    graphs = graphs[:1] * len(graphs) if shared else graphs
    found = Architecture(skeleton, tuple(graphs), supernet.reductions)
    torch.manual_seed(0)
    preprocessing = Preprocessing(class_names, (0.5,), (0.25,))
    folder.write_network(build(found), preprocessing, Shape.of(skeleton))
    folder.write("config.yaml", yaml.safe_dump(config(skeleton, num_levels, epochs)))
    folder.write_log(log_rows(found, epochs))
    sets = graphs[:1] if shared else graphs
    folder.write_factors(
        supernet.blocks[0],
        [[[rng.random() * alive for alive in graph.live] for graph in sets]] * epochs,
    )
    cost = architecture_cost(found)
    metrics = {"test_error": 12.5, "test_loss": 0.4, "macs": cost.macs, "params": cost.params,
               "live_connections": found.num_live, "supernet_connections": supernet.num_live,
               "search_seconds": 4.0, "train_seconds": 2.0, "device": "cpu", "threads": 1,
               "versions": {"dsonas": "1"}}  # fmt: skip
    folder.write("metrics.json", json.dumps(metrics))
    return folder.path


def config(skeleton: Skeleton, num_levels: int, epochs: int) -> dict[str, object]:
    return {
        "seed": 0,
        "data": {"name": "folder:no_such_images"},
        "network": {"levels": num_levels, "channels": list(skeleton.channels)},
        "search": {"epochs": epochs},
        "train": {"epochs": epochs},
        "budget": {"macs": 1e6, "params": None},
    }


def log_rows(found: Architecture, epochs: int) -> list[dict[str, float | int | str]]:
    rows: list[dict[str, float | int | str]] = []
    for stage in ("pretrain", "search", "train"):
        for epoch in range(1, epochs + 1):
            row = {"stage": stage, "epoch": epoch, "loss": 1 / epoch, "error": 50 / epoch}
            if stage == "search":
                row |= {"live_connections": found.num_live, "macs": 9e5 / epoch, "params": 2000,
                        "mean_factor": 0.5, "penalty_scale": 1.3}  # fmt: skip
            if stage == "train" and epoch == epochs:
                row |= {"test_error": 12.5, "test_loss": 0.4}
            rows.append({**row, "seconds": 2.0 * epoch})
    return rows
