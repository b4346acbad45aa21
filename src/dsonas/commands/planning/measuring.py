"""Time a few steps of each kind on the device at hand, on random images of the true size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch

from dsonas.commands.planning.counting import StepCounter
from dsonas.commands.planning.devices import MeasuredDevice, Sample
from dsonas.commands.planning.memory import peak_memory
from dsonas.commands.planning.projecting import Outline
from dsonas.commands.planning.shapes import DataShape
from dsonas.data import Batches
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.run import EVALUATION_BATCH, RunConfig
from dsonas.search import Pretraining, Searching
from dsonas.train import Engine, Stage, Training, evaluate

STEP_SECONDS = 1.0  # of the dense supernet: a longer step is timed with fewer images
LEAST, MOST = 3, 200  # timed steps of each kind
MOST_ARCHITECTURES = 4  # of a search, between which is interpolated
_PROBE = 8  # images
_BATCHES = 8  # of an epoch of the measurement


def measured_device(
    config: RunConfig,
    shape: DataShape,
    found: Outline,
    *,
    devices: int = 1,
    seconds: float = 0.5,
) -> MeasuredDevice:
    """Time steps of the stages themselves: augmentation, forward, backward, update.

    Images are random and in memory. Where a batch would take too long or too much memory, a
    smaller one is timed, and the device says so.

    Args:
        config: of the run.
        shape: of the data set.
        found: the architectures; of a search, some are timed.
        devices: that share a batch; the share of one is timed here.
        seconds: least time for each kind of step, > 0.
    """
    meter = _Meter(config, shape, devices, seconds)
    meter.limit_batch(found.supernet if found.phases else found.network)
    if found.phases:
        if config.pretrain.epochs:
            meter.pretrain(found.supernet)
        for architecture in chosen([phase.architecture for phase in found.phases]):
            meter.search(architecture)
    meter.train(found.network)
    return meter.device


def chosen(chain: Sequence[Architecture]) -> list[Architecture]:
    """The first, the last and some between them, each once, evenly spread.

    Example:
        >>> chosen(list("aabbbcdefgg"))
        ['a', 'c', 'e', 'g']
    """
    different = list(dict.fromkeys(chain))
    if len(different) <= MOST_ARCHITECTURES:
        return different
    last = len(different) - 1
    parts = MOST_ARCHITECTURES - 1
    return [different[i * last // parts] for i in range(MOST_ARCHITECTURES)]


class _Meter:
    def __init__(self, config: RunConfig, shape: DataShape, devices: int, seconds: float) -> None:
        self.config, self.devices, self.least_seconds = config, devices, seconds
        self.engine, self.data = Engine(config.engine), shape.blank(config.data)
        self.counter, self.limit = StepCounter(config), shape.num_train
        threads = torch.get_num_threads()
        where = str(self.engine.device)
        name = f"{where}, {threads} threads" if where == "cpu" else where
        self.device = MeasuredDevice(name)

    def limit_batch(self, architecture: Architecture) -> None:
        """Find how many images a step may have here: by memory, then by time."""
        one, two = (
            peak_memory(self.counter.count("pretrain", architecture, size), self.config)
            for size in (1, 2)
        )
        fitting = (free_memory(self.engine) / 2 - one) / max(1, two - one)
        self.limit = max(2, min(self.limit, int(fitting)))
        probe = min(_PROBE, self.limit)
        network = self._supernet(architecture)
        stage = Pretraining(network, self._batches(probe), self.config.pretrain, self.engine)
        batches = self._endless(stage)
        self._step(stage, next(batches))
        per_image = self._step(stage, next(batches)) / probe
        self.limit = max(2, min(self.limit, int(STEP_SECONDS / per_image)))

    def pretrain(self, supernet: Architecture) -> None:
        batch = self._share(self.config.pretrain.batch_size)
        stage = Pretraining(
            self._supernet(supernet), self._batches(batch), self.config.pretrain, self.engine
        )
        self._record("pretrain", supernet, batch, self._timed(stage)["pretrain"])

    def search(self, architecture: Architecture) -> None:
        config = self.config.search
        batch = self._share(config.batch_size)
        network, batches = self._supernet(architecture), self._batches(batch)
        stage = Searching(network, batches, batches, config, self.engine)
        for kind, seconds in self._timed(stage).items():
            self._record(kind, architecture, batch, seconds)

    def train(self, architecture: Architecture) -> None:
        config, data = self.config.train, self.data
        batch = self._share(config.batch_size)
        auxiliary = config.auxiliary > 0
        network = Network(architecture, auxiliary=auxiliary, dropout=config.dropout)
        self.engine.place(network)
        size = min(EVALUATION_BATCH, len(data.test), self.limit)
        test = self._batches(size, train=False)
        stage = Training(network, self._batches(batch), test, config, self.engine)
        self._record("train", architecture, batch, self._timed(stage)["train"])
        evaluate(network, test, self.engine)
        start = time.perf_counter()
        evaluate(network, test, self.engine)
        self._record("test", architecture, size, (time.perf_counter() - start) / len(test))

    def _supernet(self, architecture: Architecture) -> Network:
        config = self.config.search
        network = Network(architecture, scaled=True, recompute=config.recompute)
        self.engine.place(network)
        return network

    def _share(self, batch_size: int) -> int:
        return self._size(batch_size // self.devices)

    def _size(self, batch_size: int) -> int:
        size = min(batch_size, self.limit)
        note = f"{size} images at a time where a batch has {batch_size}"
        if size < batch_size and note not in self.device.notes:
            self.device.notes.append(note)
        return size

    def _batches(self, batch_size: int, train: bool = True) -> Batches:
        images = self.data.train if train else self.data.test
        size = min(batch_size, len(images))
        return Batches(
            images.subset(torch.arange(min(len(images), _BATCHES * size))),
            self.data,
            batch_size=size,
            augmentation=self.data.train_augmentation if train else None,
            shuffle=train,
            drop_last=True,
            seed=0,
            device=self.engine.device,
        )

    def _endless(self, stage: Stage) -> Iterator[Any]:
        for epoch in count():
            yield from stage.batches(epoch, 0)

    def _step(self, stage: Stage, batch: Any) -> float:
        start = time.perf_counter()
        stage.step(batch, 0, 0)
        self.engine.wait()
        return time.perf_counter() - start

    def _timed(self, stage: Stage) -> dict[str, float]:
        """Mean seconds of the steps of each kind, their batches included, after one of each."""
        times: dict[str, list[float]] = {}
        begin, batches = time.perf_counter(), self._endless(stage)
        while not self._enough(times, time.perf_counter() - begin):
            start = time.perf_counter()
            batch = next(batches)
            fetched = time.perf_counter() - start
            kind = batch[0] if isinstance(batch[0], str) else stage.name
            times.setdefault(kind, []).append(fetched + self._step(stage, batch))
        return {kind: sum(values[1:]) / len(values[1:]) for kind, values in times.items()}

    def _enough(self, times: dict[str, list[float]], passed: float) -> bool:
        counts = [len(values) - 1 for values in times.values()]
        if not counts or min(counts) < LEAST:
            return False
        return passed >= len(counts) * self.least_seconds or min(counts) >= MOST

    def _record(self, kind: str, architecture: Architecture, batch: int, seconds: float) -> None:
        macs = self.counter.count(kind, architecture, 1).macs
        self.device.samples.setdefault(kind, []).append(Sample(macs, seconds / batch))


def free_memory(engine: Engine) -> int:
    """Bytes that are free on the device, as far as the system says."""
    if engine.device.type == "cuda":
        return torch.cuda.mem_get_info(engine.device)[0]
    names = getattr(os, "sysconf_names", {})
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
