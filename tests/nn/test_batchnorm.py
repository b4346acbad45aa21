"""Batch normalisation by folded rows: the same maths as torch.nn.BatchNorm2d."""

import pytest
import torch
from torch import nn

from dsonas.nn.cpu import batchnorm
from dsonas.nn.cpu.batchnorm import BatchNorm


def _pair(channels, dtype=torch.float32, shift=0.0):
    torch.manual_seed(channels)
    own, native = BatchNorm(channels, eps=2e-5).to(dtype), nn.BatchNorm2d(channels, eps=2e-5)
    nn.init.uniform_(own.weight, 0.5, 2)
    nn.init.normal_(own.bias)
    native.to(dtype).load_state_dict(own.state_dict())
    x = torch.randn(20, channels, 24, 24, dtype=dtype) * 2 + shift
    return own, native, x.contiguous(memory_format=torch.channels_last)


def _results(bn, x):
    x = x.clone().requires_grad_()
    y = bn(x)
    y.backward(torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y))
    found = {"output": y.detach(), "input": x.grad}
    found.update((name, value.grad) for name, value in bn.named_parameters())
    found.update(bn.named_buffers())
    return found


def _agree(bn, other, x, rtol):
    found, expected = _results(bn, x), _results(other, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = rtol * value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("channels", [4, 8, 12, 20, 24, 40])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_equals_torch_nn(channels, dtype, rtol, monkeypatch):
    calls = []
    monkeypatch.setattr(
        batchnorm, "unfold", lambda *args, of=batchnorm.unfold: calls.append(1) or of(*args)
    )
    own, native, x = _pair(channels, dtype, shift=1.0)
    _agree(own, native, x, rtol)
    assert len(calls) == 5  # it took the folded way, forth and back


def test_a_channel_far_from_zero_goes_the_accurate_way(monkeypatch):
    monkeypatch.setattr(batchnorm, "unfold", lambda *_: pytest.fail("folded"))
    own, native, x = _pair(8, shift=0.0)
    x[:, 3] = x[:, 3] * 1e-3 + 100
    _agree(own, native, x, 1e-5)


def test_constant_and_dead_channels_stay_finite():
    own, native, x = _pair(8)
    x[:, 2], x[:, 5] = 0.0, 7.0
    _agree(own, native, x, 1e-5)
    assert all(value.isfinite().all() for value in _results(own, x).values())


@pytest.mark.parametrize(
    ("channels", "shape"), [(16, (20, 24, 24)), (8, (2, 5, 5)), (5, (20, 25, 25)), (8, (1, 1, 2))]
)
def test_other_shapes_are_left_to_the_library(channels, shape, monkeypatch):
    monkeypatch.setattr(batchnorm, "unfold", lambda *_: pytest.fail("folded"))
    own, native, _ = _pair(channels)
    batch, height, width = shape
    x = torch.randn(batch, channels, height, width)
    _agree(own, native, x.contiguous(memory_format=torch.channels_last), 1e-6)


def test_only_training_on_a_cpu_in_channels_last_is_folded(monkeypatch):
    monkeypatch.setattr(batchnorm, "unfold", lambda *_: pytest.fail("folded"))
    own, native, x = _pair(8)
    _agree(own, native, x.contiguous(), 1e-5)
    _agree(own.eval(), native.eval(), x, 1e-5)
    own.train().fast_kernel = False
    _agree(own, native.train(), x, 1e-6)
