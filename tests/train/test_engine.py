"""What an engine sets on a device that tests do not have."""

import pytest
import torch

from dsonas.graph.spaces import cifar_space
from dsonas.nn.network import Network
from dsonas.train.engine import suits_nchw, tune_cuda


@pytest.mark.parametrize(
    ("device", "precision", "scaled", "nchw"),
    [
        ("cpu", "float32", True, False),
        ("cuda", "float32", True, True),
        ("cuda", "float32", False, True),
        ("cuda", "bfloat16", True, True),
        ("cuda", "bfloat16", False, False),
    ],
)
def test_the_format_of_features(device, precision, scaled, nchw):
    network = Network(cifar_space(channels=4, blocks=(1,)).complete(), scaled=scaled)
    assert suits_nchw(torch.device(device), precision, network) == nchw


def test_a_network_computes_the_same_in_nchw():
    network = Network(cifar_space(channels=4, blocks=(1, 1)).complete(), scaled=True).eval()
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    formats = []
    network.stem.register_forward_pre_hook(lambda _, x: formats.append(x[0].is_contiguous()))
    expected = network(images)
    network.nchw = True
    torch.testing.assert_close(network(images), expected)
    assert formats == [False, True]


@pytest.fixture
def flags():
    backends = torch.backends
    places = [(backends.cudnn, "allow_tf32"), (backends.cudnn, "benchmark")]
    places.append((backends.cuda.matmul, "allow_tf32"))
    before = [getattr(*place) for place in places]
    yield places
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)


def test_convolutions_and_products_round_alike_on_cuda(flags):
    for place in flags:
        setattr(*place, False)
    tune_cuda()
    assert all(getattr(*place) for place in flags)
