"""A step of one kind leaves the other kind alone, and does what autograd and the optimiser say."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dsonas.train.steps import weight_step
from helpers.builders import SMALL, factor_step, images, optimizers, supernet


def split(network) -> tuple[dict, dict]:
    values = {name: p.detach().clone() for name, p in network.named_parameters()}
    factors = {k: v for k, v in values.items() if k.startswith("scaling.")}
    return {k: v for k, v in values.items() if k not in factors}, factors


def moved(before: dict, after: dict) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_each_step_moves_its_own_kind_only():
    network = supernet(0, "share", 0.0).train()
    weights, factors = optimizers(network)
    x, labels = images(SMALL, 8)
    start = split(network)
    weight_step(network, weights, x, labels)
    middle = split(network)
    assert moved(start[1], middle[1]) == []
    trained = {name for name, p in network.named_parameters() if p in weights.state}
    assert set(moved(start[0], middle[0])) <= trained
    assert len(moved(start[0], middle[0])) > 0.9 * len(trained)
    factor_step(network, factors, x, labels)
    end = split(network)
    assert moved(middle[0], end[0]) == []
    assert len(moved(middle[1], end[1])) == len(end[1])
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_weight_step_is_sgd_on_the_clipped_gradient_of_the_mean_loss(clip, float64):
    network = supernet(1, "full", 0.3).train()
    twin = copy.deepcopy(network)
    x, labels = images(SMALL, 8)
    loss, logits = weight_step(
        network, torch.optim.SGD(network.weights(), 0.5), x, labels, clip=clip
    )
    expected = F.cross_entropy(twin(x), labels)
    gradients = torch.autograd.grad(expected, list(twin.weights()), allow_unused=True)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(F.cross_entropy(logits, labels), loss)
    assert not loss.requires_grad
    assert not logits.requires_grad
    largest = max(g.abs().max() for g in gradients if g is not None)
    assert largest > 0.01
    for new, old, gradient in zip(network.weights(), twin.weights(), gradients, strict=True):
        step = torch.zeros_like(old) if gradient is None else gradient
        step = step if clip is None else step.clamp(-clip, clip)
        torch.testing.assert_close(new.detach(), old.detach() - 0.5 * step)
