"""A ResNet of handwritten digits, trained, then brought to a quarter of its multiply-adds."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import resnet18

import dsonas

torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float().view(-1, 1, 8, 8) / 16
tested, weight_part, factor_part = torch.randperm(len(images)).split([360, 1077, 360])
model = resnet18()
model.conv1, model.layer4, model.fc = nn.Conv2d(1, 64, 3), nn.Identity(), nn.Linear(256, 10)


def fit(model, searcher=None):
    """Train one epoch, as you do. With a searcher, every second step is followed by one of it."""
    weights = searcher.weights() if searcher else model.parameters()
    optimizer = torch.optim.SGD(weights, lr=0.02, momentum=0.9, weight_decay=1e-4)
    for i, batch in enumerate(weight_part[torch.randperm(1077)].split(60)):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images[batch]), labels[batch]).backward()
        optimizer.step()
        if searcher and i % 2:
            chosen = factor_part[torch.randint(360, (60,))]
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            searcher.step()


[fit(model) for _ in range(6)]
result = dsonas.compress(model, images[:1], budget="25%", fit=fit, epochs=8)
fit(result.model)  # an ordinary module: train on, dsonas.save_model, export
for name, net, macs in ("dense", model, result.supernet_cost), ("found", result.model, result.cost):
    right = (net.eval()(images[tested]).argmax(1) == labels[tested]).float().mean()
    print(f"{name}: {macs:,.0f} multiply-adds, accuracy {right:.1%}")
