"""Segmentation (CamVid): an encoder-decoder found by a search, beside random ones of equal cost.

All are trained alike, from new weights. Settings were chosen on `val`; the figures are of `test`.
DSONAS_DATA=FOLDER python examples/segmentation.py    (FOLDER/camvid-180x240.tar.xz)
"""

import json
import os
import random
import tarfile
import time
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import JaccardIndex
from torchvision.transforms import v2

import dsonas
from dsonas.cost import count_choices

CLASSES, VOID, BATCH = 11, 11, 8
ARCHIVE = Path(os.environ.get("DSONAS_DATA", "../shared/data")) / "camvid-180x240.tar.xz"
AUGMENT = v2.Compose([v2.RandomCrop((120, 160)), v2.RandomHorizontalFlip()])  # of a batch at once


def read_part(part: str, most: int | None):
    """Images (n, 3, 180, 240) in [-1, 1], and their masks (n, 180, 240)."""
    found = {"images": [], "masks": []}
    with tarfile.open(ARCHIVE) as files:
        for file in sorted(files, key=lambda file: file.name):
            if file.isfile() and Path(file.name).parts[1] == part:
                picture = v2.functional.pil_to_tensor(Image.open(files.extractfile(file)))
                found[Path(file.name).parts[2]].append(picture)
    images, masks = (torch.stack(some[:most]) for some in found.values())
    return TensorDataset(images.float() / 127.5 - 1, masks[:, 0].long())


def conv(c_in: int, c_out: int, kernel=3, stride=1, dilation=1, groups=1) -> nn.Module:
    pad = dilation * (kernel // 2)
    layer = nn.Conv2d(c_in, c_out, kernel, stride, pad, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


class Layer(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        convs = {"conv": conv(c, c), "dilated": conv(c, c, dilation=3), "1x1": conv(c, c, 1)}
        separable = nn.Sequential(conv(c, c, 5, groups=c), conv(c, c, 1))
        others = {"separable": separable, "pool": nn.AvgPool2d(3, 1, 1), "none": dsonas.Zero()}
        self.choice = dsonas.LayerChoice(convs | others)

    def forward(self, x):
        return x + self.choice(x)


class EncoderDecoder(nn.Module):
    """Three resolutions down and up again: which layers, and which features each joint adds up."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        widths = (c, 2 * c, 4 * c)
        downs = [(conv(max(c, w // 2), w, stride=2), Layer(w), Layer(w)) for w in widths]
        self.down = nn.ModuleList(nn.Sequential(*down) for down in downs)
        self.down[0].insert(0, conv(3, c, stride=2))
        self.up = nn.ModuleList(nn.ModuleList(conv(w, v, 1) for w in widths) for v in widths[:2])
        self.joints = nn.ModuleList(dsonas.InputChoice(3, keep=2) for _ in range(2))
        self.layers, self.head = nn.ModuleList(map(Layer, widths[:2])), nn.Conv2d(c, CLASSES, 1)

    def forward(self, images):
        features = [images := down(images) for down in self.down]
        for i in (1, 0):
            ups, size = zip(self.up[i], features, strict=True), features[i].shape[2:]
            same = [F.interpolate(up(y), size) for up, y in ups]
            features[i] = self.layers[i](self.joints[i](same))
        return F.interpolate(self.head(features[0]), scale_factor=2, mode="bilinear")


def loss_of(model, images, masks):
    both = AUGMENT(torch.cat([images, masks[:, None]], 1))
    return F.cross_entropy(model(both[:, :3]), both[:, 3, ::2, ::2].long(), ignore_index=VOID)


def search(data, epochs: int, budget: str, seed: int):
    torch.manual_seed(seed)
    model, halves = EncoderDecoder(), random_split(data, [0.5, 0.5])
    weight_part, factor_part = (DataLoader(half, BATCH, shuffle=True) for half in halves)
    bounds = {"budget": dsonas.Budget(macs=budget), "steps": epochs * len(factor_part)}
    searcher = dsonas.Searcher(model, data[:1][0], seed=seed, **bounds)
    optimizer = torch.optim.Adam(searcher.weights(), lr=0.003)
    for _ in range(epochs):
        for batch, factor_batch in zip(weight_part, factor_part, strict=False):
            optimizer.zero_grad()
            loss_of(model, *batch).backward()
            optimizer.step()
            loss_of(model, *factor_batch).backward()
            searcher.step()
    return searcher.finish()


def random_choices(data, cost: float, seed: int):
    draw, model = random.Random(seed), EncoderDecoder()
    counted, modules = count_choices(model, data[:1][0]), dict(model.named_modules()).items()
    while True:
        some = {k: draw.sample(m.names, m.keep) for k, m in modules if hasattr(m, "keep")}
        if abs(counted.cost(some) / cost - 1) < 0.02:  # any of these multiply-adds, nearly
            return some


def trained_miou(choices, data, held_out, epochs: int, seed: int) -> float:
    torch.manual_seed(seed)
    model, batches = dsonas.apply_choices(EncoderDecoder(), choices), DataLoader(data, BATCH, True)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs * len(batches))
    for batch in (batch for _ in range(epochs) for batch in batches):
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()
        schedule.step()
    metric = JaccardIndex(task="multiclass", num_classes=CLASSES, ignore_index=VOID)
    model.eval().requires_grad_(False)
    for images, masks in DataLoader(held_out, BATCH):
        metric.update(F.interpolate(model(images), masks.shape[1:], mode="bilinear"), masks)
    return 100 * metric.compute().item()


def main(seeds=range(10), epochs=10, budget="30%", part="test", most=None, out=None) -> None:
    begin, data, held_out, rows = time.time(), read_part("train", most), read_part(part, most), []
    for seed in seeds:
        found = search(data, epochs, budget, seed)
        nets = [dict(found.choices)]
        nets += [random_choices(data, found.cost, 9 * seed + i) for i in range(3)]
        score, *others = (trained_miou(net, data, held_out, epochs, seed) for net in nets)
        rows.append({"seed": seed, "macs": found.cost, "found": score, "random": others})
        print(rows[-1], dict(found.choices), flush=True)
    groups = {"found": [r["found"] for r in rows], "random": [s for r in rows for s in r["random"]]}
    value = {name: {"mean": mean(some), "std": stdev(some)} for name, some in groups.items()}
    value |= {"part": part, "epochs": epochs, "budget": budget, "threads": torch.get_num_threads()}
    value |= {"seconds": time.time() - begin, "cpu_seconds": time.process_time()}
    print(value)
    text = json.dumps({**value, "cpu": torch.backends.cpu.get_cpu_capability(), "seeds": rows})
    Path(out or Path(__file__).with_suffix(".json")).write_text(text + "\n")


if __name__ == "__main__":
    main()
