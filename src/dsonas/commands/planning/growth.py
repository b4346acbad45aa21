"""How the time of pretraining and search grows with devices, images and classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dsonas.commands.planning.projecting import Cluster, Projection, outline, project
from dsonas.commands.planning.shapes import DataShape
from dsonas.cost import Budget
from dsonas.run import RunConfig

DEVICES = (1, 2, 4, 8, 16, 32, 64)
FACTORS = (0.25, 0.5, 1, 2, 4)
_SEARCH = ("pretrain", "search")


def growth(
    config: RunConfig, shape: DataShape, cluster: Cluster
) -> dict[str, list[dict[str, Any]]]:
    """Projected seconds of pretraining and search, one quantity changed at a time.

    Args:
        config: of the run.
        shape: of the data set, from which images and classes are changed by factors.
        cluster: the device and its link; ``devices`` is changed from 1 to 64, as far as the
            batches can be shared, and stays as it is where images and classes change.

    Returns:
        Rows ``devices``, ``images`` and ``classes``, each with ``seconds``; those of the devices
        also with ``speedup`` and ``exchange_share``, the part of the time that the exchange of
        gradients takes.
    """
    config = replace(config, budget=Budget())  # it concerns step 3 only
    base = outline(config, shape)
    batches = config.pretrain.batch_size, config.search.batch_size, config.train.batch_size

    def at(changed: DataShape) -> float:
        found = base if changed.num_classes == shape.num_classes else outline(config, changed)
        timed = (
            replace(a, seconds=b.seconds) for a, b in zip(found.phases, base.phases, strict=True)
        )
        found = replace(found, phases=tuple(timed))  # the same clock for all
        return project(config, changed, found, cluster).seconds(*_SEARCH)

    plans = [
        project(config, shape, base, replace(cluster, devices=number))
        for number in DEVICES
        if all(size % number == 0 and size >= 2 * number for size in batches)
    ]
    images = sorted({round(factor * shape.num_train) for factor in FACTORS})
    classes = sorted({max(2, round(factor * shape.num_classes)) for factor in FACTORS})
    return {
        "devices": list(_by_devices(plans)),
        "images": [{"images": n, "seconds": at(replace(shape, num_train=n))} for n in images],
        "classes": [{"classes": n, "seconds": at(replace(shape, num_classes=n))} for n in classes],
    }


def _by_devices(plans: list[Projection]) -> Iterable[dict[str, Any]]:
    alone = plans[0].seconds(*_SEARCH)
    for plan in plans:
        seconds = plan.seconds(*_SEARCH)
        sent = sum(line.exchanged_bytes for line in plan.lines if line.stage in _SEARCH)
        yield {
            "devices": plan.cluster.devices,
            "seconds": seconds,
            "speedup": alone / seconds,
            "exchanged_bytes": sent,
            "exchange_share": sent / (plan.cluster.link_gbytes * 1e9) / seconds,
        }
