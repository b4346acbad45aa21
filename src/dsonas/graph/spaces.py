"""The search space as data: what a supernet is made of, and what shares its scaling factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsonas.graph.architecture import Architecture, Skeleton, doubled_channels

PAPER_OPERATIONS = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Everything that defines a supernet.

    Args:
        skeleton: stem, stages, channels and head around the blocks.
        operations: names of the N candidate operations of a level.
        num_levels: M >= 1, the levels of a block.
        sharing: ``share`` has one set of scaling factors for all blocks, ``full`` one for each.

    Raises:
        ValueError: if a value breaks its rule.

    Example:
        >>> SearchSpace().num_factors, SearchSpace(sharing="full").num_factors
        (128, 2980)
    """

    skeleton: Skeleton = field(default_factory=Skeleton)
    operations: tuple[str, ...] = PAPER_OPERATIONS
    num_levels: int = 4
    sharing: str = "share"

    def __post_init__(self) -> None:
        self.complete()  # which refuses what cannot be

    def complete(self) -> Architecture:
        """The architecture of the supernet: every connection live."""
        return Architecture.complete(self.skeleton, self.operations, self.num_levels, self.sharing)

    @property
    def num_factors(self) -> int:
        """The number of scaling factors, reduction blocks included."""
        in_cells = sum(len(graph.live) for graph in self.complete().cells)
        return in_cells + 2 * (len(self.skeleton.blocks) - 1)


def cifar_space(
    *,
    sharing: str = "share",
    channels: int = 48,
    blocks: Sequence[int] = (8, 8, 8),
    num_classes: int = 10,
) -> SearchSpace:
    """The paper's space for 32x32 colour images; channels double from stage to stage."""
    skeleton = Skeleton(
        blocks=tuple(blocks),
        channels=doubled_channels(channels, len(blocks)),
        num_classes=num_classes,
    )
    return SearchSpace(skeleton=skeleton, sharing=sharing)


def imagenet_space(
    *,
    sharing: str = "share",
    channels: int = 28,
    blocks: Sequence[int] = (2, 2, 13, 6),
    num_classes: int = 1000,
) -> SearchSpace:
    """The paper's space for 224x224 colour images; channels double from stage to stage."""
    skeleton = Skeleton(
        stem="imagenet",
        image_size=224,
        num_classes=num_classes,
        blocks=tuple(blocks),
        channels=doubled_channels(channels, len(blocks)),
    )
    return SearchSpace(skeleton=skeleton, sharing=sharing)
