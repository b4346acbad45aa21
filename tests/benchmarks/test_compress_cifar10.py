"""The benchmark of compression: its models and its table."""

import pytest
import torch

pytest.importorskip("torch_pruning")

import compress_cifar10 as benchmark
from dsonas.cost import count_model


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet20", 40_813_184), ("vgg11_bn", 38_636_032), ("mobilenet_v2", 23_688_448),
     ("densenet_bc40", 72_365_352)],
)  # fmt: skip
def test_models_are_those_of_cifar(name: str, macs: int) -> None:
    model = benchmark.MODELS[name]()
    assert count_model(model, torch.zeros(1, 3, 32, 32))["macs"] == macs
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_table_compares_with_the_best_of_torch_pruning() -> None:
    errors = {"ours": (8.0, 9.0), "tp-magnitude": (9.0, 9.5), "tp-bn-scale": (20.0, 20.0)}
    rows = [
        {"model": "resnet20", "kind": kind, "share": 0.5, "seed": seed, "error": e, "used": 0.5}
        for kind, found in errors.items()
        for seed, e in enumerate(found)
    ]
    lines = list(benchmark.table(rows))
    assert any("| ours | 2 | 8.50 +- 0.71 | 0.500 |" in line for line in lines)
    assert lines[-1] == "| resnet20 | 50% | tp-magnitude | -0.75 +- 3.18 |"
