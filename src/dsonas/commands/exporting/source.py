"""A network as one readable Python file that needs torch alone, and its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from torch import nn

from dsonas.commands.exporting.block_source import (
    BlockClass,
    Weights,
    block_classes,
    block_weights,
    is_projecting,
    sequence_weights,
)
from dsonas.commands.exporting.deployment import Deployment
from dsonas.commands.exporting.formatting import Group, Keyword, literal, statement
from dsonas.commands.exporting.names import function_names
from dsonas.commands.exporting.operation_source import operation_function
from dsonas.commands.exporting.template import CONV_BN_RELU, CONV_RELU, HEAD, REDUCTION, TAIL
from dsonas.graph import Skeleton
from dsonas.nn import BN_EPS, Block, ConvBNReLU, Network, ReductionBlock


@dataclass(frozen=True)
class NetworkSource:
    """Source text with a class ``Network``, and the state dict that fits it."""

    text: str
    weights: Weights


def network_source(deployment: Deployment) -> NetworkSource:
    """Write a network as an ordinary module.

    Args:
        deployment: the network and what travels with it.

    Raises:
        ExportError: if an operation is not made of modules of ``torch.nn``.

    Example:
        >>> from dsonas.nn.network import build
        >>> from dsonas.run.runs import Preprocessing
        >>> from dsonas.graph.spaces import cifar_space
        >>> network = build(cifar_space(channels=4, blocks=(1, 1)).complete(), num_classes=2).eval()
        >>> names = Preprocessing(("cat", "dog"), (0.5,) * 3, (0.2,) * 3)
        >>> source = network_source(Deployment(network=network, preprocessing=names))
        >>> "self.block1 = Block(4)" in source.text, "classifier.weight" in source.weights
        (True, True)
    """
    writer = _Writer(deployment)
    parts = (_head(deployment), *writer.definitions(), writer.network(), TAIL)
    weights = {key: value.detach().clone() for key, value in writer.weights.items()}
    return NetworkSource("\n\n\n".join(parts), weights)


@dataclass(frozen=True)
class _Step:
    """What the network does with ``x`` at one place, and the module that does it."""

    name: str
    call: Group
    argument: str = "x"
    comment: str = ""


@dataclass
class _Writer:
    """Collects the steps of a network with the weights of each."""

    deployment: Deployment
    classes: list[BlockClass] = field(init=False)
    steps: list[_Step] = field(init=False)
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = block_classes(self._blocks)
        self.steps = list(self._steps())
        head = nn.ModuleDict({"norm": self._network.final_bn})
        head["classifier"] = self._network.classifier
        self.weights |= head.state_dict()

    @property
    def _network(self) -> Network:
        return self.deployment.network

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self._network.blocks))

    @property
    def _skeleton(self) -> Skeleton:
        return self._network.architecture.skeleton

    @property
    def _convolution(self) -> str:
        return "conv_relu" if self.deployment.folded else "conv_bn_relu"

    def definitions(self) -> Iterator[str]:
        """The functions and classes that the network is made of."""
        folded = self.deployment.folded
        yield (CONV_RELU if folded else CONV_BN_RELU).substitute(eps=BN_EPS)
        channels = self._channels_by_operation()
        functions = function_names(channels)
        for operation, function in functions.items():
            yield operation_function(operation, function, channels[operation], folded)
        for block_class in self.classes:
            yield block_class.source(functions, self._convolution)
        if any(step.call.head == "Reduction" for step in self.steps):
            yield REDUCTION.substitute(convolution=self._convolution)

    def _channels_by_operation(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        stages = self._skeleton.block_stages
        for block_class in self.classes:
            channels = {self._skeleton.channels[stages[i - 1]] for i in block_class.places}
            for node in block_class.graph.kept_nodes:
                found.setdefault(block_class.graph.operation(node), set()).update(channels)
        return {
            name: found[name] for name in self._network.architecture.operations if name in found
        }

    def network(self) -> str:
        """The class of the whole network."""
        skeleton = self._skeleton
        size, last, classes = skeleton.image_size, skeleton.channels[-1], skeleton.num_classes
        blocks = _counted(skeleton.num_blocks, "block")
        stages = _counted(len(skeleton.blocks), "stage")
        images = f"images (B, {skeleton.input_channels}, {size}, {size})"
        norm = Group("nn.BatchNorm2d", (literal(last), Keyword("eps", literal(BN_EPS))))
        lines = [
            "class Network(nn.Module):",
            f'    """The whole network: {blocks} in {stages}."""',
            "",
            "    def __init__(self) -> None:",
            "        super().__init__()",
            *(statement(f"self.{step.name} =", step.call, 8) for step in self.steps),
            statement("self.norm =", norm, 8),
            f"        self.classifier = nn.Linear({last}, {classes})",
            "",
            "    def forward(self, x: Tensor) -> Tensor:",
            f'        """Normalised {images} to logits (B, {classes})."""',
            *(f"        x = self.{s.name}({s.argument}){s.comment}" for s in self.steps),
            "        x = relu(self.norm(x)).mean((2, 3))",
            "        return self.classifier(x)",
        ]
        return "\n".join(lines)

    def _steps(self) -> Iterator[_Step]:
        yield self._stem()
        stages, last = self._skeleton.block_stages, 0
        for place, (block, stage) in enumerate(zip(self._blocks, stages, strict=True), 1):
            if stage != last:
                yield self._reduction(stage)
                last = stage
            yield from self._block(place, block, self._skeleton.channels[stage])

    def _block(self, place: int, block: Block, channels: int) -> Iterator[_Step]:
        name = f"block{place}"
        for block_class in self.classes:
            if place in block_class.places:
                self.weights |= {f"{name}.{k}": value for k, value in block_weights(block).items()}
                yield _Step(name, block_class.call(block, channels))
        if not block.graph.kept_nodes and is_projecting(block):
            # a block that has lost all operations is its shortcut
            self.weights |= sequence_weights(name, block.shortcut.children())
            yield _Step(name, self._conv(channels, channels, 1))

    def _conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> Group:
        items = [literal(inputs), literal(outputs), literal(size)]
        if stride > 1:
            items.append(Keyword("stride", literal(stride)))
        return Group(self._convolution, tuple(items))

    def _shape(self, stage: int) -> str:
        size = self._skeleton.stage_sizes[stage]
        return f"  # {self._skeleton.channels[stage]} x {size} x {size}"

    def _stem(self) -> _Step:
        convolutions = cast(list[ConvBNReLU], list(self._network.stem))
        calls = []
        for i, convolution in enumerate(convolutions):
            name = "stem" if len(convolutions) == 1 else f"stem.{i}"
            self.weights |= sequence_weights(name, convolution.children())
            first = cast(nn.Conv2d, convolution[0])
            size, stride = first.kernel_size[0], first.stride[0]
            calls.append(self._conv(first.in_channels, first.out_channels, size, stride))
        call = calls[0] if len(calls) == 1 else Group("nn.Sequential", tuple(calls))
        return _Step("stem", call, comment=self._shape(0))

    def _reduction(self, stage: int) -> _Step:
        reduction = cast(ReductionBlock, self._network.reductions[stage - 1])
        name, both = f"reduction{stage}", all(reduction.live)
        inputs, outputs = self._skeleton.channels[stage - 1 : stage + 1]
        for branch, convolution in reduction.branches.items():
            prefix = f"{name}.{branch}" if both else name
            self.weights |= sequence_weights(prefix, convolution.children())
        call, argument = Group("Reduction", (literal(inputs), literal(outputs))), "x"
        if not both and reduction.live[0]:
            call, argument = self._conv(inputs, outputs, 1), "x[:, :, ::2, ::2]"
        elif not both:
            call = self._conv(inputs, outputs, 3, 2)
        return _Step(name, call, argument, self._shape(stage))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _head(deployment: Deployment) -> str:
    skeleton, preprocessing = deployment.network.architecture.skeleton, deployment.preprocessing
    return HEAD.substitute(
        facts="\n".join(f"{name:<8}{text}" for name, text in _facts(deployment)),
        class_names=statement("CLASS_NAMES =", literal(preprocessing.class_names)),
        image_size=skeleton.image_size,
        input_channels=skeleton.input_channels,
        color="grey" if skeleton.input_channels == 1 else "red, green, blue",
        mean=statement("MEAN =", literal(_shortest(preprocessing.mean))),
        std=statement("STD =", literal(_shortest(preprocessing.std))),
    )


def _shortest(values: Sequence[float]) -> list[float]:
    """The fewest digits that give the same numbers in float32, in which they are used."""
    return [float(str(np.float32(value))) for value in values]


def _facts(deployment: Deployment) -> Iterator[tuple[str, str]]:
    import dsonas

    skeleton = deployment.network.architecture.skeleton
    size = skeleton.image_size
    yield "input", f"{skeleton.input_channels} x {size} x {size} pixels"
    yield "output", f"{skeleton.num_classes} classes"
    yield "cost", f"{deployment.macs:,} multiply-adds, {deployment.params:,} parameters"
    if deployment.test_error is not None:
        yield "error", f"{deployment.test_error:.2f} % of the test images"
    seed = "" if deployment.seed is None else f", seed {deployment.seed}"
    yield "origin", f"{_harmless(deployment.data)}{seed}, dsonas {dsonas.__version__}"
    if deployment.folded:
        yield "folded", "batch normalisation behind convolutions is part of their weights"


def _harmless(text: str) -> str:
    """Free text for a docstring: one line without what could end it."""
    line = " ".join(text.split()).replace("\\", "/").replace('"', "'")
    return "".join(letter if letter.isprintable() else "?" for letter in line)
