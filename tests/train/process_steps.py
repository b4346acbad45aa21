"""Trains a tiny supernet and its result step by step; writes what happened as JSON.

Run alone, or by torchrun in several processes that act as one.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from dsonas.data import Batches, DataConfig, load_data, split_for_search
from dsonas.graph.architecture import Skeleton
from dsonas.graph.spaces import SearchSpace
from dsonas.nn.cpu.batchnorm import BatchNorm
from dsonas.nn.network import Network
from dsonas.search.search_config import SearchConfig
from dsonas.search.stages import Searching
from dsonas.train import processes
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.training import TrainConfig, Training
from dsonas.train.world import current_world

SKELETON = Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(8, 16))
BATCH = 32


class Converted:
    """Batches with images of another type."""

    def __init__(self, batches: Batches, dtype: torch.dtype) -> None:
        self.source, self.dtype = batches, dtype

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def epoch(self, number: int, start: int = 0):
        for images, labels in self.source.epoch(number, start):
            yield images.to(self.dtype), labels


class Setting:
    """What both stages need."""

    def __init__(self, engine: Engine, dtype: torch.dtype) -> None:
        self.engine, self.dtype = engine, dtype
        self.data = load_data(DataConfig(name="digits", max_train_images=320, cutout=2), 0)

    def batches(self, images, **options) -> Converted:
        defaults = {"batch_size": BATCH, "shuffle": True, "drop_last": True, "seed": 3}
        defaults["augmentation"] = self.data.train_augmentation
        share = self.engine.processes.share
        return Converted(
            Batches(images, self.data, share=share, **(defaults | options)), self.dtype
        )

    def network(self, *arguments, **options) -> Network:
        torch.manual_seed(0)
        network = Network(*arguments, **options).to(self.dtype)
        self.engine.place(network)
        return network

    def run(self, stage):
        """The loss of every step and what each epoch ends with."""
        losses, rows, processes = [], [], self.engine.processes
        for epoch in range(stage.num_epochs):
            for index, batch in enumerate(stage.batches(epoch, 0)):
                loss, _, _ = stage.step(batch, epoch, index)
                losses.append(float(processes.sum(loss) / processes.world.size))
            rows.append(stage.end_epoch(epoch))
        return {"losses": losses, "rows": rows}


def search(setting: Setting):
    space = SearchSpace(skeleton=SKELETON, num_levels=2)
    weights, factors = split_for_search(setting.data.train, 0.5, 1)
    config = SearchConfig(epochs=2, batch_size=BATCH, rebuild_every=1)
    path = "buffer" if setting.dtype is torch.float64 else "levels"  # both normalise together
    network = setting.network(space.complete(), scaled=True, path=path)
    parts = setting.batches(weights, seed=4), setting.batches(factors, seed=5)
    stage = Searching(network, *parts, config, setting.engine)
    found = setting.run(stage)
    architecture = stage.result([]).architecture
    return architecture, {**found, "architecture": json.loads(architecture.to_json())}


def train(setting: Setting, architecture):
    test = setting.batches(
        setting.data.test.subset(torch.arange(67)),
        batch_size=22,  # the last batch has one image: less than one for each process
        augmentation=None,
        shuffle=False,
        drop_last=False,
    )
    config = TrainConfig(epochs=1, batch_size=BATCH)
    network = setting.network(architecture)
    return setting.run(
        Training(network, setting.batches(setting.data.train), test, config, setting.engine)
    )


def normalise(engine: Engine, channels: int, size: int, offset: float):
    """How far synchronised batch normalisation of parts is from torch's own of the whole."""
    torch.manual_seed(channels)
    own, whole = BatchNorm(channels, eps=2e-5), nn.BatchNorm2d(channels, eps=2e-5)
    nn.init.uniform_(whole.weight, 0.5, 2)
    own.load_state_dict(whole.state_dict())
    engine.place(own)
    x = torch.randn(16, channels, size, size) + offset
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    slope = torch.randn_like(x)
    rank, number = engine.processes.share
    part = slice(rank * 16 // number, (rank + 1) * 16 // number)
    mine = x.detach()[part].requires_grad_()
    y, expected = own(mine), whole(x)
    (y * slope[part]).sum().backward()
    (expected * slope).sum().backward()
    assert own.weight.grad is not None
    assert own.bias.grad is not None
    assert whole.weight.grad is not None
    assert whole.bias.grad is not None
    pairs = {
        "output": (y, expected[part]),
        "input gradient": (mine.grad, x.grad[part]),
        "gamma gradient": (engine.processes.sum(own.weight.grad), whole.weight.grad),
        "beta gradient": (engine.processes.sum(own.bias.grad), whole.bias.grad),
        "running mean": (own.running_mean, whole.running_mean),
        "running variance": (own.running_var, whole.running_var),
    }
    with torch.no_grad():
        return {k: float((a - b).abs().max() / b.abs().max()) for k, (a, b) in pairs.items()}


def times_of_work(engine: Engine) -> list[float]:
    """When the work of each process began and ended, of which one is to go before the others."""

    def work() -> list[float]:
        begin = time.time()
        time.sleep(1.0)  # several signs of life
        return [begin, time.time()]

    processes.HEARTBEAT_SECONDS = 0.2
    begin, end = engine.processes.one_before_others(work)
    rank, number = engine.processes.share
    times = torch.zeros(number, 2, dtype=torch.float64)
    times[rank] = torch.tensor([begin, end], dtype=torch.float64)
    return engine.processes.sum(times).tolist()


def main(out: Path) -> None:
    engine = Engine(EngineConfig(device="cpu", threads=1), current_world())
    found = {}
    for name in ("float32", "float64"):
        setting = Setting(engine, getattr(torch, name))
        architecture, searched = search(setting)
        found[name] = searched
    found["train"] = train(setting, architecture)
    cases = [(8, 40, 0.0), (8, 40, 50.0), (16, 7, 1.0), (20, 28, 1.0)]
    found["batchnorm"] = [normalise(engine, *case) for case in cases]
    found["work"] = times_of_work(engine)
    if engine.processes.is_first:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
