"""Trained CIFAR-10 networks brought to a part of their multiply-adds, by us and by Torch-Pruning.

    python benchmarks/compress_cifar10.py --data DIR --work TMP --models resnet20 --seeds 3

DIR holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``. Every case is trained dense once, then
brought to each target by each kind and trained on, with the same number of further epochs, batches
and learning rates for all. A row is written as soon as a case is done; a second call goes on.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from PIL import Image
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, vgg11_bn

import dsonas
from dsonas.cost import count_model

RESULTS = Path(__file__).parent / "results" / "compress_cifar10.json"
BATCH, MOMENTUM, DECAY = 128, 0.9, 5e-4
EVERY = 5  # of so many batches one is for the factors, in our searches
OURS = {
    "ours": {},
    "channels": {"branches": False},
    "branches": {"channels": False},
    "penalty-0": {"penalty": 0.0},
    "weights-only": {"fit": None},
}
PRUNERS: dict[str, Any] = {
    "tp-magnitude": (tp.pruner.BasePruner, tp.importance.GroupMagnitudeImportance),
    "tp-bn-scale": (tp.pruner.BNScalePruner, tp.importance.BNScaleImportance),
    "tp-group-norm": (tp.pruner.GroupNormPruner, tp.importance.GroupMagnitudeImportance),
    "random": (tp.pruner.BasePruner, tp.importance.RandomImportance),
}


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.skip = nn.Identity()
        if stride > 1:
            convolution = nn.Conv2d(width, out, 1, stride, bias=False)
            self.skip = nn.Sequential(convolution, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet20() -> nn.Module:
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]
    blocks = [Residual(*width) for width in [*widths, (64, 64, 1), (64, 64, 1)]]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mobilenet_v2() -> nn.Module:
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    model = MobileNetV2(10, inverted_residual_setting=[list(s) for s in stages])
    model.features[0][0].stride = (1, 1)  # type: ignore[index, union-attr]
    return model


def vgg11() -> nn.Module:
    return nn.Sequential(vgg11_bn().features, nn.Flatten(), nn.Linear(512, 10))


def densenet40() -> nn.Module:
    blocks: Any = (6, 6, 6)
    model = DenseNet(12, blocks, 24, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 24, 3, 1, 1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


MODELS = {
    "resnet20": resnet20,
    "mobilenet_v2": mobilenet_v2,
    "vgg11_bn": vgg11,
    "densenet_bc40": densenet40,
}


def read_images(folder: Path, size: int, work: Path) -> tuple[Tensor, Tensor]:
    """All images of a part, shuffled and normalised, (N, 3, size, size), and their classes."""
    cache = work / f"{folder.name}-{size}.pt"
    if not cache.exists():
        classes = sorted(folder.iterdir())
        files = [(path, i) for i, c in enumerate(classes) for path in sorted(c.iterdir())]
        files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
        pixels = [Image.open(path).resize((size, size), Image.Resampling.BOX) for path, _ in files]
        images = torch.tensor(np.stack([np.asarray(image.convert("RGB")) for image in pixels]))
        torch.save((images, torch.tensor([i for _, i in files])), cache)
    images, labels = torch.load(cache)
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25, labels


class Loop:
    """Training as all kinds do it: crops, flips, SGD, one cosine over all epochs."""

    def __init__(self, data: tuple[Tensor, Tensor], epochs: int, lr: float, seed: int) -> None:
        self.images, self.labels = data
        self.lr, self.done = lr, 0
        self.total = epochs * (len(self.images) // BATCH)
        self.generator = torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        pad = self.images.shape[-1] // 8
        order = torch.randperm(len(self.images), generator=self.generator)
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            x = self.images[index]
            flips = torch.rand(len(x), generator=self.generator) < 0.5
            x = torch.where(flips[:, None, None, None], x.flip(3), x)
            dy, dx = torch.randint(-pad, pad + 1, (2, 8), generator=self.generator).tolist()
            shifted = zip(x.chunk(8), dy, dx, strict=True)
            x = torch.cat([_shift(part, i, j, pad) for part, i, j in shifted])
            yield x, self.labels[index]

    def epoch(self, model: nn.Module, optimizer, searcher=None, pruner=None) -> None:
        """Train weights for an epoch, with a searcher every fifth batch for the factors."""
        model.train()
        for i, (x, y) in enumerate(self.batches()):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            self.done += 1
            if searcher is not None and i % EVERY == EVERY - 1:
                searcher.step()
                continue
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + np.cos(np.pi * self.done / self.total))
            if pruner is not None:
                pruner.regularize(model)
            optimizer.step()


def _shift(x: Tensor, dy: int, dx: int, pad: int) -> Tensor:
    y = F.pad(x, [pad] * 4)
    return y[:, :, pad + dy : pad + dy + x.shape[2], pad + dx : pad + dx + x.shape[3]]


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, MOMENTUM, weight_decay=DECAY, nesterov=True)


@torch.no_grad()
def error(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Percent of images that are classified wrongly."""
    parts = zip(*(part.split(500) for part in data), strict=True)
    return 100 - 100 * float(
        sum((model.eval()(x).argmax(1) == y).sum() for x, y in parts) / len(data[0])
    )


