"""The networks that people would take instead, as a study on CIFAR-10 trains them."""

import json
from pathlib import Path

import pytest
import torch

from helpers.image_files import write_cifar
from known_networks import KNOWN, main, multiply_adds, widest


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(("limit", "size"), [(2e6, 32), (5e6, 32), (1e6, 16)])
def test_they_use_up_a_budget(name: str, limit: float, size: int):
    build = KNOWN[name]
    width = widest(build, 10, limit, size)
    used, more = (multiply_adds(build(width + wider, 10), size) for wider in (0, 1))
    assert 0.9 * limit < used <= limit < more


def test_the_published_sizes():
    resnet = KNOWN["ResNet-14"](100, 10)
    assert sum(p.numel() for p in resnet.parameters()) == 175_258
    assert KNOWN["MobileNetV2"](100, 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_rows_are_kept(tmp_path: Path, monkeypatch, capsys):
    write_cifar(tmp_path / "data", monkeypatch, 10)
    (tmp_path / "tiny.yaml").write_text(
        "base: cifar10-small\ntrain: {epochs: 1, batch_size: 10}\n", encoding="utf-8"
    )
    options = ["--config", tmp_path / "tiny.yaml", "--data", f"cifar10:{tmp_path / 'data'}"]
    options += ["--networks", "ResNet-8", "--out", tmp_path / "rows.json"]
    for seeds in (1, 2):
        main([*map(str, options), "--seeds", str(seeds)])
        rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
        assert [row["seed"] for row in rows] == list(range(seeds))
    assert all(0 <= row["test_error"] <= 100 and row["macs"] <= 2e6 for row in rows)
    assert "(2 trainings)" in capsys.readouterr().out
