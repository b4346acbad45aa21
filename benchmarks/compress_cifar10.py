"""Trained CIFAR-10 networks brought to a part of their multiply-adds, by us and by Torch-Pruning.

    python benchmarks/compress_cifar10.py --data DIR --work TMP --models resnet20 --seeds 3

DIR holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``. For each seed every model is trained
dense, then brought to each target by each kind and trained on, with the same number of further
epochs, batches and learning rates for all. A row is written as soon as a case is done; a second
call goes on, and ``--latency`` adds to the rows of the first seed how long an image takes.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
import torch_pruning as tp
from scipy.stats import t
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torchvision.models import DenseNet
from torchvision.models.vgg import make_layers

import dsonas
from cifar_folders import read_images
from dsonas.cost import count_model
from known_networks import SmallResNet, small_mobilenet

RESULTS = Path(__file__).parent / "results" / "compress-cifar10.json"
BATCH, MOMENTUM, DECAY, HELD_OUT = 128, 0.9, 5e-4, 10000
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


def vgg11() -> nn.Module:
    """Half as wide as published; pooling rounds up, for images below 32 pixels."""
    widths = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]
    layers = make_layers(widths, batch_norm=True)  # type: ignore[arg-type]
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(256, 10))


def densenet40() -> nn.Module:
    blocks: Any = (6, 6, 6)
    model = DenseNet(12, blocks, 24, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 24, 3, 1, 1, bias=False)
    model.features.pool0 = nn.Identity()
    return model


MODELS = {
    "resnet20": lambda: SmallResNet(3, 100, 10),
    "vgg11_bn": vgg11,
    "mobilenet_v2": lambda: small_mobilenet(50, 10),
    "densenet_bc40": densenet40,
}


def load(folder: Path, part: str, size: int) -> tuple[Tensor, Tensor]:
    """All images of a part, shuffled and normalised, and their classes."""
    pixels, labels = read_images(folder, part, size)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return (pixels[order].float() / 255 - 0.47) / 0.25, labels[order]


class Loop:
    """Training as all kinds do it: crops, flips, SGD, one cosine over all epochs.

    An epoch is of ``args.images`` images, drawn anew from all.
    """

    def __init__(self, data: tuple[Tensor, Tensor], epochs: int, lr: float, seed: int, args):
        self.images, self.labels = data
        self.lr, self.done, self.per_epoch = lr, 0, args.images // BATCH
        self.total = epochs * self.per_epoch
        self.generator = torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        pad = self.images.shape[-1] // 8
        order = torch.randperm(len(self.images), generator=self.generator)
        for index in order[: self.per_epoch * BATCH].split(BATCH):
            x = self.images[index]
            flips = torch.rand(len(x), generator=self.generator) < 0.5
            x = torch.where(flips[:, None, None, None], x.flip(3), x)
            dy, dx = torch.randint(-pad, pad + 1, (2, 8), generator=self.generator).tolist()
            shifted = zip(x.chunk(8), dy, dx, strict=True)
            x = torch.cat([_shift(part, i, j, pad) for part, i, j in shifted])
            yield x, self.labels[index]

    def epoch(self, model: nn.Module, optimizer, searcher=None, pruner=None) -> None:
        """Train weights for an epoch; with a searcher, the factors too, in a second pass."""
        model.train()
        left = min(self.total - self.done, searcher.steps if searcher else self.per_epoch)
        for x, y in islice(self.batches(), left):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            self.done += 1
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + np.cos(np.pi * self.done / self.total))
            if pruner is not None:
                pruner.regularize(model)
            optimizer.step()
            if searcher is not None:
                F.cross_entropy(model(x), y).backward()
                searcher.step()


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


def dense_model(name: str, seed: int, train: tuple[Tensor, Tensor], args) -> nn.Module:
    """The trained model that all cases of a seed begin with."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    numbers = args.size, args.images, args.dense_epochs, len(train[0]), seed
    path = args.work / f"{name}-{'-'.join(map(str, numbers))}.pt"
    if not path.exists():
        loop, optimizer = Loop(train, args.dense_epochs, 0.1, seed, args), sgd(model.parameters())
        for _ in range(args.dense_epochs):
            loop.epoch(model, optimizer)
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path))
    return model


def compress_ours(model: nn.Module, example: Tensor, share: float, loop: Loop, args, kind: str):
    options = dict(OURS[kind])
    config = dsonas.SearchConfig(lr=args.factor_lr, penalty=options.pop("penalty", args.penalty))

    def fit(net: nn.Module, searcher) -> None:
        loop.epoch(net, sgd(searcher.weights()), searcher)

    searching: dict[str, Any] = {"fit": fit, "steps": args.search_batches, "epochs": 1}
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
        model, example, importance=importance(), pruning_ratio=1.0, iterative_steps=200,
        ignored_layers=[last],
    )  # fmt: skip
    if pruner_class is not tp.pruner.BasePruner:
        optimizer = sgd(model.parameters())
        for _ in range(args.pruner_epochs):
            pruner.update_regularizer()
            loop.epoch(model, optimizer, pruner=pruner)
    while count_model(model, example)["macs"] > share * whole:
        pruner.step()
    return model, {}


