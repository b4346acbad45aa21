"""Latency of an architecture, measured on the device at hand or looked up in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from dsonas.architecture import Architecture
from dsonas.network import Network

LatencyFunction = Callable[[Architecture], float]


@dataclass
class LatencyMeter:
    """Measures the final network of an architecture: the median of blocked runs.

    A structure is measured once; the result is kept. Measure on an otherwise idle machine.

    Args:
        device: where to run.
        batch_size: images at a time, >= 1.
        threads: CPU threads, >= 1.
        min_seconds: least time spent on a measurement.

    Example:
        >>> from dsonas.spaces import cifar_space
        >>> meter = LatencyMeter(min_seconds=0.01)
        >>> meter(cifar_space(channels=4, blocks=(1, 1)).complete()) > 0
        True
    """

    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1
    min_seconds: float = 0.2
    measured: dict[Architecture, float] = field(default_factory=dict)

    def __call__(self, architecture: Architecture) -> float:
        """Milliseconds for one batch."""
        architecture = architecture.clean()
        if architecture not in self.measured:
            self.measured[architecture] = self._measure(architecture)
        return self.measured[architecture]

    def _measure(self, architecture: Architecture) -> float:
        from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

        skeleton = architecture.skeleton
        network = Network(architecture).eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (self.batch_size, skeleton.input_channels, skeleton.image_size, skeleton.image_size)
        images = torch.zeros(shape, device=self.device).to(memory_format=torch.channels_last)
        timer = Timer(
            "network(images)",
            globals={"network": network, "images": images},
            num_threads=self.threads,
        )
        with torch.inference_mode():
            return 1e3 * timer.blocked_autorange(min_run_time=self.min_seconds).median


def latency_from_table(table: Mapping[str, float]) -> LatencyFunction:
    """Latency as a sum over parts, from a table of the user's device.

    Args:
        table: milliseconds by part: ``NAME@CxS`` for an operation at C channels on S x S features,
            ``output@CxS`` for one connection to a block output, and ``base`` for all the rest.
            Optional: ``add@CxS`` for every input of an operation but its first, and ``block@CxS``
            for the end of a block that has any operation. ``measure_table`` makes all of them.

    Returns:
        A function from an architecture to milliseconds.

    Raises:
        ValueError: when the function meets a part that the table lacks.

    Example:
        >>> from dsonas.spaces import cifar_space
        >>> table = {"base": 1.0, "output@4x32": 0.1, "max_pool3x3@4x32": 0.2}
        >>> complete = cifar_space(channels=4, blocks=(1,)).complete()
        >>> from dsonas.graph import BlockGraph
        >>> import dataclasses
        >>> block = BlockGraph.complete(("max_pool3x3",), 2)
        >>> pools = dataclasses.replace(complete, blocks=(block,))
        >>> round(latency_from_table(table)(pools), 3)
        1.6
    """

    def look_up(key: str) -> float:
        if key not in table:
            raise ValueError(f"latency table must have an entry {key!r}, but has none: add it")
        return table[key]

    def latency(architecture: Architecture) -> float:
        skeleton, total = architecture.skeleton, look_up("base")
        for graph, stage in zip(architecture.clean().blocks, skeleton.block_stages, strict=True):
            place = f"{skeleton.channels[stage]}x{skeleton.stage_sizes[stage]}"
            total += sum(look_up(f"{graph.operation(n)}@{place}") for n in graph.kept_nodes)
            inputs = [len(graph.inputs[node]) for node in graph.kept_nodes]
            total += sum(number - 1 for number in inputs) * table.get(f"add@{place}", 0.0)
            if graph.kept_nodes:
                total += table.get(f"block@{place}", 0.0)
                total += len(graph.inputs[graph.output_node]) * look_up(f"output@{place}")
        return total

    return latency
