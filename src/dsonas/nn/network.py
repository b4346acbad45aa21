"""One network for every architecture, with scaling factors (search) or without (final)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.graph import Architecture, Skeleton
from dsonas.nn.blocks import Block, ConvBNReLU, Path, ReductionBlock, batch_norm
from dsonas.nn.cpu.buffers import BufferPool
from dsonas.nn.scaling import ScaledModule, ScalingFactors

AUXILIARY_CHANNELS = (128, 768)


class AuxiliaryHead(nn.Sequential):
    """A second classifier after the last reduction block, for training only."""

    def __init__(self, skeleton: Skeleton) -> None:
        size = skeleton.stage_sizes[-1]
        stride = 2 if skeleton.stem == "imagenet" else 3
        if len(skeleton.blocks) < 2 or (size - 5) // stride + 1 < 2:
            raise ValueError(
                f"auxiliary head needs features of at least {5 + stride} x {5 + stride} pixels "
                f"after a reduction block, got {size} x {size}; switch it off for such images "
                "(--train.auxiliary 0)"
            )
        first, second = AUXILIARY_CHANNELS
        channels = skeleton.channels[-1]
        super().__init__(
            batch_norm(channels),
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stride),
            ConvBNReLU(channels, first, 1),
            ConvBNReLU(first, second, 2, padding=0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(second, skeleton.num_classes),
        )


class Network(ScaledModule):
    """The network of an architecture.

    Args:
        architecture: which connections and channels; it is cleaned first.
        scaled: whether every connection has a scaling factor (supernet), or sums are plain (final
            network).
        learn_gamma: whether the BNs of operations, reduction convolutions and projecting shortcuts
            learn gamma; None: only without scaling factors (a learned gamma would absorb them).
        auxiliary: add the auxiliary head.
        dropout: probability of dropping a feature before the classifier, in [0, 1).
        path: how blocks with scaling factors train: ``plain``, one connection at a time by stock
            PyTorch; ``levels`` or ``buffer``. None: what ``choose_path`` finds for each block.
        recompute: run the operations of a supernet's blocks again in backward rather than keep what
            they need there: half the memory for a longer step (docs/speed.md). Operations must be
            deterministic.

    Attributes:
        drop_path: probability of dropping a branch in the last block, set by the training loop;
            it grows linearly with depth to that.
        nchw: whether to turn images, which come in channels_last, and with them all features into
            NCHW.

    Example:
        >>> import torch
        >>> from dsonas.graph.spaces import cifar_space
        >>> space = cifar_space(channels=8, blocks=(1, 1))
        >>> supernet = Network(space.complete(), scaled=True)
        >>> supernet(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        scaled: bool = False,
        learn_gamma: bool | None = None,
        auxiliary: bool = False,
        dropout: float = 0.0,
        path: Path | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        architecture = architecture.clean()
        gamma = not scaled if learn_gamma is None else learn_gamma
        skeleton = architecture.skeleton
        self.architecture = architecture
        self.drop_path = 0.0
        self.nchw = False
        self.pool = BufferPool()
        self._weights: tuple[Architecture, tuple[nn.Parameter, ...]] | None = None
        self._fixed: frozenset[str] | None = None
        self.stem = _stem(skeleton)
        self.blocks = nn.ModuleList(
            Block(
                graph,
                skeleton.channels[stage],
                projecting=_is_first(skeleton, i),
                learn_gamma=gamma,
                path=path,
                recompute=recompute,
                pool=self.pool,
            )
            for i, (graph, stage) in enumerate(
                zip(architecture.blocks, skeleton.block_stages, strict=True)
            )
        )
        self.reductions = nn.ModuleList(
            ReductionBlock(live, skeleton.channels[s], skeleton.channels[s + 1], gamma)
            for s, live in enumerate(architecture.reductions)
        )
        self.final_bn = batch_norm(skeleton.channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(skeleton.channels[-1], skeleton.num_classes)
        self.auxiliary = AuxiliaryHead(skeleton) if auxiliary else None
        self.scaling = ScalingFactors.ones(architecture) if scaled else None
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, input channels, H, W) to logits (B, classes)."""
        return self._run(x, False)[0]

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to the logits of the classifier and of the auxiliary head.

        Raises:
            ValueError: if the network was built without one.
        """
        logits, auxiliary = self._run(x, True)
        if auxiliary is None:
            raise ValueError("auxiliary must be True at construction to use the auxiliary head")
        return logits, auxiliary

    def _run(self, x: Tensor, with_auxiliary: bool) -> tuple[Tensor, Tensor | None]:
        skeleton, auxiliary, stage = self.architecture.skeleton, None, 0
        x = self.stem(x.contiguous() if self.nchw else x)
        for i, block in enumerate(self.blocks):
            if skeleton.block_stages[i] != stage:
                factors = self.scaling.reductions[stage] if self.scaling else None
                x = self.reductions[stage](x, factors)
                stage += 1
                if with_auxiliary and self.auxiliary and stage == len(skeleton.blocks) - 1:
                    auxiliary = self.auxiliary(x)
            factors = self.scaling.for_block(i) if self.scaling else None
            x = block(x, factors, self.drop_path * (i + 1) / len(self.blocks))
        x = F.relu(self.final_bn(x)).mean((2, 3))
        return self.classifier(self.dropout(x)), auxiliary

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Every parameter that is not a scaling factor and not a fixed gamma."""
        if self._weights is None or self._weights[0] is not self.architecture:  # it has shrunk
            own = [pair for pair in self.named_parameters() if not pair[0].startswith("scaling.")]
            if self._fixed is None:  # at the first call, before any step freezes weights
                self._fixed = frozenset(name for name, p in own if not p.requires_grad)
            found = tuple(parameter for name, parameter in own if name not in self._fixed)
            self._weights = self.architecture, found
        return self._weights[1]

    def factors(self) -> tuple[nn.Parameter, ...]:
        """Every scaling factor."""
        return tuple(self.scaling.parameters()) if self.scaling is not None else ()

    def structure(self) -> Architecture:
        """The architecture that is left."""
        return self.architecture


def _is_first(skeleton: Skeleton, block: int) -> bool:
    stages = skeleton.block_stages
    return block == 0 or stages[block] != stages[block - 1]


def _stem(skeleton: Skeleton) -> nn.Sequential:
    first = skeleton.channels[0]
    if skeleton.stem == "cifar":
        return nn.Sequential(ConvBNReLU(skeleton.input_channels, first, 3))
    half = max(1, first // 2)
    return nn.Sequential(
        ConvBNReLU(skeleton.input_channels, half, 3, 2), ConvBNReLU(half, first, 3, 2)
    )


def initialise(network: nn.Module) -> None:
    """Give a network the start values of the paper's code.

    Convolutions N(0, sqrt(2 / (out * kh * kw))), groups ignored; linear N(0, 0.01); biases and
    beta 0, gamma 1.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def build(architecture: Architecture, *, num_classes: int | None = None) -> Network:
    """The final network of an architecture, an ordinary module with random start values.

    Args:
        architecture: what a search found, or a file gave.
        num_classes: another number of classes than the architecture's, >= 2.

    Returns:
        A network without scaling factors: images (B, input channels, H, W) to logits (B, classes).

    Example:
        >>> import torch
        >>> from dsonas.graph.spaces import cifar_space
        >>> network = build(cifar_space(channels=8, blocks=(1, 1)).complete(), num_classes=5)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    if num_classes is not None:
        skeleton = replace(architecture.skeleton, num_classes=num_classes)
        architecture = replace(architecture, skeleton=skeleton)
    return Network(architecture)
