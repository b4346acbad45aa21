"""The stages of a run as lines of steps, work, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsonas.commands.planning.counting import Step, StepCounter
from dsonas.commands.planning.devices import Device
from dsonas.commands.planning.memory import peak_memory
from dsonas.commands.planning.shapes import DataShape
from dsonas.commands.planning.trajectory import Phase, search_phases
from dsonas.cost import check_reachable, distinct, fit_chain
from dsonas.graph import Architecture
from dsonas.run import EVALUATION_BATCH, RunConfig, part_sizes
from dsonas.search import alternation, weight_steps_per_factor_step

DEFAULT_LINK = 12.5  # GB/s each way: a link of 100 Gbit/s
Part = tuple[Architecture, int]
"""An architecture and how many steps it is run for."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal devices that share every batch and sum up their gradients around a ring.

    Args:
        device: each of them.
        devices: how many, >= 1.
        link_gbytes: bandwidth of the link to the next one, in 10^9 bytes a second, > 0.

    Raises:
        ValueError: if a number breaks its rule.
    """

    device: Device
    devices: int = 1
    link_gbytes: float = DEFAULT_LINK

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if not self.link_gbytes > 0:
            raise ValueError(f"link-gbytes must be above 0, got {self.link_gbytes}")

    def share(self, batch_size: int) -> int:
        """Images of a batch on each device; of test images, that need not divide, the most."""
        return -(-batch_size // self.devices)

    def exchanged_bytes(self, step: Step) -> int:
        """What each device sends for a step: a ring all-reduce of the gradients."""
        return 2 * (self.devices - 1) * step.gradient_bytes // self.devices

    def seconds(self, step: Step) -> float:
        """A step of one device's share, then the exchange; the two do not overlap."""
        return self.device.seconds(step) + self.exchanged_bytes(step) / (self.link_gbytes * 1e9)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A part of a stage.

    Args:
        stage: ``pretrain``, ``search`` or ``train``.
        part: what it does.
        steps: how many.
        macs: multiply-adds of all of them, all devices together.
        least_bytes: read and written in memory at least, all devices together.
        exchanged_bytes: that each device sends to the next one.
        memory_bytes: at the height of the largest step, on each device.
        seconds: all steps.
    """

    stage: str
    part: str
    steps: int
    macs: int
    least_bytes: int
    exchanged_bytes: int
    memory_bytes: int
    seconds: float


@dataclass(frozen=True)
class Outline:
    """What a run will pass through.

    Args:
        supernet: the complete architecture.
        phases: of the search; none if it is not searched.
        network: what step 3 trains.
        notes: what had to be assumed, in words.
    """

    supernet: Architecture
    phases: tuple[Phase, ...]
    network: Architecture
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A planned run.

    Args:
        shape: of the data set.
        outline: its architectures.
        cluster: where it runs.
        lines: its stages.
    """

    shape: DataShape
    outline: Outline
    cluster: Cluster
    lines: tuple[Line, ...]

    def seconds(self, *stages: str) -> float:
        """Time of some stages; of none named, of all."""
        return sum(line.seconds for line in self.lines if not stages or line.stage in stages)


def outline(config: RunConfig, shape: DataShape) -> Outline:
    """The architectures of a run.

    Raises:
        ValueError: if the run would be refused: batches too large, a budget out of reach.
    """
    data = shape.blank(config.data)
    stages = ("train",) if config.network.transfer else ("pretrain", "search", "train")
    config.check_sizes(data, stages)
    supernet, notes = config.space(data).complete(), []
    budget, multiple = config.budget, config.network.channel_multiple
    if budget.latency_ms is not None:
        budget = replace(budget, latency_ms=None)
        notes.append("budget.latency_ms is left out: it is looked at when the run begins")
    check_reachable(supernet, budget, multiple=multiple)
    phases: list[Phase] = []
    if config.network.transfer:
        notes.append("network.transfer: step 3 alone, of the supernet narrowed to the budget")
    else:
        phases = search_phases(supernet, config.search, config.budget.leading)
        if config.search.keep_cost is None:
            notes.append(
                "search.keep_cost is null: what the penalty will remove is not known before, so "
                "the search is planned with the whole supernet (an upper bound)"
            )
    chain = distinct([supernet, *(phase.architecture for phase in phases)])
    network = fit_chain(chain, budget, multiple=multiple)
    return Outline(supernet, tuple(phases), network, tuple(notes))


