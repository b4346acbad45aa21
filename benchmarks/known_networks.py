"""What people would take instead: ResNet and MobileNetV2, as wide as a budget allows.

Both are in their forms for images of 32 pixels or fewer, and trained exactly as ``dsonas compare``
trains the networks of a study, by the settings of a recipe; the width is the largest within the
budget.

    python benchmarks/known_networks.py --config cifar10-small --data folder:DIR --out FILE

Every training is a row, kept at once; the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import MobileNetV2
from torchvision.models.resnet import BasicBlock

from dsonas._utils import derive_seed, write_atomically
from dsonas.commands.configuring import config_parser, parse, to_config
from dsonas.cost import Budget
from dsonas.data import load_data
from dsonas.run import RunConfig
from dsonas.run.measuring import held_out_batches, training_batches
from dsonas.train import Engine, Journal, Training, evaluate, run_stage
from stepper import cpu_name

SIZE = 32  # pixels a side of CIFAR's images


class SmallResNet(nn.Module):
    """ResNet-(6 depth + 2) for small images: three stages of ``depth`` basic blocks.

    Args:
        depth: blocks of a stage.
        width: hundredths of the published one.
        classes: of the images.

    Source: arXiv 1512.03385, section 4.2; shortcuts that change the shape are convolutions.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        channels = [max(1, round(published * width / 100)) for published in (16, 32, 64)]
        inputs = channels[0]
        layers: list[nn.Module] = [*conv_bn(3, inputs, 3, 1), nn.ReLU()]
        for stage, outputs in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                changes = stride > 1 or inputs != outputs
                point = nn.Sequential(EveryOther(stride), *conv_bn(inputs, outputs, 1, 1))
                short = point if changes else None
                layers.append(BasicBlock(inputs, outputs, stride, short))
                inputs = outputs
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        self.layers = nn.Sequential(*layers, *head)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes)."""
        return self.layers(images)


class EveryOther(nn.Module):
    """Take every ``stride``-th pixel: what a pointwise convolution of a stride reads.

    Such a convolution of few channels corrupts memory in its backward pass on CPUs (torch 2.14.1).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to (B, C, H / stride, W / stride)."""
        return x[:, :, :: self.stride, :: self.stride]


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    """A convolution without bias, and its normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def small_mobilenet(width: int, classes: int) -> nn.Module:
    """MobileNetV2 for small images: torchvision's, with strides of 1 in its first two stages.

    Args:
        width: hundredths of the published one.
        classes: of the images.

    Source: arXiv 1801.04381, table 2; the last layer shrinks with the others.
    """
    stages = [
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2],
        [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    net = MobileNetV2(classes, width / 100, stages, round_nearest=2, dropout=0.0)
    first, end = (net.get_submodule(f"features.{i}.0") for i in (0, len(net.features) - 1))
    assert isinstance(first, nn.Conv2d)
    assert isinstance(end, nn.Conv2d)
    first.stride, last = (1, 1), max(2, round(1280 * width / 100))
    net.features[-1] = nn.Sequential(*conv_bn(end.in_channels, last, 1, 1), nn.ReLU6())
    net.classifier = nn.Sequential(nn.Linear(last, classes))
    return net


def multiply_adds(net: nn.Module, size: int = SIZE) -> int:
    """Count the multiply-adds of an image of ``size`` x ``size`` pixels."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


KNOWN: dict[str, Callable[[int, int], nn.Module]] = {
    "ResNet-8": lambda width, classes: SmallResNet(1, width, classes),
    "ResNet-14": lambda width, classes: SmallResNet(2, width, classes),
    "MobileNetV2": small_mobilenet,
}


def widest(
    build: Callable[[int, int], nn.Module], classes: int, limit: float, size: int = SIZE
) -> int:
    """Find the largest width within a limit of multiply-adds."""
    width = 1
    while multiply_adds(build(width + 1, classes), size) <= limit:
        width += 1
    return width


def trained(net: nn.Module, config: RunConfig, data: Any) -> dict[str, float]:
    """Train a network as step 3 of a run does; its error on the test images."""
    engine = Engine(config.engine)
    engine.place(net)
    test = held_out_batches(data, engine)
    batches = training_batches(data, engine, config)
    stage = Training(net, batches, test, config.train, engine, config.seed, measurements=1)
    run_stage(stage, Journal(), engine.device)
    return evaluate(net, test, engine)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="a recipe or YAML file")
    parser.add_argument("--data", required=True, help="as --data.name")
    parser.add_argument("--macs", default="2M", help="bound on the multiply-adds")
    parser.add_argument("--image_size", type=int, default=SIZE, help="pixels a side")
    parser.add_argument("--networks", nargs="+", choices=KNOWN, default=list(KNOWN))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, help="instead of those of the configuration")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    given = ["--config", options.config, "--data.name", options.data, "--engine.threads", "1"]
    given += ["--data.image_size", str(options.image_size)]
    config = to_config(parse(config_parser("run", "", ()), given))
    if options.epochs:
        config = replace(config, train=replace(config.train, epochs=options.epochs))
    limit = Budget(macs=options.macs).bounds["macs"]
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    for seed in range(options.seeds):
        now = replace(config, seed=seed)
        data = load_data(now.data, seed)
        for name in options.networks:
            case = {
                "network": name, "limit": limit, "image_size": data.image_size,
                "epochs": now.train.epochs, "seed": seed,
            }  # fmt: skip
            if any(case.items() <= row.items() for row in rows):
                continue
            build = KNOWN[name]
            width = widest(build, data.num_classes, limit, data.image_size)
            start = time.process_time()
            torch.manual_seed(derive_seed(seed, "network"))
            net = build(width, data.num_classes)
            found = trained(net, now, data)
            rows.append({
                **case, "width": width, "macs": multiply_adds(net, data.image_size),
                "params": sum(weight.numel() for weight in net.parameters()),
                "test_error": round(found["test_error"], 4),
                "cpu_seconds": round(time.process_time() - start, 1),
                "cpu": cpu_name(), "torch": torch.__version__,
            })  # fmt: skip
            print(rows[-1], flush=True)
            write_atomically(options.out, (json.dumps(rows, indent=1) + "\n").encode())
    for name in options.networks:
        errors = [row["test_error"] for row in rows if row["network"] == name]
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        print(f"{name}: {mean(errors):.2f}{spread} % ({len(errors)} trainings)")


if __name__ == "__main__":
    main()
