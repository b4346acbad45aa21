"""The penalty of each scaling factor (METHOD: uniform, and adaptive by multiply-adds, eq. 9)."""

from __future__ import annotations

from dsonas.architecture import Architecture
from dsonas.costs import block_cost

PENALTIES = ("uniform", "adaptive_macs")


def block_penalties(
    kind: str, penalty: float, supernet: Architecture, current: Architecture, sharing: str
) -> list[float]:
    """The penalty of each packed vector of scaling factors.

    Args:
        kind: ``uniform``, or ``adaptive_macs``: in proportion to the share of its multiply-adds
            that a block still has, so that blocks are pruned evenly (eq. 9).
        penalty: gamma, >= 0.
        supernet: the complete architecture.
        current: the live architecture.
        sharing: ``share`` gives one value for all blocks, ``full`` one for each.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in PENALTIES:
        raise ValueError(f"search.penalty_kind must be one of {PENALTIES}, got {kind!r}")
    skeleton = supernet.skeleton
    before, after = (
        [
            block_cost(graph, skeleton.channels[s], skeleton.stage_sizes[s], False).macs
            for graph, s in zip(net.blocks, skeleton.block_stages, strict=True)
        ]
        for net in (supernet, current)
    )
    if sharing == "share":
        before, after = [sum(before)], [sum(after)]
    if kind == "uniform":
        return [penalty] * len(before)
    return [penalty * now / whole for now, whole in zip(after, before, strict=True)]
