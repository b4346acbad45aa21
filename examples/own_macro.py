"""A network of your own around the searched block: 1-D signals, own stem and head.

140 recordings of a smart watch (6 channels: acceleration and rotation) during 7 physiotherapy
exercises of 10 people, from the package seglearn; the test people are not among the trained ones.
A block maps (B, C, H, W) to the same shape; a signal runs through it as an image of height 1, and
the operations are 1-D convolutions along it. One block structure is searched and used twice.

    pip install -e ".[examples]"        # in the clone, unless `make setup` did it
    python examples/own_macro.py
"""

from importlib.metadata import distribution

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dsonas
from dsonas.nn.blocks import Block
from dsonas.nn.scaling import normalise_targets


class Conv1d(nn.Conv1d):
    """A convolution along signals (B, C, 1, L), to the same shape."""

    def __init__(self, channels: int, kernel_size: int, groups: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(
            channels, channels, kernel_size, padding=padding, groups=groups, bias=False
        )

    def forward(self, x):
        return super().forward(x.squeeze(2)).unsqueeze(2)


@dsonas.register_operation("conv1d_3")
def _conv1d_3(channels: int) -> nn.Module:
    return Conv1d(channels, 3)


@dsonas.register_operation("separable_conv1d_9")
def _separable_conv1d_9(channels: int) -> nn.Module:
    return nn.Sequential(Conv1d(channels, 9, groups=channels), Conv1d(channels, 1))


@dsonas.register_operation("max_pool1d_3")
def _max_pool1d_3(channels: int) -> nn.Module:
    return nn.MaxPool2d((1, 3), stride=1, padding=(0, 1))


class SignalNetwork(nn.Module):
    """Stem, two blocks of one structure, head; with scaling factors for the search."""

    def __init__(self, graph: dsonas.BlockGraph, channels: int = 16, search: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self.stem = nn.Sequential(nn.Conv1d(6, channels, 9, stride=2), nn.BatchNorm1d(channels))
        self.blocks = nn.ModuleList(
            Block(graph, channels, learn_gamma=not search) for _ in range(2)
        )
        self.head = nn.Linear(channels, 7)
        self.factors = nn.Parameter(torch.tensor(graph.live).float()) if search else None

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        """Signals (B, 6, L) to logits (B, 7)."""
        x = self.stem(signals).unsqueeze(2)
        for block in self.blocks:
            x = block(x, self.factors)
        return self.head(x.mean((2, 3)))

    def found(self) -> dsonas.BlockGraph:
        """The block with the connections whose factor is not 0."""
        return self.graph.prune((self.factors > 0).tolist()).clean()


def recordings(length: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signals (140, 6, length), normalised; exercises (140,); people (140,)."""
    path = distribution("seglearn").locate_file("seglearn/data/watch_dataset.npy")
    raw = np.load(path, allow_pickle=True).item()
    tensors = [torch.tensor(x, dtype=torch.float32).T[None] for x in raw["X"]]
    signals = torch.cat([F.interpolate(x, length, mode="linear") for x in tensors])
    people = torch.tensor(raw["subject"])
    known = signals[people <= 8]  # those it is trained on
    signals = (signals - known.mean((0, 2), True)) / known.std((0, 2), keepdim=True)
    return signals, torch.tensor(raw["y"]).long(), people


def train(network: SignalNetwork, signals, labels, epochs: int, penalty: float | None = None):
    """Train weights, and with a penalty the scaling factors too."""
    weights = [p for name, p in network.named_parameters() if name != "factors"]
    steps: list[torch.optim.Optimizer] = [torch.optim.SGD(weights, lr=0.02, momentum=0.9)]
    if penalty is not None:
        steps.append(dsonas.ProximalNAG([network.factors], lr=0.1, penalty=penalty))
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(signals)).split(8):
            network.zero_grad()
            F.cross_entropy(network(signals[batch]), labels[batch]).backward()
            for step in steps:
                step.step()
            if penalty is not None:
                normalise_targets(network.factors, network.graph, steps[-1])


def main(epochs: int = 15) -> None:
    """Pretrain, search, train the network found, test it on people never seen."""
    torch.manual_seed(0)
    signals, labels, people = recordings()
    known = people <= 8
    operations = ("conv1d_3", "separable_conv1d_9", "max_pool1d_3")
    supernet = SignalNetwork(dsonas.BlockGraph.complete(operations, 3), search=True)
    train(supernet, signals[known], labels[known], epochs // 3)
    train(supernet, signals[known], labels[known], epochs, penalty=0.04)
    graph = supernet.found()
    names = [graph.operation(node) for node in graph.kept_nodes]
    print(f"{graph.num_live} of {len(graph.connections)} connections, {', '.join(names)}")

    network = SignalNetwork(graph)
    train(network, signals[known], labels[known], 2 * epochs)
    with torch.inference_mode():
        right = network.eval()(signals[~known]).argmax(1) == labels[~known]
    params = [sum(p.numel() for p in model.parameters()) for model in (supernet, network)]
    print(f"{params[0]:,} -> {params[1]:,} parameters, test accuracy {right.float().mean():.1%}")


if __name__ == "__main__":
    main()
