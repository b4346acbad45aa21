"""``dsonas plan``: ten steps of each kind, timed here, times the steps that the run has.

The supernet of a search shrinks along the search's own plan. Which operations go is known only
after the search, so the plan is followed with random scaling factors: its cost is right, its choice
is one of many, and the network that step 3 trains is drawn three times. Search steps are timed at
the start, about half way and at the end; between these the time is linear in multiply-adds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from dsonas.commands.charts import readable_time
from dsonas.commands.configuring import GROUPS, config_parser, parse
from dsonas.commands.size_options import add_size_options, stated_run
from dsonas.cost import architecture_cost, check_reachable, distinct, exact_measures, fit_chain
from dsonas.data import Batches, ImageData
from dsonas.graph import Architecture
from dsonas.nn import Network
from dsonas.run import EVALUATION_BATCH, GROWTH, RunConfig, StopSignal, part_sizes, readable_count
from dsonas.search import (
    Pretraining,
    Searching,
    alternation,
    follow_epochs,
    weight_steps_per_factor_step,
)
from dsonas.train import MEASUREMENTS, STAGES, WARM, Engine, Training

TIMED, LEAST_SECONDS = 10, 1.0  # steps of each kind after one that does not count; for a second
PATIENCE, LEAST_TIMED = 6.0, 2  # seconds after which so many long steps are enough
MOST_TIMED = 100
LONGEST_STEP = 2.0  # seconds: a longer step is timed with fewer images
PROBE = 8  # images by which that is found out
DRAWS = 3  # networks that stand for the one that will be found
FORWARDS = {"weights": 3, "factors": 2, "test": 1}  # a step's work, in forward passes


class Line(NamedTuple):
    """A part of a stage."""

    stage: str  # ``pretrain``, ``search`` or ``train``
    part: str  # what it does
    steps: int  # how many
    macs: int = 0  # multiply-adds of all of them
    memory_bytes: int = 0  # peak memory of the process, or of the accelerator; 0: not measured
    seconds: float = 0.0  # of all of them


@dataclass(frozen=True)
class Forecast:
    """What a run will take."""

    supernet: Architecture  # the complete architecture
    networks: tuple[Architecture, ...]  # what step 3 is assumed to train, each drawn alike
    device: str  # where the steps were timed, in words
    lines: tuple[Line, ...]  # the parts of the stages, in order
    notes: tuple[str, ...]  # what had to be assumed, in words

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        return sum(line.seconds for line in self.lines)


def plan(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Print the forecast of a run."""
    parser = config_parser(
        command,
        "What a run will take here, before anything is trained: steps, multiply-adds, memory and "
        "time of every stage. Takes the options of dsonas run. Ten steps of each kind are timed on "
        "this machine, on random images of the true size (some ten seconds); no image is loaded.",
        GROUPS,
    )
    add_size_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    values = parse(parser, arguments)
    config, data = stated_run(values)
    found = forecast(config, data)
    print(json.dumps(_as_json(found, data)) if values.json else "\n".join(_table(found, data)))
    return 0


def _table(found: Forecast, data: ImageData) -> Iterator[str]:
    """What is known, the stages with their sum, what had to be assumed."""
    yield f"data      {data.summary}"
    yield f"supernet  {_size(found.supernet)}"
    yield f"network   {_size(found.networks[0])} (assumed for step 3)"
    yield f"device    {found.device}"
    yield ""
    yield _row("stage", "", "steps", "multiply-adds", "peak memory", "time")
    _, _, steps, macs, memory, seconds = zip(*found.lines, strict=True)
    total = Line("all", "", sum(steps), sum(macs), max(memory), sum(seconds))
    for line in [*found.lines, total]:
        memory = f"{readable_count(line.memory_bytes)}B" if line.memory_bytes else ""
        counts = str(line.steps), readable_count(line.macs), memory
        yield _row(line.stage, line.part, *counts, readable_time(line.seconds))
    yield from (f"note: {note}" for note in found.notes)


