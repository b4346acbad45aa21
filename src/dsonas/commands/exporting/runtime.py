"""An image classifier that dsonas found by architecture search.

    python network.py IMAGE...    prints file, class and probability of each image

This file is the same for every network. What it builds, and where that comes from, is said by
network.json beside it; network.pt holds the weights, and pixels.py reads image files. It needs
torch; image files also need Pillow and numpy. In evaluation mode the network computes what that of
the run computes; in training mode it goes on learning in any loop.
"""

import json
import sys
from collections import OrderedDict
from functools import cache, partial, reduce
from itertools import accumulate
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

HERE = Path(__file__).parent
BN_EPS = 2e-5


def build(layers: Any) -> nn.Module:
    """Make a layer of torch.nn from [class, arguments], or several in order from {name: layer}."""
    if isinstance(layers, dict):
        return nn.Sequential(OrderedDict((name, build(layer)) for name, layer in layers.items()))
    kind, arguments = layers
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    return getattr(nn, kind)(**values)


def conv_bn_relu(folded: bool, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """Make a convolution, batch normalisation (or none, if its bias holds it) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=folded),
        nn.Identity() if folded else nn.BatchNorm2d(outputs, eps=BN_EPS),
        nn.ReLU(),
    )


class Block(nn.Module):
    """Operations on sums of earlier results, numbered as network.json does; 0 is the block's input.

    Args:
        plan: the operations with the numbers that each adds up, and those that the output joins.
        channels: of input and output.
        operations: the layers of each operation at each number of channels.
        conv: makes a normalised convolution.
        project: whether the shortcut is a convolution.
    """

    def __init__(self, plan: Any, channels: int, operations: Any, conv: Any, project: bool):
        super().__init__()
        nodes, self.outputs = plan["nodes"], plan["output"]
        self.inputs = {name: node["inputs"] for name, node in nodes.items()}
        layers = {name: operations[node["operation"]] for name, node in nodes.items()}
        self.nodes = nn.ModuleDict({name: build(layers[name][str(channels)]) for name in nodes})
        self.shortcut = conv(channels, channels, 1) if project else nn.Identity()
        if self.outputs:
            self.output, self.output_bn, _ = conv(len(self.outputs) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels, H, W) to the same shape."""
        if not self.outputs:
            return self.shortcut(x)
        results = {0: x}
        for name, operation in self.nodes.items():
            total = reduce(torch.add, (results[i] for i in self.inputs[name]))
            results[int(name)] = relu(operation(total))
        joined = torch.cat([results[i] for i in self.outputs], 1)
        return relu(self.output_bn(self.output(joined))) + self.shortcut(x)


class Reduction(nn.Module):
    """Halve height and width: a 1x1 or a 3x3 convolution of stride 2, or the sum of both."""

    def __init__(self, names: list[str], inputs: int, outputs: int, conv: Any) -> None:
        super().__init__()
        shapes = {"conv1x1": (1, 1), "conv3x3": (3, 2)}  # size and stride
        self.branches = nn.ModuleDict({n: conv(inputs, outputs, *shapes[n]) for n in names})

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, inputs, H, W) to (B, outputs, H / 2, W / 2), rounded up."""
        seen = {"conv1x1": x[:, :, ::2, ::2], "conv3x3": x}
        return reduce(torch.add, (branch(seen[name]) for name, branch in self.branches.items()))


class Network(nn.Module):
    """The network that the values of network.json describe, with random weights; see ``load``."""

    def __init__(self, notes: dict[str, Any]) -> None:
        super().__init__()
        self.notes = notes
        conv = partial(conv_bn_relu, notes["folded"])
        stages, operations = notes["stages"], notes["operations"]
        widths = [stage["channels"] for stage in stages]
        self.stem = nn.Sequential(*(conv(*shape) for shape in notes["stem"]))
        self.blocks = nn.ModuleList(
            Block(plan, stage["channels"], operations, conv, project=i == 0)
            for stage in stages
            for i, plan in enumerate(stage["blocks"])
        )
        self.reductions = nn.ModuleList(
            Reduction(stage["reduction"], before, stage["channels"], conv)
            for stage, before in zip(stages[1:], widths, strict=False)
        )
        self.starts = list(accumulate(len(stage["blocks"]) for stage in stages))[:-1]
        self.final_bn = nn.BatchNorm2d(widths[-1], eps=BN_EPS)
        self.classifier = nn.Linear(widths[-1], len(notes["class_names"]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, input channels, size, size) to logits (B, classes)."""
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if i in self.starts:  # a stage begins
                x = self.reductions[self.starts.index(i)](x)
            x = block(x)
        return self.classifier(relu(self.final_bn(x)).mean((2, 3)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255, (..., input channels, H, W), as the network expects them."""
        values = (torch.tensor(self.notes[name], device=pixels.device) for name in ("mean", "std"))
        mean, std = (value.view(-1, 1, 1) for value in values)
        return pixels * (1 / (255 * std)) - mean / std  # (pixels / 255 - mean) / std

    def read_image(self, path: str | Path) -> Tensor:
        """An image file as the network expects it: (input channels, size, size)."""
        given = map(self.notes.get, ("image_size", "input_channels", "crop"))
        return self.normalise(torch.from_numpy(_pixel_rule()(path, *given, fit=self.notes["fit"])))


@cache
def _pixel_rule() -> Any:
    return run_path(str(HERE / "pixels.py"))["read_pixels"]


def load(folder: str | Path = HERE) -> Network:
    """Load the trained network, ready to classify."""
    folder = Path(folder)
    network = Network(json.loads((folder / "network.json").read_text(encoding="utf-8")))
    weights = torch.load(folder / "network.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().to(memory_format=torch.channels_last)  # the faster layout


@torch.inference_mode()
def main(paths: list[str]) -> int:
    """Print file, class and probability of each image; 2 if none can be read, else 0."""
    network, code = load(), 2
    for path in paths:
        try:
            image = network.read_image(path)
        except (OSError, ValueError) as error:
            print(f"{path} skipped: {error}", file=sys.stderr)
            continue
        probability, label = network(image[None]).softmax(1)[0].max(0)
        line = path, network.notes["class_names"][int(label)], f"{probability:.4f}"
        print(*map(one_line, line), sep="\t")
        code = 0
    return code


def one_line(text: str) -> str:
    """Escape what cannot be printed, such as tabs in the name of a file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {sys.argv[0]} IMAGE...")
    sys.exit(main(sys.argv[1:]))
