"""One network for every architecture, with scaling factors (search) or without (final)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from dsonas.architecture import REDUCTION_OPERATIONS, Architecture, BlockGraph, Skeleton
from dsonas.mixing import BufferPool, Schedule, fused_block
from dsonas.operations import build_operation
from dsonas.scaling import ScalingFactors

BN_EPS = 2e-5
AUXILIARY_CHANNELS = (128, 768)


def batch_norm(channels: int, learn_gamma: bool = True) -> nn.BatchNorm2d:
    """Batch normalisation as the paper sets it; a fixed gamma is 1 and gets no gradient."""
    module = nn.BatchNorm2d(channels, eps=BN_EPS, momentum=0.1)
    module.weight.requires_grad_(learn_gamma)
    return module


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, BN, ReLU.

    A 1x1 convolution of stride 2 is taken as a slice and a stride-1 convolution: the same maths,
    and safe in channels_last on CPUs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int = 1,
        learn_gamma: bool = True,
        padding: int | None = None,
    ) -> None:
        self.slice_stride = stride if kernel_size == 1 else 1
        padding = kernel_size // 2 if padding is None else padding
        super().__init__(
            nn.Conv2d(
                inputs,
                outputs,
                kernel_size,
                stride=stride // self.slice_stride,
                padding=padding,
                bias=False,
            ),
            batch_norm(outputs, learn_gamma),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride), rounded up."""
        if self.slice_stride > 1:
            x = x[:, :, :: self.slice_stride, :: self.slice_stride]
        return super().forward(x)


