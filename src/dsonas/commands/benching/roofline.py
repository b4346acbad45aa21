"""What the machine's rates allow a dense weight step, and where its time goes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from dsonas.commands.benching.stepper import BenchConfig, time_in_turn
from dsonas.cost import architecture_cost

COMPONENTS = {
    "convolutions backward": ("convolution_backward",),
    "convolutions forward": ("mkldnn_convolution", "thnn_conv", "_conv_depthwise"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "batch normalisation": ("batch_norm",),
    "pools": ("pool",),
    "ReLU": ("threshold", "clamp", "relu"),
    "copies and fills": ("copy_", "fill_", "aten::cat"),
}


def measure_machine() -> dict[str, float]:
    """Matrix products in GFLOP/s and copies in GB/s (bytes read and written) of the CPU."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    big = torch.randn(64 * 1024 * 1024)
    target = torch.empty_like(big)
    product = torch.empty_like(a)
    variants = {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(big)}
    times = time_in_turn(variants, 7)
    return {
        "gflops": 2 * 2048**3 / times["product"]["median"] / 1e9,
        "copy_gb_per_second": 2 * 4 * big.numel() / times["copy"]["median"] / 1e9,
    }


def roofline(config: BenchConfig, seconds: float) -> dict[str, float]:
    """The time that the machine's rates allow a dense weight step, beside the measured time.

    Multiply-adds: those of the network and of the mixing sums, once forward and twice backward.
    Least bytes: every operation reads its sum and writes its result, every sum reads what it adds,
    forward; twice that backward; in float32.
    """
    architecture, machine = config.complete(), measure_machine()
    skeleton, features = architecture.skeleton, 0.0
    mixing = 0.0
    for graph, stage in zip(architecture.blocks, skeleton.block_stages, strict=True):
        plane = skeleton.channels[stage] * skeleton.stage_sizes[stage] ** 2
        mixing += plane * sum(target < graph.output_node for _, target in graph.connections)
        features += plane * (3 * len(graph.kept_nodes) + len(graph.connections))
    macs = 3 * config.batch_size * (architecture_cost(architecture).macs + mixing)
    moved = 3 * 4 * config.batch_size * features
    compute = 2 * macs / machine["gflops"] / 1e9
    copying = moved / machine["copy_gb_per_second"] / 1e9
    return {
        **machine,
        "multiply_adds": macs,
        "least_bytes": moved,
        "seconds_for_compute": compute,
        "seconds_for_bytes": copying,
        "seconds_measured": seconds,
        "measured_over_allowed": seconds / max(compute, copying),
    }


def components(step: Callable[[], object]) -> dict[str, float]:
    """Shares of a step's CPU time by kind of work; they sum to 1."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    shares = dict.fromkeys([*COMPONENTS, "everything else"], 0.0)
    for event in profiler.key_averages():
        shares[_component(event.key)] += event.self_cpu_time_total
    total = sum(shares.values())
    return {name: round(value / total, 4) for name, value in shares.items()}


def _component(name: str) -> str:
    for component, parts in COMPONENTS.items():
        if any(part in name for part in parts):
            return component
    return "everything else"
