"""The configuration of a whole run, and the search space it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from dsonas._utils import NonNegativeInt, PositiveInt, absolute_place, check_settings, derive_seed
from dsonas.cost import Budget
from dsonas.data import DataConfig, DataError, ImageData, split_for_search
from dsonas.graph import MAX_FILE_NODES, PAPER_OPERATIONS, SearchSpace, Skeleton, doubled_channels
from dsonas.nn import operation_names
from dsonas.search import PretrainConfig, SearchConfig
from dsonas.train import STAGES, EngineConfig, TrainConfig

IMAGENET_STEM_FROM = 96
GROWTH = 4.0  # channels of a final network over those of its supernet, at most
TRACKERS = ("tensorboard", "wandb", "mlflow")
_NEVER_FIXED = (
    "engine.device",
    "engine.threads",
    "engine.checkpoint_seconds",
    "data.workers",
    "log.trackers",
)
_FIRST_USE = {
    "search.space": "pretrain",
    "search": "search",
    "budget": "train",  # the search looks only at which bounds there are
    "budget.bounds": "search",
    "engine.latency_table": "search",
    "train": "train",
    "data.cutout": "train",
    "architecture": "train",
}
RENAMED: dict[str, str] = {  # former settings: their names now, or what to do instead
    "data.path": "is part of data.name now: folder:PATH, cifar10:PATH, ...",
    "data.lambda_fraction": "data.factor_split",
    "data.test_fraction": "data.test",
    "data.test_crop": "is data.fit now: crop:0.875, say",
    "data.crop_padding": "is data.augment now: shift, crop, none or FILE.py:FUNCTION",
    "data.crop_area": "is data.augment now: crop is the ImageNet recipe",
    "data.jitter": "is data.augment now: crop is the ImageNet recipe",
    "data.memory_limit": "is fixed now: leave it out, folders beyond 2 GiB are streamed",
    "network.growth": "is fixed at 4 now: leave it out, raise network.channels for more",
    "pretrain.weight_decay": "is search.weight_decay now, for steps 1 and 2",
    "search.structure": "search.keep_cost",
    "search.connections": "search.keep_connections",
    "search.reached_at": "search.hold_from",
    "search.rank": "is gone: leave it out, operations go by their flow alone",
    "search.criterion": "is gone: leave it out, operations go by their flow alone",
    "search.rank_batches": "is gone with rank loss: leave it out",
    "search.capacity": "is gone: leave it out, choices go by their factors alone",
    "search.thrift": "is gone: leave it out, operations go by their flow alone",
    "search.trials": "is gone: leave it out, trials gave nothing",
    "search.trial_epochs": "is gone: leave it out, trials gave nothing",
    "search.shrink": "is gone: leave it out, what is dead is always cut out",
    "search.ratio": "follows from data.factor_split now: 0.5 gives 1:1, 0.2 gives 4:1",
    "search.momentum": "is fixed at 0.9 now: leave it out",
    "search.clip": "is fixed at 2.0 now: leave it out",
    "search.milestones": "is gone: search.schedule steps falls at each quarter of the epochs",
    "train.lr_min": "follows from train.schedule now: leave it out",
    "train.warmup_epochs": "follows from train.schedule now: leave it out",
    "train.first_period": "is fixed at 10 now: leave it out",
    "train.lr_peak": "is train.lr now, with train.schedule linear",
    "train.clip": "is gone: leave it out, step 3 does not clip",
    "train.evaluate_every": "is gone: leave it out, the test error is measured about ten times",
    "engine.sync_batchnorm": "is gone: leave it out, statistics are those of the whole batch",
    "engine.timeout_seconds": "is fixed at 600 now: leave it out",
    "engine.latency_batch": "is an option of dsonas latency now: --latency_batch",
    "engine.latency_threads": "is an option of dsonas latency now: --latency_threads",
    "resume": "is gone: leave it out, the same command resumes",
}


def renamed(name: str) -> str | None:
    """Say what became of a former setting; None for any other name.

    Example:
        >>> renamed("search.structure")
        'is search.keep_cost now'
    """
    new = RENAMED.get(name)
    return f"is {new} now" if new and " " not in new else new


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a former run, nested, the names of now; what is gone is left out.

    Example:
        >>> upgraded({"seed": 1, "search": {"structure": 0.3, "shrink": True}})
        {'seed': 1, 'search': {'keep_cost': 0.3}}
    """
    found = {key: dict(v) if isinstance(v, Mapping) else v for key, v in settings.items()}
    groups = {key: value for key, value in found.items() if isinstance(value, dict)}
    data, train = groups.get("data", {}), groups.get("train", {})
    if data.get("path"):
        kind = "folder" if data.get("name", "digits") == "digits" else data["name"]
        data["name"] = f"{kind}:{data['path']}"
    if data.get("test_crop", 1.0) != 1:
        data["fit"] = f"crop:{data['test_crop']}"
    if "crop_padding" in data:
        shift = "none" if data["crop_padding"] == 0 else "shift"
        data["augment"] = "crop" if data.get("crop_area") else shift
    if train.get("schedule") == "linear" and "lr_peak" in train:
        train["lr"] = train["lr_peak"]
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        if name in (values := groups.get(group, {})):
            value = values.pop(name)
            if " " not in new:
                values[new.partition(".")[2]] = value
    return found


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The supernet.

    Args:
        levels: levels M of a block, >= 1.
        operations: names of the N candidate operations of a level.
        blocks: blocks in each stage; the resolution halves in between.
        channels: channels of the supernet: of each stage, or one number for the first stage, which
            then doubles from stage to stage; >= 1; multiples of 8 are fastest.
        channel_multiple: channels of the final network are multiples of it, >= 1; 8 runs faster
            on CPUs, 1 fits a budget closest.
        stem: ``cifar`` (keeps the resolution), ``imagenet`` (quarters it), or ``auto``: imagenet
            for images of 96 pixels and more.
        transfer: for ``dsonas train --architecture``: put the block of that architecture, found on
            other images, into the network that blocks, channels and stem describe, at the width
            that meets the budget.
        supernet: ``FILE.py:FUNCTION`` of your own, which returns a model with ``LayerChoice`` or
            ``InputChoice`` in place of our blocks; the other options of the network do not count.
    """

    levels: PositiveInt = 4
    operations: tuple[str, ...] = PAPER_OPERATIONS
    blocks: tuple[PositiveInt, ...] = (1, 1, 1)
    channels: PositiveInt | tuple[PositiveInt, ...] = 16
    channel_multiple: PositiveInt = 1
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    transfer: bool = False
    supernet: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "network")
        if not self.blocks or len(self.stage_channels) != len(self.blocks):
            raise ValueError(
                "network.blocks must be numbers, one for each stage, and network.channels one "
                f"number or as many, got {list(self.blocks)} and {self.channels}"
            )
        unknown = [name for name in self.operations if name not in operation_names()]
        if unknown or not self.operations:
            raise ValueError(
                f"network.operations must be names out of {', '.join(operation_names())}, got "
                f"{list(self.operations)}; --import FILE.py adds operations of your own"
            )
        if self.levels * len(self.operations) > MAX_FILE_NODES:
            raise ValueError(
                f"network.levels times the operations must be at most {MAX_FILE_NODES}, got "
                f"{self.levels} levels of {len(self.operations)}"
            )

    def absolute(self) -> NetworkConfig:
        """The same with a path that is found from every folder."""
        return replace(self, supernet=self.supernet and absolute_place(self.supernet))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage of the supernet."""
        if isinstance(self.channels, int):
            return doubled_channels(self.channels, len(self.blocks))
        return tuple(self.channels)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where a run is tracked besides its ``log.csv``.

    Args:
        trackers: names out of ``tensorboard``, ``wandb`` and ``mlflow``: a list, or a text with
            commas.

    Example:
        >>> LogConfig(trackers="wandb,mlflow").trackers
        ('wandb', 'mlflow')
    """

    trackers: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        given = self.trackers
        names = given.strip("[] ").split(",") if isinstance(given, str) else given
        cleaned = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        object.__setattr__(self, "trackers", cleaned)
        if unknown := [name for name in cleaned if name not in TRACKERS]:
            known = ", ".join(TRACKERS)
            raise ValueError(f"log.trackers must be names out of {known}, got {unknown[0]!r}")


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
        log: trackers beside the log.
        seed: the one seed from which every random choice follows, >= 0.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget: Budget = field(default_factory=Budget)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def groups(self) -> dict[str, Any]:
        """All values, nested as in a YAML file; the seed first."""
        return {"seed": self.seed, **asdict(self)}

    def settings(self) -> dict[str, Any]:
        """All values by their dotted names."""
        groups = self.groups()
        seed = {"seed": groups.pop("seed")}
        return seed | {
            f"{k}.{name}": value for k, own in groups.items() for name, value in own.items()
        }

    def require_blocks(self) -> None:
        """Refuse a supernet of the user's own where our blocks are needed, by a ValueError."""
        if self.network.supernet is not None:
            raise ValueError(
                f"network.supernet {self.network.supernet} has no blocks of ours, which this "
                "needs: own supernets are for dsonas run and dsonas search, without --pareto"
            )

    def space(self, data: ImageData) -> SearchSpace:
        """The search space of our blocks for a data set; see ``require_blocks``."""
        self.require_blocks()
        network = self.network
        fitting = "imagenet" if data.image_size >= IMAGENET_STEM_FROM else "cifar"
        skeleton = Skeleton(
            stem=fitting if network.stem == "auto" else network.stem,
            input_channels=data.input_channels,
            image_size=data.image_size,
            num_classes=data.num_classes,
            blocks=tuple(network.blocks),
            channels=network.stage_channels,
        )
        return SearchSpace(
            skeleton=skeleton,
            operations=tuple(network.operations),
            num_levels=network.levels,
            sharing=self.search.space,
        )

    def with_fitting_batches(
        self, data: ImageData, stages: tuple[str, ...] = STAGES, processes: int = 1
    ) -> tuple[RunConfig, str]:
        """Lower batch sizes of which an epoch of a step would have fewer than two.

        Args:
            data: the images.
            stages: the steps that are done.
            processes: how many share a batch, >= 1.

        Returns:
            The configuration with them, and what was changed in words.

        Raises:
            DataError: if a step has too few images for any batch, or no validation part to wait by.
        """
        if self.train.patience and data.val is None and "train" in stages:
            raise DataError(
                f"train.patience {self.train.patience} needs a validation part: give data.val, 0.1 "
                "for a tenth of the training images"
            )
        every = len(data.train)
        _, factors = part_sizes(self, every)
        if self.data.factor_split and not 0 < factors < every and "search" in stages:
            raise DataError(
                f"data.factor_split {self.data.factor_split} of {every} images leaves a part "
                "empty: use more images or another fraction"
            )
        parts = {"train": every}
        if stages != ("train",):
            split = derive_seed(self.seed, "split")
            both = split_for_search(data.train, self.data.factor_split, split)
            parts |= {"pretrain": len(both[0]), "search": min(map(len, both))}
        config, told = self, []
        for stage in stages:
            settings, images = getattr(self, stage), parts[stage]
            if stage == "pretrain" and not settings.epochs:
                continue
            if images < (least := max(2, processes)):
                raise DataError(
                    f"fewer images than a batch: {stage}.batch_size must be at least {least}, and "
                    f"this step has {images} images: use more images"
                )
            size = fitting_batch(settings.batch_size, images, processes)
            if size < settings.batch_size:
                told.append(f"{stage} {settings.batch_size} to {size} ({images} images)")
                config = replace(config, **{stage: replace(settings, batch_size=size)})
        said = f"batch     lowered for so few images: {', '.join(told)}" if told else ""
        return config, said