def _size(architecture: Architecture) -> str:
    cost = architecture_cost(architecture)
    return (
        f"{architecture.num_live} connections, {readable_count(cost.macs)} multiply-adds, "
        f"{readable_count(cost.params)} parameters"
    )


def _row(stage: str, part: str, *numbers: str) -> str:
    cells = "{:>10}{:>15}{:>13}{:>10}".format(*numbers)
    return f"{stage:<9} {part:<13}{cells}"


def _as_json(found: Forecast, data: ImageData) -> dict[str, Any]:
    return {
        "data": {
            "num_train": len(data.train),
            "num_val": len(data.val or ()),
            "num_test": len(data.test),
            "image_size": data.image_size,
            "input_channels": data.input_channels,
            "num_classes": data.num_classes,
        },
        "device": found.device,
        "supernet": asdict(architecture_cost(found.supernet)),
        "network": asdict(architecture_cost(found.networks[0])),
        "notes": found.notes,
        "lines": [{**line._asdict(), "hours": line.seconds / 3600} for line in found.lines],
        "hours": found.seconds / 3600,
    }


def forecast(config: RunConfig, data: ImageData) -> Forecast:
    """Time a few steps of a run here, and follow the plan of its search; pixels do not matter.

    Raises:
        ValueError: if the run would be refused: batches too large, a budget out of reach.
    """
    transfers = config.network.transfer
    config, told = config.with_fitting_batches(data, ("train",) if transfers else STAGES)
    supernet, notes = config.space(data).complete(), [" ".join(told.split())] if told else []
    budget, multiple = config.budget, config.network.channel_multiple
    if budget.latency_ms is not None:
        budget = replace(budget, latency_ms=None)
        notes.append("budget.latency_ms is left out: it is looked at when the run begins")
    check_reachable(supernet, budget, multiple=multiple)
    begin = time.perf_counter()
    chains = [planned_chain(config, supernet, draw) for draw in range(DRAWS)]
    rebuilding = (time.perf_counter() - begin) / DRAWS
    if transfers:
        notes.append("network.transfer: step 3 alone, of the supernet narrowed to the budget")
    elif config.search.keep_cost is None:
        notes.append(
            "without a plan the penalty alone decides what goes: the search is forecast with the "
            "whole supernet, an upper bound"
        )
    fitted = (
        fit_chain(distinct(chain), budget, multiple=multiple, growth=GROWTH) for chain in chains
    )
    networks, meter = tuple(dict.fromkeys(fitted)), _Meter(config, data)
    gc.freeze()  # what was there before is not searched anew for each measurement
    try:
        lines = meter.training(networks)
        if not transfers:
            lines = [*meter.pretraining(supernet), *meter.searching(chains[0], rebuilding), *lines]
    finally:
        gc.unfreeze()
    if config.train.patience:
        notes.append("train.patience may end step 3 earlier: all its epochs are counted")
    if meter.cuts:
        notes.append("steps too long to wait for were timed with fewer images, in proportion")
    device = f"{meter.engine.device}, {torch.get_num_threads()} CPU threads"
    return Forecast(supernet, networks, device, tuple(lines), tuple(notes))


def planned_chain(config: RunConfig, supernet: Architecture, draw: int = 0) -> list[Architecture]:
    """Follow the plan of a search with random factors: see ``follow_epochs``.

    Example:
        >>> from dsonas.graph import SearchSpace
        >>> supernet, config = SearchSpace(num_levels=2).complete(), RunConfig()
        >>> chain = planned_chain(config, supernet)
        >>> len(chain) == config.search.epochs + 1, chain[0] == supernet
        (True, True)
        >>> chain[-1].num_live < chain[10].num_live < supernet.num_live
        True
    """
    generator = torch.Generator().manual_seed(draw)
    factors = [
        torch.randn(len(cell.live), generator=generator).exp().tolist() for cell in supernet.cells
    ]
    leading = "macs" if config.budget.leading == "latency_ms" else config.budget.leading
    if config.network.transfer:
        return [supernet] * (config.search.epochs + 1)
    return follow_epochs(config.search, supernet, factors, exact_measures()[leading])


