"""Pruned models as JSON and safetensors."""

import json
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn

import dsonas
from dsonas.sparse.connections import scaling_factors

WIDTH = 6


class Output(NamedTuple):
    """What a model gives."""

    features: torch.Tensor
    label: torch.Tensor


class Kinds(nn.Module):
    """Buffers, tied weights, frozen ones, dropout, slices, dtypes, optional arguments, branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.LayerNorm(6),
        )
        self.tied = nn.Linear(WIDTH, WIDTH)
        self.tied.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.names = ["cat", "dog"]
        self.register_buffer("pos", torch.randn(1, 19, WIDTH))
        self.register_buffer("index", torch.arange(19)[None], persistent=False)

    def forward(self, x, mask=None):
        batch, length, _ = x.shape
        y = x + self.pos[:, :length] * (self.index[:, :length, None] > 2).to(x.dtype)
        y = F.dropout(y + self.tied(self.norm(y)), 0.5, training=self.training)
        y = y + torch.zeros(batch, length, WIDTH, dtype=torch.float32, device=x.device)
        y = y.masked_fill(y < -99, float("-inf"))
        gate = torch.sigmoid(self.a(y) + self.b(y))
        return Output(y * gate, y[..., 0].mean(dim=(-1,)))


def pruned_kinds(dead=()) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, WIDTH)
    scaled = dsonas.scale_connections(Kinds(), x)
    for vector, index in dead:
        scaling_factors(scaled)[vector].data[index] = 0.0
    return dsonas.prune_model(scaled, x), x


@pytest.mark.parametrize("dead", [[], [(0, 1)], [(1, 0)], [(1, 0), (1, 1)]])
def test_all_kinds_of_models(tmp_path, dead):
    pruned, _ = pruned_kinds(dead)
    dsonas.save_model(pruned, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["structure.json", "weights.safetensors"]
    fresh = Kinds()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    for _ in range(2):
        loaded = dsonas.load_model(tmp_path, fresh)
        for mode in (False, True):
            x = torch.randn(3, 7, WIDTH)
            torch.manual_seed(1)
            wanted = pruned.train(mode)(x)
            torch.manual_seed(1)
            found = loaded.train(mode)(x)
            assert type(found).__name__ == "Output"
            assert all(map(torch.equal, found, wanted))
        assert list(loaded.state_dict()) == list(pruned.state_dict())
        assert loaded.names == ["cat", "dog"]
        frozen = [
            {n for n, p in m.named_parameters() if not p.requires_grad} for m in (loaded, pruned)
        ]
        assert frozen[0] == frozen[1]
        assert len(list(loaded.parameters())) == len(list(pruned.parameters()))
        with pytest.raises(AssertionError, match="mask must be None"):
            loaded(x, x)
        dsonas.save_model(loaded, tmp_path)  # and once more from what was loaded
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


@pytest.mark.filterwarnings("ignore:only batch normalisation reads:UserWarning")
@pytest.mark.parametrize(
    "make", [zoo.densenet121, zoo.mobilenet_v3_small, zoo.vit_b_16, zoo.convnext_tiny]
)
def test_torchvision_models(tmp_path, make):
    size = 224 if make is zoo.vit_b_16 else 64
    net, x = (
        make(num_classes=4).to(memory_format=torch.channels_last),
        torch.randn(1, 3, size, size),
    )
    scaled = dsonas.scale_connections(net, x)
    for i, factors in enumerate(scaling_factors(scaled)):
        factors.data[i % 2] = 0.0 if i % 3 == 0 else 0.7
    pruned = dsonas.prune_model(scaled, x).eval()
    dsonas.save_model(pruned, tmp_path)
    loaded = dsonas.load_model(tmp_path, make(num_classes=4)).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(x), pruned(x))
    strides = [[p.stride() for p in m.parameters()] for m in (loaded, pruned)]
    assert strides[0] == strides[1]


class Spaces(nn.Module):
    """Functions of torch that stand in modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x) + self.b(x)
        size = torch.linalg.vector_norm(y, dim=-1)
        return torch.special.expit(y), torch.fft.irfft(torch.fft.rfft(y) * 2, n=4), size


def test_functions_of_fft_linalg_and_special(tmp_path):
    x = torch.randn(3, 4)
    pruned = dsonas.prune_model(dsonas.scale_connections(Spaces(), x), x)
    dsonas.save_model(pruned, tmp_path)
    again = dsonas.load_model(tmp_path, Spaces())
    assert all(torch.equal(*both) for both in zip(again(x), pruned(x), strict=True))


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"got Linear: save the state_dict\(\)"):
        dsonas.save_model(nn.Linear(1, 1), tmp_path)
    pruned, _ = pruned_kinds()
    dsonas.save_model(pruned, tmp_path)
    with pytest.raises(ValueError, match="has written of a Linear, but"):
        dsonas.load_model(tmp_path, nn.Linear(1, 1))
    other = Kinds()
    other.norm = nn.Identity()
    with pytest.raises(ValueError, match="but norm is a Identity, not a LayerNorm"):
        dsonas.load_model(tmp_path, other)
    for name in ("weights.safetensors", "structure.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-9])
        with pytest.raises(ValueError):  # noqa: PT011
            dsonas.load_model(tmp_path, Kinds())
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize(
    "node",
    [
        {"op": "call_function", "target": "os.system", "args": {"tuple": ["true"]}},
        {"op": "call_function", "target": "builtins.eval", "args": {"tuple": ["1"]}},
        {"op": "call_function", "target": "operator.methodcaller", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "torch.load", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "torch.from_file", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "torch.__class__", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "functional.torch.load", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "class pathlib.Path", "args": {"tuple": ["x"]}},
        {"op": "call_function", "target": "builtins.getattr",
         "args": {"tuple": [{"node": "x"}, "__class__"]}},
        {"op": "call_method", "target": "__reduce_ex__", "args": {"tuple": [{"node": "x"}, 2]}},
        {"op": "call_method", "target": "mro", "args": {"tuple": [{"node": "x"}]}},
    ],
)  # fmt: skip
def test_a_file_cannot_run_anything_else(tmp_path, node):
    pruned, _ = pruned_kinds()
    dsonas.save_model(pruned, tmp_path)
    file = tmp_path / "structure.json"
    structure = json.loads(file.read_text())
    structure["nodes"].insert(1, {"name": "evil", "kwargs": {"dict": []}, **node})
    file.write_text(json.dumps(structure))
    with pytest.raises(ValueError, match="must be"):
        dsonas.load_model(tmp_path, Kinds())
