"""Prune your own model: a torchvision ResNet-18 on handwritten digits, in about half a minute.

Every input of the residual sums gets a scaling factor; ``ProximalNAG`` presses the factors while
the weights train; what is at exactly 0 in the end is removed: the result is an ordinary module.

    python examples/own_model.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.benchmark import Timer
from torchvision.models import resnet18

import dsonas
from dsonas.sparse.any_model import list_connections
from dsonas.sparse.connections import normalise_factors

BATCH_SIZE = 64
PENALTY = 0.3  # the higher, the more connections go


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1797 digits of scikit-learn: images (N, 1, 8, 8) in 0..1 and classes (N,), shuffled."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return images[order], torch.tensor(labels)[order]


def small_resnet() -> nn.Module:
    """A ResNet-18 for small images: full resolution at first, and without the last stage."""
    model = resnet18()
    model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, 10)
    return model


def train(model: nn.Module, weights, images, labels, epochs: int, factor_step=None) -> None:
    """Train weights, and with ``factor_step`` the scaling factors in the same steps."""
    weight_step = torch.optim.SGD(weights, lr=0.02, momentum=0.9, weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            model.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            weight_step.step()
            if factor_step is not None:
                factor_step.step()
                normalise_factors(factor_step.param_groups[0]["params"], factor_step)


@torch.inference_mode()
def describe(name: str, model: nn.Module, images, labels) -> None:
    """Print what a model costs and how good it is."""
    model.eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    timer = Timer("model(image)", globals={"model": model, "image": images[:1]})
    latency_ms = 1e3 * timer.blocked_autorange(min_run_time=0.2).median
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"{name:10} {params:>10,} params  {latency_ms:6.2f} ms  accuracy {accuracy:.2%}")


def main(epochs: int = 5) -> None:
    """Train, scale and press, prune, train on."""
    torch.manual_seed(0)
    images, labels = digits()
    tested, known = (images[-360:], labels[-360:]), (images[:-360], labels[:-360])

    net = small_resnet()
    train(net, net.parameters(), *known, epochs)
    describe("dense", net, *tested)

    model = dsonas.scale_connections(net, images[:2])  # shares its weights with net
    press = dsonas.ProximalNAG(model.scaling.parameters(), lr=0.02, penalty=PENALTY)
    train(model, net.parameters(), *known, epochs, press)
    for connection in list_connections(model):
        print(f"  {connection.target:6} <- {connection.source:21} {connection.factor:.3f}")
    describe("pressed", model, *tested)

    pruned = dsonas.prune_model(model, images[:2])
    describe("pruned", pruned, *tested)
    with torch.inference_mode():
        difference = (model(tested[0]) - pruned(tested[0])).abs().max().item()
    print(f"  largest difference of an output: {difference:.1e}")

    train(pruned, pruned.parameters(), *known, epochs)
    describe("trained on", pruned, *tested)


if __name__ == "__main__":
    main()
