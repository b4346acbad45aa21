"""The space of NAS-Bench-201 in LayerChoice, and a search of it in a plain loop.

python examples/nas_bench_201_space.py FOLDER   (FOLDER/train/CLASS/*.jpg, such as CIFAR-10)
"""

import argparse
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import dsonas

EDGES = [(source, target) for target in (1, 2, 3) for source in range(target)]


def relu_conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


class Cell(nn.Module):
    """Nodes 0 to 3; a choice on every edge to a later one, the same in all cells."""

    def __init__(self, c: int) -> None:
        super().__init__()
        for source, target in EDGES:
            candidates = OrderedDict(
                none=dsonas.Zero(), skip_connect=nn.Identity(),
                nor_conv_1x1=relu_conv_bn(c, c, 1), nor_conv_3x3=relu_conv_bn(c, c, 3),
                avg_pool_3x3=nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            )  # fmt: skip
            label = f"{source}->{target}"
            self.add_module(label, dsonas.LayerChoice(candidates, label=label))

    def forward(self, x):
        nodes = [x]
        for target in (1, 2, 3):
            nodes.append(sum(self._modules[f"{s}->{target}"](nodes[s]) for s in range(target)))
        return nodes[3]


class Reduction(nn.Module):
    """A basic residual block of stride 2."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(relu_conv_bn(c, 2 * c, 3, 2), relu_conv_bn(2 * c, 2 * c, 3))
        self.short = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c, 2 * c, 1, bias=False))

    def forward(self, x):
        return self.body(x) + self.short(x)


def nas_bench_201(c: int = 16, cells: int = 5, classes: int = 10) -> nn.Module:
    layers = [nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)]
    for stage in range(3):
        layers += [Cell(c << stage) for _ in range(cells)]
        layers += [Reduction(c << stage)] if stage < 2 else []
    head = [nn.BatchNorm2d(4 * c), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(4 * c, classes))


def cell_string(choices) -> str:
    """The architecture as NAS-Bench-201 writes it."""
    nodes = [[f"{choices[f'{s}->{t}'][0]}~{s}" for s in range(t)] for t in (1, 2, 3)]
    return "+".join("|" + "|".join(node) + "|" for node in nodes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    pixels = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    parts = random_split(ImageFolder(f"{args.folder}/train", pixels), [0.5, 0.5])
    weight_part, factor_part = (DataLoader(p, 64, shuffle=True, drop_last=True) for p in parts)
    model = nas_bench_201(c=8, cells=1, classes=len(parts[0].dataset.classes))
    steps = args.epochs * len(factor_part)
    searcher = dsonas.Searcher(model, torch.zeros(1, 3, 32, 32), steps=steps)
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(args.epochs):
        for (x, y), (xf, yf) in zip(weight_part, factor_part, strict=False):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            F.cross_entropy(model(xf), yf).backward()
            searcher.step()
        print(epoch + 1, f"{searcher.cost() / 1e6:.2f} M multiply-adds", flush=True)
    print(cell_string(searcher.finish().choices))