class Candidate(nn.Module):
    """An operation with its batch normalisation; the block applies the ReLU."""

    def __init__(self, operation: str, channels: int, learn_gamma: bool) -> None:
        super().__init__()
        self.operation = build_operation(operation, channels)
        self.bn = batch_norm(channels, learn_gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, before the ReLU."""
        return self.bn(self.operation(x))


class Block(nn.Module):
    """A block of any graph (eq. 3 and 4): with scaling factors, or plain sums without.

    Args:
        graph: cleaned connections; its kept nodes get modules.
        channels: C of input and output.
        projecting: the shortcut is ReLU(BN(conv 1x1)) rather than the identity.
        learn_gamma: of the BNs in operations and in the projecting shortcut.
        reference: run supernets by the plain path too.
        pool: buffers shared with the network's other blocks.
    """

    def __init__(
        self,
        graph: BlockGraph,
        channels: int,
        *,
        projecting: bool = False,
        learn_gamma: bool = True,
        reference: bool = False,
        pool: BufferPool | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.reference = reference
        self.pool = pool or BufferPool()
        self.schedule = Schedule.of(graph)
        self.positions: dict[tuple[int, int], int] = {
            pair: i for i, pair in enumerate(graph.connections)
        }
        self.nodes = nn.ModuleDict(
            {
                str(node): Candidate(graph.operation(node), channels, learn_gamma)
                for node in graph.kept_nodes
            }
        )
        self.shortcut = (
            ConvBNReLU(channels, channels, 1, learn_gamma=learn_gamma)
            if projecting
            else nn.Identity()
        )
        if graph.kept_nodes:
            width = channels * len(graph.inputs[graph.output_node])
            self.output = nn.Conv2d(width, channels, 1, bias=False)
            self.output_bn = batch_norm(channels)

    def forward(self, x: Tensor, factors: Tensor | None = None, drop_path: float = 0.0) -> Tensor:
        """Run the block.

        Args:
            x: (B, C, H, W).
            factors: packed scaling factors, or None for plain sums.
            drop_path: probability, per sample, of dropping an input or output branch.
        """
        if not self.graph.kept_nodes:
            return self.shortcut(x)
        if factors is None or self.reference or not (self.training and torch.is_grad_enabled()):
            y = self._plain(x, factors, drop_path if self.training else 0.0)
        else:
            y = self._fused(x, factors)
        return F.relu(self.output_bn(y)) + self.shortcut(x)

    def _plain(self, x: Tensor, factors: Tensor | None, drop_path: float) -> Tensor:
        features = {0: x}
        for node in self.graph.kept_nodes:
            sources = self.graph.inputs[node]
            if self.graph.level(node) == 1:
                z = x
            else:
                drop = drop_path if len(sources) > 1 else 0.0
                branches = [self._branch(features[s], s, node, factors, drop) for s in sources]
                z = _sum(branches)
            features[node] = F.relu(self.nodes[str(node)](z))
        end = self.graph.output_node
        outputs = [
            self._branch(features[s], s, end, factors, drop_path) for s in self.graph.inputs[end]
        ]
        return self._project(outputs)

    def _project(self, branches: list[Tensor]) -> Tensor:
        if self.reference:
            weights = self.output.weight.split(branches[0].shape[1], 1)
            return _sum([F.conv2d(x, w) for x, w in zip(branches, weights, strict=True)])
        return self.output(branches[0] if len(branches) == 1 else torch.cat(branches, 1))

    def _branch(
        self, x: Tensor, source: int, target: int, factors: Tensor | None, drop_path: float
    ) -> Tensor:
        if factors is not None:
            x = x * factors[self.positions[source, target]]
        return stochastic_depth(x, drop_path, "row", True) if drop_path > 0 else x

    def _fused(self, x: Tensor, factors: Tensor) -> Tensor:
        candidates = [self.nodes[str(node)] for node in self.schedule.nodes]
        parameters = [
            [p for p in candidate.parameters() if p.requires_grad] for candidate in candidates
        ]
        weight = self.output.weight
        return fused_block(x, factors, weight, self.schedule, candidates, parameters, self.pool)


def _sum(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


class ReductionBlock(nn.Module):
    """Halve the resolution: the scaled sum of a 1x1 and a 3x3 convolution of stride 2."""

    def __init__(
        self, live: tuple[bool, ...], inputs: int, outputs: int, learn_gamma: bool
    ) -> None:
        super().__init__()
        self.live = live
        self.branches = nn.ModuleDict(
            {
                name: ConvBNReLU(inputs, outputs, kernel, 2, learn_gamma)
                for name, kernel, alive in zip(REDUCTION_OPERATIONS, (1, 3), live, strict=True)
                if alive
            }
        )

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / 2, W / 2), rounded up."""
        total = None
        for name, branch in self.branches.items():
            y = branch(x)
            if factors is not None:
                y = y * factors[REDUCTION_OPERATIONS.index(name)]
            total = y if total is None else total + y
        assert total is not None
        return total


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


class Network(nn.Module):
    """The network of an architecture.

    Args:
        architecture: which connections and channels; it is cleaned first.
        sharing: ``share`` or ``full`` gives scaling factors to the connections (supernet); None
            runs plain sums (final network).
        learn_gamma: whether the BNs of operations, reduction convolutions and projecting shortcuts
            learn gamma; None: only without scaling factors (a learned gamma would absorb them).
        auxiliary: add the auxiliary head.
        dropout: probability of dropping a feature before the classifier, in [0, 1).
        reference: run blocks with scaling factors by the plain path, one connection at a time.

    Attributes:
        drop_path: probability of dropping a branch in the last block, set by the training loop;
            it grows linearly with depth to that.

    Example:
        >>> from dsonas.spaces import cifar_space
        >>> space = cifar_space(channels=8, blocks=(1, 1))
        >>> supernet = Network(space.complete(), sharing="share")
        >>> supernet(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        sharing: str | None = None,
        learn_gamma: bool | None = None,
        auxiliary: bool = False,
        dropout: float = 0.0,
        reference: bool = False,
    ) -> None:
        super().__init__()
        architecture = architecture.clean()
        gamma = sharing is None if learn_gamma is None else learn_gamma
        skeleton = architecture.skeleton
        self.architecture = architecture
        self.sharing = sharing
        self.drop_path = 0.0
        self.pool = BufferPool()
        self.stem = _stem(skeleton)
        self.blocks = nn.ModuleList(
            Block(
                graph,
                skeleton.channels[stage],
                projecting=_is_first(skeleton, i),
                learn_gamma=gamma,
                reference=reference,
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
        self.scaling = None if sharing is None else ScalingFactors.ones(architecture, sharing)
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
        x = self.stem(x)
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

    def weights(self) -> Iterator[nn.Parameter]:
        """Every parameter that is not a scaling factor and not a fixed gamma."""
        for name, parameter in self.named_parameters():
            if not name.startswith("scaling.") and name not in self._fixed_names():
                yield parameter

    def _fixed_names(self) -> frozenset[str]:
        if not hasattr(self, "_fixed"):
            # Taken once, at the first call, before any step freezes weights.
            self._fixed = frozenset(
                name for name, p in self.named_parameters() if not p.requires_grad
            )
        return self._fixed

    def train_only(self, part: str) -> None:
        """Ask for gradients of ``weights`` or ``factors`` alone; the others cost nothing.

        Raises:
            ValueError: if ``part`` is neither.
        """
        if part not in ("weights", "factors"):
            raise ValueError(f"part must be 'weights' or 'factors', got {part!r}")
        for parameter in self.weights():
            parameter.requires_grad_(part == "weights")
        if self.scaling is not None:
            for factor in self.scaling.parameters():
                factor.requires_grad_(part == "factors")


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

    Example:
        >>> from dsonas.spaces import cifar_space
        >>> network = build(cifar_space(channels=8, blocks=(1, 1)).complete(), num_classes=5)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    if num_classes is not None:
        skeleton = replace(architecture.skeleton, num_classes=num_classes)
        architecture = replace(architecture, skeleton=skeleton)
    return Network(architecture)
