"""How long a step takes on a device: one that is stated, or one that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from dsonas.commands.planning.counting import Step


class Device(Protocol):
    """Where the steps run."""

    def seconds(self, step: Step) -> float:
        """Time of a step."""
        ...

    @property
    def description(self) -> str:
        """What it is and what is assumed of it, in words."""
        ...


@dataclass(frozen=True, kw_only=True)
class StatedDevice:
    """A device of which only the rates are known.

    Args:
        tflops: peak rate in 10^12 operations a second, two for each multiply-add, > 0.
        efficiency: share of that rate that the steps reach, in (0, 1].
        gbytes: memory bandwidth in 10^9 bytes a second, > 0; None leaves memory out.

    Raises:
        ValueError: if a number breaks its rule.

    Example:
        >>> from dsonas.run.run_config import RunConfig
        >>> from dsonas.commands.planning.counting import StepCounter
        >>> from dsonas.graph.spaces import cifar_space
        >>> supernet = cifar_space(channels=8, blocks=(1,)).complete()
        >>> step = StepCounter(RunConfig()).count("test", supernet, 1000)
        >>> device = StatedDevice(tflops=10, efficiency=0.1)
        >>> round(device.seconds(step) * 1e12 / (2 * step.macs), 6)
        1.0
    """

    tflops: float
    efficiency: float = 0.2
    gbytes: float | None = None

    def __post_init__(self) -> None:
        if not self.tflops > 0:
            raise ValueError(f"device-tflops must be above 0, got {self.tflops}")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency must be above 0 and at most 1, got {self.efficiency}")
        if self.gbytes is not None and not self.gbytes > 0:
            raise ValueError(f"device-gbytes must be above 0, got {self.gbytes}")

    def seconds(self, step: Step) -> float:
        """The longer of computing at the rate reached, and moving the least bytes."""
        computing = 2 * step.macs / (self.tflops * 1e12 * self.efficiency)
        moving = step.least_bytes / (self.gbytes * 1e9) if self.gbytes else 0.0
        return max(computing, moving)

    @property
    def description(self) -> str:
        """The rates."""
        memory = f", memory of {self.gbytes:g} GB/s" if self.gbytes else ""
        return f"stated: {self.tflops:g} TFLOPS at {self.efficiency:.0%} efficiency{memory}"


@dataclass(frozen=True)
class Sample:
    """A measured step.

    Args:
        macs: multiply-adds for one image.
        seconds: time for one image.
    """

    macs: float
    seconds: float


@dataclass
class MeasuredDevice:
    """A device on which a few steps of each kind were timed.

    Args:
        name: of the device, in words.
        samples: by kind, what was measured. Time is linear in the images of a batch, and between
            two samples linear in the multiply-adds; beyond the last ones it is in proportion.
        notes: what limited the measurement.
    """

    name: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def seconds(self, step: Step) -> float:
        """Interpolated between the samples of its kind."""
        macs = step.macs / step.batch_size
        return step.batch_size * interpolate(self.samples[step.kind], macs)

    @property
    def description(self) -> str:
        """The device and what limited the measurement."""
        return "; ".join([f"measured here: {self.name}", *self.notes])


def interpolate(samples: Sequence[Sample], macs: float) -> float:
    """Seconds at a number of multiply-adds.

    Example:
        >>> line = [Sample(10, 1.0), Sample(20, 3.0)]
        >>> [interpolate(line, macs) for macs in (5, 15, 40)]
        [0.5, 2.0, 6.0]
    """
    known = sorted(samples, key=lambda sample: sample.macs)
    first, last = known[0], known[-1]
    if not first.macs < macs < last.macs:
        nearest = first if macs <= first.macs else last
        return nearest.seconds * macs / nearest.macs
    for low, high in pairwise(known):
        if low.macs < high.macs and macs <= high.macs:
            part = (macs - low.macs) / (high.macs - low.macs)
            return low.seconds + part * (high.seconds - low.seconds)
    raise AssertionError("macs lies between the first and the last sample")