def project(config: RunConfig, shape: DataShape, found: Outline, cluster: Cluster) -> Projection:
    """Steps, work, memory and time of every stage.

    Args:
        config: of the run; its batches are those of all devices together.
        shape: of the data set.
        found: the architectures.
        cluster: where it runs.

    Raises:
        ValueError: if the devices cannot share the batches equally, at least two images each.

    Example:
        >>> from dsonas.data import DataConfig
        >>> from dsonas.commands.planning.devices import StatedDevice
        >>> from dsonas.commands.planning.shapes import find_shape
        >>> config = RunConfig(data=DataConfig(name="digits"))
        >>> shape = find_shape(config.data)
        >>> plan = project(
        ...     config, shape, outline(config, shape), Cluster(device=StatedDevice(tflops=1))
        ... )
        >>> [line.steps for line in plan.lines if line.stage == "pretrain"]  # 20 epochs of 5
        [100]
    """
    planner = _Planner(config, shape, cluster)
    lines: list[Line] = []
    if found.phases:
        lines = [*planner.pretraining(found.supernet), *planner.searching(found.phases)]
    lines += planner.training(found.network)
    return Projection(shape=shape, outline=found, cluster=cluster, lines=tuple(lines))


class _Planner:
    def __init__(self, config: RunConfig, shape: DataShape, cluster: Cluster) -> None:
        self.config, self.shape, self.cluster = config, shape, cluster
        self.counter = StepCounter(config)
        self.num_weight, self.num_factor = part_sizes(config, shape.num_train)

    def pretraining(self, supernet: Architecture) -> list[Line]:
        config = self.config.pretrain
        steps = config.epochs * (self.num_weight // config.batch_size)
        return [self._line("pretrain", "pretrain", "weight steps", [(supernet, steps)])]

    def searching(self, phases: Sequence[Phase]) -> list[Line]:
        size = self.config.search.batch_size
        ratio = weight_steps_per_factor_step(self.config.data.factor_split)
        kinds = alternation(self.num_weight // size, self.num_factor // size, ratio)
        lines = []
        for kind, part in (("weights", "weight steps"), ("factors", "factor steps")):
            parts = [(phase.architecture, phase.epochs * kinds.count(kind)) for phase in phases]
            lines.append(self._line("search", kind, part, parts))
        rebuilds = [(phase.architecture, 0) for phase in phases]
        line = self._line("search", "rebuild", "rebuilds", rebuilds)
        count = sum(phase.epochs > 0 for phase in phases)
        seconds = line.seconds + sum(phase.seconds for phase in phases)
        return [*lines, replace(line, steps=count, seconds=seconds)]

    def training(self, network: Architecture) -> list[Line]:
        config = self.config.train
        steps = config.epochs * (self.shape.num_train // config.batch_size)
        times = -(-config.epochs // config.evaluate_every) + 1  # once more when all is done
        batches = times * -(-self.shape.num_test // EVALUATION_BATCH)
        return [
            self._line("train", "train", "steps", [(network, steps)]),
            self._line("train", "test", "test batches", [(network, batches)]),
        ]

    def _batch(self, stage: str, kind: str) -> int:
        if kind == "test":
            return min(EVALUATION_BATCH, self.shape.num_test)
        return getattr(self.config, stage).batch_size

    def _line(self, stage: str, kind: str, part: str, parts: Sequence[Part]) -> Line:
        """A line of steps of one kind."""
        batch, cluster = self._batch(stage, kind), self.cluster
        if kind != "test" and (batch < 2 * cluster.devices or batch % cluster.devices):
            raise ValueError(
                f"devices must share {stage}.batch_size {batch} equally, at least two images each, "
                f"got {cluster.devices}: give another number, or another batch size"
            )
        counted = [(self.counter.count(kind, a, batch), n) for a, n in parts if n]
        mine = [(self.counter.count(kind, a, cluster.share(batch)), n) for a, n in parts if n]
        return Line(
            stage=stage,
            part=part,
            steps=sum(n for _, n in parts),
            macs=sum(n * step.macs for step, n in counted),
            least_bytes=cluster.devices * sum(n * step.least_bytes for step, n in mine),
            exchanged_bytes=sum(n * cluster.exchanged_bytes(step) for step, n in mine),
            memory_bytes=max((peak_memory(step, self.config) for step, _ in mine), default=0),
            seconds=sum(n * cluster.seconds(step) for step, n in mine),
        )
