"""Which models of torchvision, timm, segmentation-models-pytorch, transformers, own ones are taken?

Each is made with random weights, of normalisations too, and scaled; its factors are drawn, a
quarter of them 0, and it is pruned. Written down: whether that works, how many sums and
concatenations it has, how many groups of channels can be cut, the factors that stay as
multiplications, and whether scaled and pruned models equal each other in evaluation mode, on
another batch size too; a training step; save and load; torch.export and ONNX of the pruned model;
and, to compare, whether torch.export takes the model that was given.

    python -m pip install "dsonas[zoo,compress]"
    python benchmarks/own_models.py [NAME ...]
"""

from __future__ import annotations

import json
import logging
import operator
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]
import timm  # pyright: ignore[reportMissingImports]
import torch
import torchvision.models as tv
import transformers as hf  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import dsonas
from dsonas.sparse import find_channels, trace
from dsonas.sparse.connections import scaling_factors
from dsonas.sparse.observing import leaves_of
from dsonas.sparse.recording import arguments

OUT = Path(__file__).with_name("results") / "own-models.json"
CLASSES, DEAD = 5, 0.25

TORCHVISION = {
    "resnet18": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "densenet121": 64, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64,
    "mnasnet0_5": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64,
    "convnext_tiny": 64, "vit_b_32": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
    "googlenet": 96, "inception_v3": 96,
}  # fmt: skip
TIMM = {
    "resnet26d": 64, "cspresnet50": 64, "resnest14d": 64, "skresnet18": 64, "seresnet18": 64,
    "res2net50_26w_4s": 64, "hrnet_w18_small": 64, "dla34": 64, "vovnet39a": 64, "repvgg_a0": 64,
    "ghostnet_100": 64, "efficientnet_lite0": 64, "tf_efficientnetv2_b0": 64, "nf_resnet26": 64,
    "nfnet_l0": 64, "convnext_atto": 64, "convnextv2_atto": 64, "edgenext_xx_small": 64,
    "fastvit_t8": 64, "mobilevit_xxs": 64, "mobilenetv4_conv_small": 64, "poolformer_s12": 64,
    "pvt_v2_b0": 64, "levit_128s": 224, "mixer_s32_224": 224, "resmlp_12_224": 224,
    "vit_tiny_patch16_224": 224, "deit_tiny_distilled_patch16_224": 224,
    "beit_base_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "coatnet_nano_rw_224": 224,
    "xcit_nano_12_p16_224": 224,
}  # fmt: skip
SMP = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3Plus", "PAN")

Made = tuple[nn.Module, Any]


def _torchvision(name: str, size: int) -> Made:
    extra = {"googlenet": {"aux_logits": False, "init_weights": False}}
    extra["inception_v3"] = extra["googlenet"]
    model = getattr(tv, name)(num_classes=CLASSES, **extra.get(name, {}))
    return model, torch.randn(2, 3, size, size)


def _timm(name: str, size: int) -> Made:
    return timm.create_model(name, num_classes=CLASSES), torch.randn(2, 3, size, size)


def _smp(name: str) -> Made:
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)
    return model, torch.randn(2, 3, 128, 128)


def _text(make: Callable[[], nn.Module]) -> Made:
    ids = torch.randint(1, 90, (2, 9))
    return make(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "use_cache": False,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_WAV = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}  # fmt: skip
_IMAGE = {key: _SIZES[key] for key in list(_SIZES)[:4]} | {"image_size": 32, "patch_size": 8}

TRANSFORMERS: dict[str, Callable[[], Made]] = {
    "bert": lambda: _text(lambda: hf.BertForSequenceClassification(hf.BertConfig(**_SIZES))),
    "roberta": lambda: _text(lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**_SIZES))),
    "distilbert": lambda: _text(
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=100)
        )
    ),
    "gpt2": lambda: _text(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT))),
    "llama": lambda: _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, use_cache=False))),
    "t5 encoder": lambda: _text(
        lambda: hf.T5EncoderModel(
            hf.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=100)
        )
    ),
    "vit": lambda: (
        hf.ViTForImageClassification(hf.ViTConfig(**_IMAGE)), torch.randn(2, 3, 32, 32)
    ),
    "resnet": lambda: (
        hf.ResNetForImageClassification(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 2, 1, 1])
        ),
        torch.randn(2, 3, 64, 64),
    ),
    "segformer": lambda: (
        hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(
                hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16
            )
        ),
        torch.randn(2, 3, 64, 64),
    ),
    "wav2vec2": lambda: (
        hf.Wav2Vec2ForSequenceClassification(
            hf.Wav2Vec2Config(**{k: _SIZES[k] for k in list(_SIZES)[:4]}, **_WAV)
        ),
        torch.randn(2, 400),
    ),
}  # fmt: skip