def train_dense(model: nn.Module, data, args, seed: int) -> None:
    loop, optimizer = Loop(data, args.dense_epochs, 0.1, seed), sgd(model.parameters())
    for _ in range(args.dense_epochs):
        loop.epoch(model, optimizer)


def compress_ours(model: nn.Module, example: Tensor, share: float, loop: Loop, args, kind: str):
    options = dict(OURS[kind])
    config = dsonas.SearchConfig(lr=args.factor_lr, penalty=options.pop("penalty", args.penalty))
    optimizer = None

    def fit(net: nn.Module, searcher) -> None:
        nonlocal optimizer
        optimizer = optimizer or sgd(searcher.weights())
        loop.epoch(net, optimizer, searcher)

    steps = len(loop.images) // BATCH // EVERY
    searching: dict[str, Any] = {"fit": fit, "steps": steps, "epochs": args.search_epochs}
    result = dsonas.compress(
        model, example, budget=f"{100 * share}%", config=config, **searching | options
    )
    return result.model, vars(result.removals)


def compress_theirs(model: nn.Module, example: Tensor, share: float, loop: Loop, args, kind: str):
    pruner_class, importance = PRUNERS[kind]
    model = copy.deepcopy(model)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    whole = count_model(model, example)["macs"]
    pruner = pruner_class(
        model, example, importance=importance(), global_pruning=True, pruning_ratio=1.0,
        iterative_steps=400, ignored_layers=[last],
    )  # fmt: skip
    if pruner_class is not tp.pruner.BasePruner:
        optimizer = sgd(model.parameters())
        for _ in range(args.search_epochs):
            pruner.update_regularizer()
            loop.epoch(model, optimizer, pruner=pruner)
    while count_model(model, example)["macs"] > share * whole:
        pruner.step()
    return model, {}


def run_case(name: str, kind: str, share: float, seed: int, data, args, dense: nn.Module) -> dict:
    start = time.perf_counter()
    train, test = data
    torch.manual_seed(seed)
    example = train[0][:1]
    loop = Loop(train, args.epochs, args.lr, seed + 100)
    make = compress_ours if kind in OURS else compress_theirs
    model, more = make(dense, example, share, loop, args, kind)
    cut_error = error(model, test)
    optimizer = sgd(model.parameters())
    while loop.done < loop.total:
        loop.epoch(model, optimizer)
    found = count_model(model, example)
    return {
        "model": name, "kind": kind, "share": share, "seed": seed,
        "error": round(error(model, test), 2), "cut_error": round(cut_error, 2),
        "used": round(found["macs"] / count_model(dense, example)["macs"], 4),
        "params": found["params"], "seconds": round(time.perf_counter() - start, 1), **more,
    }  # fmt: skip


