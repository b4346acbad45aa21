"""What every command that reads a finished run of digits must make of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from dsonas.run.runs import RunFolder


def check_readers(
    run: Path, done: Path, dsonas: Callable[..., Any], digits: Path
) -> tuple[Tensor, Tensor]:
    """Evaluate, predict and export a run; its network is that of another folder.

    Returns:
        Images (5, 1, 8, 8), and what the network makes of them.
    """
    expected = json.loads((done / "metrics.json").read_text())["test_error"]
    measured = dsonas("evaluate", "--run", run, "--json")
    assert json.loads(measured.out)["test_error"] == expected
    images = sorted(digits.rglob("*.png"))[:3]
    assert len(dsonas("predict", "--run", run, *images).out.splitlines()) == 3
    exported = json.loads(dsonas("export", run, "--json").out)
    assert [file["format"] for file in exported["exports"]] == ["onnx", "pt2"]
    session = onnxruntime.InferenceSession(run / "export" / "network.onnx")
    pixels = torch.rand(5, 1, 8, 8)
    (logits,) = session.run(None, {"images": pixels.numpy()})
    network, *_ = RunFolder(done).load_network()
    torch.testing.assert_close(torch.from_numpy(logits), network(pixels), atol=1e-4, rtol=1e-4)
    return pixels, network(pixels)