def high_water(engine: Engine) -> int:
    """The most bytes in use so far: on CUDA of tensors, elsewhere of the whole process."""
    if engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated(engine.device)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux ru_maxrss would begin with the parent's
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak(engine: Engine) -> None:
    """Give freed memory back and let ``high_water`` begin anew, where the system can do that."""
    if engine.graphs is not None:
        engine.graphs.forget()
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")


class _Timed(NamedTuple):
    seconds: dict[str, float]  # of a step of each kind
    memory_bytes: int  # peak of all


class _Testing:
    """Test batches, as if they were the steps of a stage."""

    name = "test"

    def __init__(self, network: Network, source: Batches) -> None:
        self.network, self.source = network.eval(), source

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        return self.source.epoch(epoch, start)

    @torch.inference_mode()
    def step(self, batch: Any, epoch: int, index: int) -> object:
        return self.network(batch[0])


class _Meter:
    """Times steps by the stages' own code, on random images of the true size."""

    def __init__(self, config: RunConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        self.engine, self.cuts = Engine(config.engine), False
        self.parts = part_sizes(config, len(data.train))

    def pretraining(self, supernet: Architecture) -> list[Line]:
        """Step 1, if there is one."""
        config, size, engine = self.config.pretrain, self.config.pretrain.batch_size, self.engine
        if not config.epochs:
            return []
        network, steps = self._supernet(supernet), config.epochs * (self.parts[0] // size)
        timed = self._timed(lambda source: Pretraining(network, source, config, engine), size)
        work = steps * FORWARDS["weights"] * size * architecture_cost(supernet).macs
        seconds = steps * timed.seconds["pretrain"]
        return [Line("pretrain", "weight steps", steps, work, timed.memory_bytes, seconds)]

    def searching(self, chain: Sequence[Architecture], rebuilding: float) -> list[Line]:
        """Step 2 along a planned chain; ``rebuilding`` are the seconds of all rebuilds."""
        config, size = self.config.search, self.config.search.batch_size
        macs = [architecture_cost(member).macs for member in chain]
        half = min(macs, key=lambda value: abs(value - (macs[0] + macs[-1]) / 2))
        timed: dict[int, _Timed] = {}
        for value in sorted({macs[0], half, macs[-1]}):
            timed[value] = self._timed_search(chain[macs.index(value)])
        memory = max(one.memory_bytes for one in timed.values())
        ratio = weight_steps_per_factor_step(self.config.data.factor_split)
        kinds = alternation(self.parts[0] // size, self.parts[1] // size, ratio)
        lines = []
        for kind, part in (("weights", "weight steps"), ("factors", "factor steps")):
            steps, known = kinds.count(kind), [one.seconds[kind] for one in timed.values()]
            seconds = steps * float(np.interp(macs[:-1], list(timed), known).sum())
            work = steps * FORWARDS[kind] * size * sum(macs[:-1])
            lines.append(Line("search", part, steps * config.epochs, work, memory, seconds))
        rebuilds = sum(map(config.rebuilds_after, range(1, config.epochs + 1)))
        return [*lines, Line("search", "rebuilds", rebuilds, seconds=rebuilding)]

    def _timed_search(self, architecture: Architecture) -> _Timed:
        config, network = self.config.search, self._supernet(architecture)
        return self._timed(
            lambda source: Searching(network, source, source, config, self.engine),
            config.batch_size,
        )

    def training(self, networks: Sequence[Architecture]) -> list[Line]:
        """Step 3, with the test images: the mean over networks."""
        return [
            lines[0]._replace(
                macs=round(fmean(line.macs for line in lines)),
                memory_bytes=max(line.memory_bytes for line in lines),
                seconds=fmean(line.seconds for line in lines),
            )
            for lines in zip(*map(self._training, networks), strict=True)
        ]

    def _training(self, architecture: Architecture) -> list[Line]:
        config, engine, num_test = self.config.train, self.engine, len(self.data.test)
        num_val = len(self.data.val or ())
        network = Network(architecture, auxiliary=config.auxiliary > 0, dropout=config.dropout)
        engine.place(network)
        size, test_size = config.batch_size, min(EVALUATION_BATCH, num_test)
        timed = self._timed(lambda source: Training(network, source, source, config, engine), size)
        tested = self._timed(lambda source: _Testing(network, source), test_size)
        steps = config.epochs * (len(self.data.train) // size)
        every = -(-config.epochs // MEASUREMENTS)
        tests = -(-config.epochs // every) + 1  # once more when all is done
        # every epoch looks at the validation part
        batches = tests * -(-num_test // test_size) + config.epochs * -(-num_val // test_size)
        seen = tests * num_test + config.epochs * num_val
        macs = architecture_cost(architecture).macs
        work = steps * FORWARDS["weights"] * size * macs, seen * FORWARDS["test"] * macs
        seconds = steps * timed.seconds["train"], batches * tested.seconds["test"]
        return [
            Line("train", "steps", steps, work[0], timed.memory_bytes, seconds[0]),
            Line("train", "test batches", batches, work[1], tested.memory_bytes, seconds[1]),
        ]

    def _supernet(self, architecture: Architecture) -> Network:
        recompute = self.config.search.recompute
        network = Network(architecture, scaled=True, recompute=recompute)
        self.engine.place(network)
        return network

    def _timed(self, stage: Callable[[Batches], Any], batch_size: int) -> _Timed:
        """Time and memory of a stage's steps; those of long steps follow from fewer images.

        Few images say too much where a step waits for the host: it is timed again with more, until
        what is known says that these are as many as can be waited for.
        """
        size, count = min(PROBE, batch_size), 1 + LEAST_TIMED
        while True:
            timed = self._measured(stage, batch_size, size, count)
            fits = min(batch_size, int(batch_size * LONGEST_STEP / max(timed.seconds.values())))
            if fits < 2 * size and (fits <= PROBE or count > 1 + LEAST_TIMED):
                break
            size, count = fits, 1 + MOST_TIMED
        self.cuts = self.cuts or size < batch_size
        return timed

    def _measured(
        self, stage: Callable[[Batches], Any], batch_size: int, size: int, count: int
    ) -> _Timed:
        """What steps of a batch take, from so many of ``size`` images, in proportion."""
        forget_peak(self.engine)
        before = high_water(self.engine)
        seconds = self._seconds(stage(self._batches(size, count)))
        added = (high_water(self.engine) - before) * batch_size // size
        scaled = {kind: value * batch_size / size for kind, value in seconds.items()}
        return _Timed(scaled, before + added)

    def _seconds(self, stage: Any) -> dict[str, float]:
        """Mean seconds of the steps of each kind, their batches included, after the first ones.

        One of each, or as many as come before a CUDA graph is replayed.
        """
        first = 1 + WARM if self.engine.graphs else 1
        times: dict[str, list[float]] = {}
        begin = last = time.perf_counter()
        for index, batch in enumerate(stage.batches(0, 0)):
            kind = batch[0] if isinstance(batch[0], str) else stage.name
            stage.step(batch, 0, index)
            self.engine.wait()
            now = time.perf_counter()
            times.setdefault(kind, []).append(now - last)
            last, done, passed = now, min(map(len, times.values())) - first, now - begin
            enough = done >= TIMED and passed >= LEAST_SECONDS
            if enough or (done >= LEAST_TIMED and passed >= PATIENCE):
                break
        return {
            kind: fmean(values[min(first, len(values) - 1) :]) for kind, values in times.items()
        }

    def _batches(self, size: int, count: int) -> Batches:
        return Batches(
            self.data.train.subset(torch.arange(size * count) % len(self.data.train)),
            self.data,
            batch_size=size,
            augmentation=self.data.train_augmentation,
            shuffle=True,
            drop_last=True,
            seed=0,
            device=self.engine.device,
        )