def settings(args) -> dict[str, Any]:
    names = ("size", "images", "dense_epochs", "epochs", "search_epochs", "lr", "held_out")
    return {name: getattr(args, name) for name in names}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and spread for every case, and the interval of our difference to the best of theirs."""
    yield "| model | share | kind | runs | error % | used | by penalty / budget |"
    yield "|---|---|---|---|---|---|---|"
    cases: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["model"], row["share"], row["kind"]), []).append(row)
    for (name, share, kind), found in sorted(cases.items()):
        errors = np.array([row["error"] for row in found])
        spread = f" +- {errors.std(ddof=1):.2f}" if len(found) > 1 else ""
        used = np.mean([row["used"] for row in found])
        removed = (f"{row.get('by_penalty', '')} / {row.get('by_budget', '')}" for row in found)
        yield (
            f"| {name} | {share:.0%} | {kind} | {len(found)} | {errors.mean():.2f}{spread} | "
            f"{used:.3f} | {', '.join(removed) if 'by_penalty' in found[0] else ''} |"
        )
    gaps = []
    for name, share in sorted({key[:2] for key in cases}):
        means = {k: {r["seed"]: r["error"] for r in v} for (n, s, k), v in cases.items()
                 if (n, s) == (name, share)}  # fmt: skip
        theirs = {k: v for k, v in means.items() if k.startswith("tp-")}
        if "ours" in means and theirs:
            best = min(theirs.values(), key=lambda v: np.mean(list(v.values())))
            gaps += [means["ours"][s] - best[s] for s in means["ours"].keys() & best.keys()]
    if len(gaps) > 1:
        half = 1.96 * np.std(gaps, ddof=1) / len(gaps) ** 0.5
        yield f"\nours minus the best of Torch-Pruning: {np.mean(gaps):+.2f} +- {half:.2f} points"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="for images and dense weights")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--kinds", nargs="+", default=[*OURS, *PRUNERS], choices=[*OURS, *PRUNERS])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--images", type=int, default=50000, help="for training")
    parser.add_argument("--dense-epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=40, help="further ones, the search included")
    parser.add_argument("--search-epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.05, help="of the further epochs")
    parser.add_argument("--factor-lr", type=float, default=0.02)
    parser.add_argument("--penalty", type=float, default=None)
    parser.add_argument("--held-out", action="store_true", help="test on training images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    train, test = (
        read_images(args.data / part, args.size, args.work) for part in ("train", "test")
    )
    if args.held_out:
        test = train[0][-5000:], train[1][-5000:]
    limit = min(args.images, len(train[0]) - 5000 * args.held_out)
    train = train[0][:limit], train[1][:limit]
    fresh: dict[str, Any] = {"settings": settings(args), "rows": []}
    known = json.loads(args.out.read_text()) if args.out.exists() else fresh
    if known["settings"] != settings(args):
        raise SystemExit(f"{args.out} is of other settings: {known['settings']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for name in args.models:
            torch.manual_seed(seed)
            dense = MODELS[name]()
            parts = [name, seed, args.size, limit, args.dense_epochs]
            path = args.work / f"dense-{'-'.join(map(str, parts))}.pt"
            if not path.exists():
                train_dense(dense, train, args, seed)
                torch.save(dense.state_dict(), path)
            dense.load_state_dict(torch.load(path))
            cases = [("dense", 1.0), *((k, s) for s in args.shares for k in args.kinds)]
            for kind, share in cases:
                case = {"model": name, "kind": kind, "share": share, "seed": seed}
                if any(row.items() >= case.items() for row in known["rows"]):
                    continue
                if kind == "dense":
                    row = case | {"error": round(error(dense, test), 2), "used": 1.0}
                else:
                    try:
                        row = run_case(name, kind, share, seed, (train, test), args, dense)
                    except ValueError as refusal:
                        print(f"{case}: {refusal}", flush=True)
                        continue
                print(json.dumps(row), flush=True)
                known["rows"].append(row)
                args.out.write_text(json.dumps(known, indent=1))
    print("\n".join(table(known["rows"])))


if __name__ == "__main__":
    main()