class ResNet20(nn.Module):
    """The CIFAR form, with the code that most people write."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(True))
        widths = [16] * 3 + [32] * 3 + [64] * 3
        self.blocks = nn.ModuleList(map(self._block, [16, *widths], widths))
        self.short = nn.ModuleList(map(self._shortcut, [16, *widths], widths))
        self.head = nn.Linear(64, CLASSES)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        stride = outputs // inputs
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(True), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )  # fmt: skip

    @staticmethod
    def _shortcut(inputs: int, outputs: int) -> nn.Module:
        same = inputs == outputs
        return nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, outputs // inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.stem(x)
        for block, short in zip(self.blocks, self.short, strict=True):
            y = block(x)
            y += short(x)
            x = torch.relu_(y)
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent cell in a loop over time, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.state, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, 8) to logits."""
        state = torch.zeros(x.shape[0], 16, device=x.device)
        for t in range(x.shape[1]):
            state = torch.tanh(self.inputs(x[:, t]) + self.state(state))
        return self.head(state)


class Transformer(nn.Module):
    """Blocks before whose layers stands a norm, positions cut to the length, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.register_buffer("positions", torch.randn(1, 20, 32))
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(4)])
        self.qkv = nn.ModuleList([nn.Linear(32, 96) for _ in range(2)])
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, 32) to features (B, 32)."""
        batch = x.shape[0]
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]]  # pyright: ignore[reportIndexIssue]
        for i, (qkv, mlp) in enumerate(zip(self.qkv, self.mlp, strict=True)):
            q, k, v = qkv(self.norms[2 * i](x)).chunk(3, dim=-1)
            weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
            x = x + weights @ v
            x = x + mlp(self.norms[2 * i + 1](x))
        return x[:, 0]


class Refining(nn.Module):
    """Two heads, an activation in place and an upsampling to the size of another feature."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.convs = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1) for i in range(5)])
        self.mask, self.label = nn.Conv2d(8, 2, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images to a mask and logits."""
        fine = self.convs[0](x)
        fine = self.convs[2](self.act(self.convs[1](self.act(fine)))) + fine
        coarse = self.convs[4](self.act(self.convs[3](fine[:, :, ::2, ::2])))
        up = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        assert up.shape == fine.shape
        return {"mask": self.mask(up + fine), "label": self.label(coarse.mean((2, 3)))}


OWN: dict[str, Callable[[], Made]] = {
    "resnet20": lambda: (ResNet20(), torch.randn(2, 3, 32, 32)),
    "recurrent": lambda: (Recurrent(), torch.randn(2, 6, 8)),
    "transformer": lambda: (Transformer(), torch.randn(2, 9, 32)),
    "two heads": lambda: (Refining(), torch.randn(2, 3, 16, 16)),
    "encoder layers": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        torch.randn(2, 9, 32),
    ),
}
MODELS: dict[str, Callable[[], Made]] = {
    **{f"torchvision {n}": partial(_torchvision, n, size) for n, size in TORCHVISION.items()},
    **{f"timm {n}": partial(_timm, n, size) for n, size in TIMM.items()},
    **{f"smp {n}": partial(_smp, n) for n in SMP},
    **{f"transformers {n}": make for n, make in TRANSFORMERS.items()},
    **{f"own {n}": make for n, make in OWN.items()},
}


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw what begins as 0 or so small that errors could not be seen."""
    for parameter in model.parameters():
        usual = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
        if parameter.ndim <= 1 or parameter.abs().max() < 1e-3:
            parameter.uniform_(0.5, 1.0)
        elif parameter.ndim == 2 and parameter.std() < 0.5 * usual:
            parameter.normal_(std=usual)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.0)


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that a model gives."""
    args, kwargs = arguments(model, inputs)
    return [leaf for leaf in leaves_of(model(*args, **kwargs)) if isinstance(leaf, Tensor)]


def difference(a: nn.Module, b: nn.Module, inputs: Any) -> float:
    """The largest difference in evaluation mode, as a share of the largest value."""
    with torch.inference_mode():
        pairs = zip(call(a.eval(), inputs), call(b.eval(), inputs), strict=True)
        return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-6)) for x, y in pairs)


def train_step(model: nn.Module, inputs: Any) -> None:
    """A step of SGD; every parameter stays finite."""
    losses = [x.float().square().mean() for x in call(model.train(), inputs)]
    torch.stack(losses).sum().backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def save_and_load(model: nn.Module, fresh: nn.Module, inputs: Any) -> None:
    """Files without code give the same model."""
    with tempfile.TemporaryDirectory() as folder:
        dsonas.save_model(model, folder)
        assert difference(model, dsonas.load_model(folder, fresh), inputs) == 0