def run_case(name: str, kind: str, share: float, seed: int, data, args) -> dict[str, Any]:
    train, test = data
    dense, start = dense_model(name, seed, train, args), time.perf_counter()
    if kind == "dense":
        return {
            "model": name, "kind": kind, "share": share, "seed": seed,
            "error": round(error(dense, test), 2), "used": 1.0,
        }  # fmt: skip
    torch.manual_seed(seed)
    example = train[0][:1]
    loop = Loop(train, args.epochs, args.lr, seed + 100, args)
    make = compress_ours if kind in OURS else compress_theirs
    model, more = make(dense, example, share, loop, args, kind)
    cut_error = error(model, test)
    optimizer = sgd(model.parameters())
    while loop.done < loop.total:
        loop.epoch(model, optimizer)
    found = count_model(model, example)
    torch.save(model, model_file(args, name, kind, share, seed))
    return {
        "model": name, "kind": kind, "share": share, "seed": seed,
        "error": round(error(model, test), 2), "cut_error": round(cut_error, 2),
        "used": round(found["macs"] / count_model(dense, example)["macs"], 4),
        "params": found["params"], "seconds": round(time.perf_counter() - start, 1), **more,
    }  # fmt: skip


def model_file(args, name: str, kind: str, share: float, seed: int) -> Path:
    return args.work / f"{name}-{kind}-{share}-{seed}.pt"


def latency(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Milliseconds of an image on one thread: eager, and as ONNX program in its runtime."""
    program: Any = torch.onnx.export(model.eval(), (example,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: example.numpy()}
    with torch.inference_mode():
        torch.testing.assert_close(
            model(example), torch.from_numpy(session.run(None, given)[0]), rtol=1e-3, atol=1e-3
        )
        calls = {"torch_ms": lambda: model(example), "onnx_ms": lambda: session.run(None, given)}
        timers = {key: Timer("call()", globals={"call": call}) for key, call in calls.items()}
        return {
            key: round(1e3 * timer.blocked_autorange(min_run_time=1).median, 3)
            for key, timer in timers.items()
        }


def measure_latency(known: dict[str, Any], args, example: Tensor) -> None:
    """Add latencies to the rows of the first seed, and of its dense models."""
    for row in known["rows"]:
        if row["seed"]:
            continue
        case = [row[key] for key in ("model", "kind", "share", "seed")]
        path = model_file(args, *case)
        if row["kind"] == "dense":
            row |= latency(MODELS[row["model"]](), example)
        elif path.exists():
            row |= latency(torch.load(path, weights_only=False), example)
        print(json.dumps(row), flush=True)


def settings(args) -> dict[str, Any]:
    names = ("size", "images", "dense_epochs", "epochs", "search_batches", "pruner_epochs", "lr",
             "factor_lr", "penalty", "held_out")  # fmt: skip
    return {name: getattr(args, name) for name in names}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Mean and spread for every case, and what ours differs by."""
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
    yield from comparisons(cases)


def comparisons(cases: dict[tuple, list[dict[str, Any]]]) -> Iterator[str]:
    """Ours against the cut by weights alone and the best of Torch-Pruning, with 95 % intervals."""
    yield "\n| model | share | ours minus | points |\n|---|---|---|---|"
    for name, share in sorted({key[:2] for key in cases}):
        means = {k: {r["seed"]: r["error"] for r in v} for (n, s, k), v in cases.items()
                 if (n, s) == (name, share)}  # fmt: skip
        theirs = [k for k in means if k.startswith("tp-")]
        best = min(theirs, key=lambda k: np.mean(list(means[k].values())), default="")
        for other in ("weights-only", best):
            seeds = means.get("ours", {}).keys() & means.get(other, {}).keys()
            gaps = [means["ours"][seed] - means[other][seed] for seed in seeds]
            if len(gaps) > 1:
                half = t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5
                yield f"| {name} | {share:.0%} | {other} | {np.mean(gaps):+.2f} +- {half:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="for trained models")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--kinds", nargs="+", default=[*OURS, *PRUNERS], choices=[*OURS, *PRUNERS])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument(
        "--images", type=int, default=50000, help="of an epoch, drawn anew from all"
    )
    parser.add_argument("--dense-epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=40, help="further ones, the search included")
    parser.add_argument("--search-batches", type=int, default=80, help="at most an epoch")
    parser.add_argument("--pruner-epochs", type=int, default=10, help="with their regulariser")
    parser.add_argument("--lr", type=float, default=0.05, help="of the further epochs")
    parser.add_argument("--factor-lr", type=float, default=0.02)
    parser.add_argument("--penalty", type=float, default=None)
    parser.add_argument("--held-out", action="store_true", help="test on training images")
    parser.add_argument("--latency", action="store_true", help="time what --work has, no more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    train, test = (load(args.data, part, args.size) for part in ("train", "test"))
    if args.held_out:
        test = train[0][-HELD_OUT:], train[1][-HELD_OUT:]
        train = train[0][:-HELD_OUT], train[1][:-HELD_OUT]
    fresh: dict[str, Any] = {"settings": settings(args), "rows": []}
    known = json.loads(args.out.read_text()) if args.out.exists() else fresh
    if known["settings"] != settings(args):
        raise SystemExit(f"{args.out} is of other settings: {known['settings']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.latency:
        measure_latency(known, args, test[0][:1])
        args.out.write_text(json.dumps(known, indent=1))
        return
    cases = [("dense", 1.0), *product(args.kinds, args.shares)]
    for seed, name, (kind, share) in product(range(args.seeds), args.models, cases):
        case = {"model": name, "kind": kind, "share": share, "seed": seed}
        if any(row.items() >= case.items() for row in known["rows"]):
            continue
        try:
            row = run_case(name, kind, share, seed, (train, test), args)
        except ValueError as refusal:
            print(f"{case}: {refusal}", flush=True)
            continue
        print(json.dumps(row), flush=True)
        known["rows"].append(row)
        args.out.write_text(json.dumps(known, indent=1))
    print("\n".join(table(known["rows"])))


if __name__ == "__main__":
    main()
