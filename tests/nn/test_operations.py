"""Candidate operations and their registry."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.operations import (
    DepthwiseConv,
    PointwiseConv,
    build_operation,
    operation_names,
    register_operation,
)


@pytest.mark.parametrize("name", PAPER_OPERATIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
def test_shapes_are_kept(name: str, size: tuple[int, int]):
    operation = build_operation(name, 5)
    x = torch.randn(2, 5, *size)
    for training in (True, False):
        assert operation.train(training)(x).shape == x.shape


@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_average_pooling_is_the_same_in_both_modes_and_divides_by_9(size, float64):
    pool = build_operation("average_pool3x3", 3)
    x = torch.randn(2, 3, *size, requires_grad=True)
    expected = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    for training in (True, False):
        y = pool.train(training)(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], gradient)
    assert not list(pool.parameters())


@pytest.mark.parametrize(("name", "kernel"), [("separable_conv3x3", 3), ("separable_conv5x5", 5)])
def test_separable_convolutions_are_depthwise_then_pointwise(name: str, kernel: int, float64):
    first, second = build_operation(name, 4).children()
    x = torch.randn(1, 4, 6, 6)
    depthwise = torch.cat(
        [F.conv2d(x[:, c : c + 1], first.weight[c : c + 1], padding=kernel // 2) for c in range(4)],
        1,
    )
    expected = torch.einsum("bchw,dc->bdhw", depthwise, second.weight[:, :, 0, 0])
    torch.testing.assert_close(second(first(x)), expected)
    assert first.weight.shape == (4, 1, kernel, kernel)
    assert first.bias is second.bias is None


def test_registration():
    before = operation_names()
    assert before[:4] == PAPER_OPERATIONS
    register_operation("registry_test_one", nn.Identity)

    @register_operation("registry_test_two")
    def build(channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1)

    assert build(2).in_channels == 2
    assert operation_names() == (*before, "registry_test_one", "registry_test_two")
    assert build_operation("registry_test_two", 3).weight.shape == (3, 3, 1, 1)


@pytest.mark.parametrize("name", ["", "3x3", "my op", "a-b"])
def test_names_must_be_identifiers(name: str):
    with pytest.raises(ValueError, match=r"operation name must be a Python identifier, got"):
        register_operation(name, nn.Identity)
    assert name not in operation_names()


def test_names_are_taken_once_and_unknown_ones_are_refused():
    with pytest.raises(ValueError, match=r"'max_pool3x3' is registered already"):
        register_operation("max_pool3x3", nn.Identity)
    with pytest.raises(ValueError, match=r"'max_pool9x9' is unknown; known are separable_conv3x3"):
        build_operation("max_pool9x9", 3)


@pytest.mark.parametrize(("size", "height", "width"), [(5, 7, 9), (5, 1, 1), (7, 3, 8), (3, 5, 5)])
def test_depthwise_convolutions_have_the_gradients_of_plain_ones(size, height, width):
    plain = torch.nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=False).double()
    check_gradients(DepthwiseConv(6, size), plain, torch.randn(2, 6, height, width).double())


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_backward_pass_after_autocast_has_ended(kernel, format):
    """As PyTorch asks for: only the forward pass is under autocast."""
    conv = nn.Sequential(PointwiseConv(8), DepthwiseConv(8, kernel)).train()
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=format).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    found = torch.autograd.grad(y.float().square().sum(), [x, *conv.parameters()])
    plain = torch.autograd.grad(conv(x).square().sum(), [x, *conv.parameters()])
    for gradient, expected in zip(found, plain, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(
            gradient, expected, rtol=0.1, atol=0.1 * expected.abs().max().item()
        )


@pytest.mark.parametrize("channels", [1, 6, 16])
def test_pointwise_convolutions_have_the_gradients_of_plain_ones(channels):
    plain = torch.nn.Conv2d(channels, channels, 1, bias=False).double()
    check_gradients(PointwiseConv(channels), plain, torch.randn(2, channels, 5, 4).double())


def check_gradients(fast: torch.nn.Module, plain: torch.nn.Module, x: torch.Tensor) -> None:
    fast = fast.double().train()
    plain.load_state_dict(fast.state_dict())
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [module(value) for module, value in zip((fast, plain), inputs, strict=True)]
    incoming = torch.randn_like(x)
    for output in outputs:
        output.backward(incoming)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (2, 2, 1, 4), (2, 3, 6, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_max_pool_with_short_indices_equals_the_library_with_ties(shape, seed, float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, shape, generator=generator).double().requires_grad_()
    gradient = torch.randn(shape, generator=generator)
    pool = build_operation("max_pool3x3", shape[1]).train()
    expected = F.max_pool2d(x, 3, stride=1, padding=1)
    assert torch.equal(pool(x), expected)
    one, two = (torch.autograd.grad(y, x, gradient)[0] for y in (pool(x), expected))
    assert torch.allclose(one, two, atol=1e-12)
