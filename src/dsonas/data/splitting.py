"""Stratified choices: which images of each class go where. Pure functions of labels and seed."""

from __future__ import annotations

import torch
from torch import Tensor

from dsonas._utils import derive_seed


def class_quotas(counts: Tensor, total: int) -> Tensor:
    """Share ``total`` out among classes in proportion to their counts (largest remainders).

    Every class that has images gets at least one if ``total`` allows, at the cost of the largest.

    Args:
        counts: int64 tensor of shape ``(num_classes,)``, images of each class, >= 0.
        total: images to choose, from 0 to the sum of ``counts``.

    Returns:
        int64 tensor of the same shape with sum ``total``, nowhere above ``counts``.

    Example:
        >>> class_quotas(torch.tensor([90, 9, 1]), 10)
        tensor([8, 1, 1])
    """
    num_images = max(1, int(counts.sum()))
    quotas = total * counts // num_images
    by_remainder = torch.argsort(total * counts % num_images, descending=True, stable=True)
    quotas[by_remainder[: total - int(quotas.sum())]] += 1
    if total >= int((counts > 0).sum()):
        starved = (counts > 0) & (quotas == 0)
        quotas += starved
        for _ in range(int(starved.sum())):
            quotas[quotas.argmax()] -= 1
    return quotas


def stratified_choice(labels: Tensor, total: int, seed: int) -> Tensor:
    """Choose images at random, the classes in proportion.

    Args:
        labels: int64 tensor of shape ``(num_images,)``, class of each image.
        total: how many to choose, from 0 to ``num_images``.
        seed: the choice is a pure function of labels, total and seed.

    Returns:
        bool tensor of shape ``(num_images,)`` with ``total`` entries True.

    Example:
        >>> int(stratified_choice(torch.tensor([0, 0, 1, 1]), 2, seed=0)[:2].sum())
        1
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "stratified"))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    sorted_labels = labels[by_class]
    rank_in_class = torch.arange(len(labels)) - starts[sorted_labels]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[by_class] = rank_in_class < class_quotas(counts, total)[sorted_labels]
    return chosen
