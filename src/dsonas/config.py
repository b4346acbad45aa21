"""The configuration of a whole run, and the search space it describes."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsonas.architecture import STEMS, Skeleton, doubled_channels
from dsonas.budgets import Budget
from dsonas.data import DataConfig, ImageData
from dsonas.engine import EngineConfig
from dsonas.operations import PAPER_OPERATIONS
from dsonas.searching import PretrainConfig, SearchConfig
from dsonas.spaces import SearchSpace
from dsonas.training import TrainConfig

IMAGENET_STEM_FROM = 96


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The supernet.

    Args:
        levels: levels M of a block, >= 1.
        operations: names of the N candidate operations of a level.
        blocks: blocks in each stage; the resolution halves and the channels double in between.
        channels: channels of the first stage of the supernet, >= 1; multiples of 8 are fastest.
        stem: ``cifar`` (keeps the resolution), ``imagenet`` (quarters it), or ``auto``: imagenet
            for images of 96 pixels and more.

    Raises:
        ValueError: if a value breaks its rule.
    """

    levels: int = 4
    operations: tuple[str, ...] = PAPER_OPERATIONS
    blocks: tuple[int, ...] = (1, 1, 1)
    channels: int = 16
    stem: str = "auto"

    def __post_init__(self) -> None:
        for name in ("levels", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"network.{name} must be at least 1, got {getattr(self, name)}")
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"network.blocks must be numbers of at least 1, got {self.blocks}")
        if self.stem not in ("auto", *STEMS):
            raise ValueError(f"network.stem must be auto or one of {STEMS}, got {self.stem!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that fixes a run.

    Args:
        data: images, split, augmentation.
        network: the supernet.
        pretrain: step 1.
        search: step 2.
        budget: upper bounds on the result.
        train: step 3.
        engine: device, precision, threads.
        seed: the one seed from which every random choice follows, >= 0.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget: Budget = field(default_factory=Budget)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def space(self, data: ImageData) -> SearchSpace:
        """The search space for a data set."""
        network = self.network
        stem = network.stem
        if stem == "auto":
            stem = "imagenet" if data.image_size >= IMAGENET_STEM_FROM else "cifar"
        skeleton = Skeleton(
            stem=stem,
            input_channels=data.input_channels,
            image_size=data.image_size,
            num_classes=data.num_classes,
            blocks=tuple(network.blocks),
            channels=doubled_channels(network.channels, len(network.blocks)),
        )
        return SearchSpace(
            skeleton=skeleton,
            operations=tuple(network.operations),
            num_levels=network.levels,
            sharing=self.search.space,
        )