def fitting_batch(size: int, num_images: int, processes: int = 1) -> int:
    """Lower a batch size of which an epoch would have fewer than two.

    To a power of two for each of the processes that share it, so that an epoch has four or more: so
    few images want many steps.

    Example:
        >>> fitting_batch(32, 64), fitting_batch(32, 60), fitting_batch(32, 60, processes=3)
        (32, 8, 12)
    """
    if num_images >= 2 * size:
        return size
    return max(2, processes << max(0, (num_images // (4 * processes)).bit_length() - 1))


def part_sizes(config: RunConfig, num_train: int) -> tuple[int, int]:
    """Images of the weight part and of the scaling-factor part."""
    factors = round(config.data.factor_split * num_train)
    return num_train - factors, factors or num_train


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any], begun: str | None
) -> Iterator[str]:
    """Describe what keeps a run from being resumed: settings, by dotted name, now different.

    Those count that its work so far has used: ``begun`` is the last step that has; None: none has.

    Example:
        >>> before = {"seed": 0, "train.lr": 9.0}
        >>> list(changed_settings(before, {"seed": 1, "train.lr": 0.1}, "search"))
        ['seed was 0 and is 1']
    """
    own = any(after.get(name) is not None for name in ("network.supernet", "model"))
    for key in sorted({*before, *after}):
        group = key.split(".")[0]
        first = _FIRST_USE.get(key) or _FIRST_USE.get(group, STAGES[0])
        if own and key.startswith("budget."):
            first = "search"  # which chooses within it; our blocks meet it by their width, later
        old, new = before.get(key), after.get(key)
        used = begun is not None and STAGES.index(first) <= STAGES.index(begun)
        if old != new and used and key not in _NEVER_FIXED:
            yield f"{key} was {old!r} and is {new!r}"
