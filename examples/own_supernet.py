"""A supernet of your own for `dsonas run`: what each layer computes, and how deep it is.

dsonas run --network.supernet examples/own_supernet.py:make_supernet --data.name digits \
        --budget.macs 60% --epochs 6 --out runs/own
"""

from torch import nn

import dsonas


def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def separable(channels: int, kernel: int) -> nn.Module:
    return nn.Sequential(conv(channels, channels, kernel, channels), conv(channels, channels, 1))


def layer(channels: int, label: str) -> nn.Module:
    """A choice; nn.Identity() among the candidates makes it one of the depth, too."""
    candidates = {
        "conv3x3": conv(channels, channels, 3),
        "separable5x5": separable(channels, 5),
        "max_pool3x3": nn.MaxPool2d(3, stride=1, padding=1),
        "skip": nn.Identity(),
    }
    return dsonas.LayerChoice(candidates, label=label)


def make_supernet(num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    """Images (B, in_channels, H, W) to logits (B, num_classes)."""
    return nn.Sequential(
        conv(in_channels, width, 3),
        layer(width, "first"),
        layer(width, "second"),
        conv(width, 2 * width, 3),
        nn.MaxPool2d(2),
        layer(2 * width, "third"),
        layer(2 * width, "fourth"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
