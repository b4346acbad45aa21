"""Batch normalisation folded into the convolutions before it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dsonas.nn import Block, Candidate, ConvBNReLU, Network

Slot = tuple[nn.Module, str]
_IN_ORDER = (nn.Sequential.forward, ConvBNReLU.forward)


def fold_batch_norms(network: Network) -> Network:
    """A copy of a final network without those BNs that directly follow a convolution.

    A BN in evaluation mode is an affine map of every channel, which the convolution's weights and
    bias can take over. BNs behind poolings and sums stay.

    Args:
        network: without scaling factors, in evaluation mode.

    Returns:
        A network of the same outputs, up to rounding.

    Raises:
        ValueError: if the network is in training mode, where a BN is no fixed map.

    Example:
        >>> import torch
        >>> from dsonas.nn.network import build
        >>> from dsonas.graph.spaces import cifar_space
        >>> network = build(cifar_space(channels=4, blocks=(1, 1)).complete()).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> folded = fold_batch_norms(network)
        >>> torch.allclose(folded(images), network(images), atol=1e-4)
        True
    """
    if network.training:
        raise ValueError("network must be in evaluation mode to fold its BNs: call .eval() first")
    folded = deepcopy(network)
    for module in list(folded.modules()):
        if isinstance(module, ConvBNReLU):
            _fold([(module, name) for name in module._modules])
        elif isinstance(module, Candidate):
            fold_candidate(module)
        elif isinstance(module, Block) and module.graph.kept_nodes:
            _fold([(module, "output"), (module, "output_bn")])
    return folded


def fold_candidate(candidate: Candidate) -> None:
    """Fold the BNs of an operation, in place."""
    _fold([(candidate, "operation"), (candidate, "bn")])


def _fold(chain: list[Slot]) -> None:
    """Fold every BN of a chain of modules that are called one after the other."""
    slots = [slot for owner, name in chain for slot in _leaf_slots(owner, name)]
    for before, after in pairwise(slots):
        convolution, norm = _held(before), _held(after)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if norm.running_mean is None:
                continue  # it takes the statistics of the batch: no fixed map
            setattr(*before, _fused(convolution, norm))
            setattr(*after, nn.Identity())


def _fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Both in one, computed in float64 so that each weight is rounded once."""
    exact = fuse_conv_bn_eval(deepcopy(convolution).double(), deepcopy(norm).double())
    return exact.to(convolution.weight.dtype)


def _leaf_slots(owner: nn.Module, name: str) -> Iterator[Slot]:
    module = _held((owner, name))
    if type(module).forward in _IN_ORDER:
        for child in module._modules:  # one that is there twice is called twice
            yield from _leaf_slots(module, child)
    else:
        yield owner, name


def _held(slot: Slot) -> nn.Module:
    return getattr(*slot)