def export(model: nn.Module, inputs: Any) -> None:
    """A program of torch.export gives the same."""
    args, kwargs = arguments(model, inputs)
    program = torch.export.export(model.eval(), args, kwargs, strict=False)
    found = call(program.module(), inputs)
    for x, y in zip(call(model, inputs), found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def to_onnx(model: nn.Module, inputs: Any) -> None:
    """An ONNX program gives the same in onnxruntime."""
    args, kwargs = arguments(model, inputs)
    program = torch.onnx.export(model.eval(), args, kwargs=kwargs, dynamo=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime

        assert program is not None
        program.save(f"{folder}/model.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        names = [x.name for x in session.get_inputs()]
        found = session.run(None, dict(zip(names, [x.numpy() for x in given], strict=True)))
    with torch.no_grad():
        for x, y in zip(call(model, inputs), found, strict=True):
            scale = float(x.abs().max())
            torch.testing.assert_close(x, torch.from_numpy(y), rtol=1e-2, atol=1e-3 * scale)


def channel_groups(model: nn.Module, inputs: Any) -> int | str:
    """How many groups of channels can be cut, or why none is looked for."""
    try:
        return len(find_channels(trace(model, inputs), inputs).sizes)
    except ValueError as error:
        return str(error)[:300]


def attempt(action: Callable[[], Any]) -> str:
    """``"yes"``, or what went wrong in one line."""
    try:
        action()
    except Exception as error:  # whatever a model raises is a result
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
    return "yes"


def measure(make: Callable[[], Made]) -> dict[str, Any]:
    """The row of one model."""
    torch.manual_seed(0)
    model, inputs = make()
    randomise(model.eval())
    row: dict[str, Any] = {"torch.export of the original": attempt(lambda: export(model, inputs))}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.perf_counter()
    scaled: Any = None
    try:
        scaled = dsonas.scale_connections(model, inputs)
    except ValueError as error:
        return row | {"traced": str(error)[:300]}
    row["traced"], row["seconds"] = "yes", time.perf_counter() - start
    factors = scaling_factors(scaled)
    row["joins"], row["connections"] = len(factors), sum(map(len, factors))
    row["channel groups"] = channel_groups(model, inputs)
    left = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    row["net untouched"] = left
    larger = tree_map(lambda x: torch.cat([x, x[:1]]), inputs)
    row["scaled differs"] = difference(model, scaled, inputs)
    for vector in factors:
        drawn, values = torch.rand(len(vector)), 0.5 + torch.rand(len(vector))
        vector.data = torch.where((drawn > DEAD) | (drawn == drawn.max()), values, 0.0)
    start = time.perf_counter()
    pruned: Any = None
    row["pruned"] = attempt(lambda: dsonas.prune_model(scaled, inputs))
    if row["pruned"] != "yes":
        return row
    pruned = dsonas.prune_model(scaled, inputs)
    row["seconds"] += (time.perf_counter() - start) / 2
    row["multiplications"] = _multiplications(pruned) - _multiplications(scaled)
    row["pruned differs"] = difference(scaled, pruned, inputs)
    row["other batch"] = attempt(lambda: call(pruned.eval(), larger))
    if row["other batch"] == "yes":
        row["pruned differs"] = max(row["pruned differs"], difference(scaled, pruned, larger))
    row["save and load"] = attempt(lambda: save_and_load(pruned, make()[0], inputs))
    row["export"] = attempt(lambda: export(pruned, inputs))
    row["onnx"] = attempt(lambda: to_onnx(pruned, inputs))
    if row["onnx"] != "yes":
        row["onnx of the original"] = attempt(lambda: to_onnx(model, inputs))
    row["train step"] = attempt(lambda: train_step(pruned, inputs))
    return row


def _multiplications(model: Any) -> int:
    """How many nodes multiply by a number."""
    return sum(
        node.target is operator.mul and any(isinstance(x, float) for x in node.args)
        for node in model.graph.nodes
    )


def _has_groups(row: dict[str, Any]) -> bool:
    found = row.get("channel groups")
    return isinstance(found, int) and found > 0


def write(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the rows and what they come to, which is returned."""
    keys = ("traced", "pruned", "other batch", "save and load", "train step", "export", "onnx",
            "torch.export of the original")  # fmt: skip
    found: dict[str, Any] = {
        "models": len(rows),
        "with channel groups": sum(_has_groups(row) for row in rows.values()),
        "yes": {key: sum(row.get(key) == "yes" for row in rows.values()) for key in keys},
        "wrong": [
            name
            for name, row in rows.items()
            if row.get("pruned differs", 0) > 1e-3 or not row.get("net untouched", True)
        ],
        "torch": torch.__version__,
        "packages": {m.__name__: m.__version__ for m in (timm, smp, hf)},
    }
    OUT.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n")
    return found


def main(names: list[str]) -> None:
    """Measure the models whose names hold one of ``names``, or all; other rows stay."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    rows = json.loads(OUT.read_text())["rows"] if names and OUT.exists() else {}
    for name, make in MODELS.items():
        if not names or any(part in name for part in names):
            rows[name] = measure(make)
            print(name, {k: v for k, v in rows[name].items() if v != "yes"}, flush=True)
            write({name: rows[name] for name in MODELS if name in rows})
    print(json.dumps(write({name: rows[name] for name in MODELS if name in rows}), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
