"""A batch taken in parts leaves the gradients of the whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.steps import backward


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20])
def test_parts_add_up_to_the_whole(parts):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double()
    images, labels = torch.randn(7, 1, 4, 4).double(), torch.arange(7) % 5
    expected = F.cross_entropy(network(images), labels)
    expected.backward()
    wanted = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    sizes = []

    def loss_of(some, answers):
        sizes.append(len(answers))
        logits = network(some)
        return F.cross_entropy(logits, answers), logits

    engine = Engine(EngineConfig(device="cpu", accumulate=parts))
    loss, logits = backward(network, loss_of, images, labels, engine)
    assert sizes == [len(part) for part in labels.chunk(parts)]
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(logits, network(images).detach())
    for parameter, gradient in zip(network.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_no_parts_are_refused():
    with pytest.raises(ValueError, match=r"engine\.accumulate must be a whole number > 0, got 0"):
        EngineConfig(accumulate=0)
