"""The benchmark on NAS-Bench-201: its costs, and small searches of every kind."""

import json
import random
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from nas_bench_201 import (
    BUDGETS,
    KINDS,
    LABELS,
    cell_string,
    final_macs,
    has_path,
    macs_of,
    main,
    random_cell,
)

SMALL = shlex.split("--images 64 --size 8 --channels 4 --batch 16 --pretrain 1 --epochs 3")


def test_costs_are_those_of_the_published_network():
    cell = dict.fromkeys(LABELS, ("nor_conv_3x3",))
    assert final_macs(cell) / 1e6 == pytest.approx(220.12, abs=0.01)
    draw = random.Random(0)
    for cell in (random_cell(draw) for _ in range(50)):
        assert macs_of(cell_string(cell)) == final_macs(cell)


def test_every_kind_finds_a_cell(tmp_path: Path, capsys):
    draw = torch.Generator().manual_seed(0)
    for i in range(80):
        folder = tmp_path / "train" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    out = tmp_path / "rows.json"
    command = ["search", "--data", tmp_path, *SMALL, "--seeds", 1, "--out", out, "--kinds"]
    main([str(part) for part in (*command, *KINDS)])
    rows = json.loads(out.read_text())
    assert [row["kind"] for row in rows] == list(KINDS)
    found = {row["kind"]: row["cell"] for row in rows}
    assert all(macs_of(found[bound]) <= 1e6 * int(bound[:-1]) for bound in BUDGETS)
    for kind in ("ours", "penalty 0", "random factors", *BUDGETS):
        names = [part.split("~")[0] for part in found[kind].strip("|").replace("+", "").split("|")]
        assert has_path({k: (n,) for k, n in zip(LABELS, filter(None, names), strict=True)})
    main([str(part) for part in (*command, *KINDS)])  # nothing is missing
    assert json.loads(out.read_text()) == rows
    lines = [f"{cell},{90 + i}" for i, cell in enumerate(set(found.values()))]
    lines += [f"{cell_string(random_cell(random.Random(i)))},50" for i in range(3000)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["architecture,accuracy", *lines]))
    main(["judge", "--table", str(table), "--out", str(out)])
    assert all(row["accuracy"] >= 50 for row in json.loads(out.read_text()))
    assert "| random factors | 1 |" in capsys.readouterr().out
