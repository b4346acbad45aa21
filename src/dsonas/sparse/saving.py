"""Pruned models as files without code: a structure in JSON and weights in safetensors.

Loading makes the layers from an instance of the model that was pruned, so a file names functions of
torch and methods of tensors only, and can run nothing else.
"""

from __future__ import annotations

import builtins
import json
import math
import operator
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors, save as to_safetensors
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dsonas._utils import write_atomically
from dsonas.sparse.recording import MAKERS, PLAIN, attribute, copied, unwrap
from dsonas.sparse.tracing import DROPOUTS, rebuild, take_attributes, tensor_names

STRUCTURE, WEIGHTS = "structure.json", "weights.safetensors"
_FORMAT = 1
_BUILTIN: Any = torch._C  # whose contents type checkers do not know
_SPACES = {
    "operator": operator, "builtins": builtins, "functional": F, "torch": torch,
    "nn": _BUILTIN._nn, "special": torch.special, "fft": torch.fft, "linalg": torch.linalg,
    "torchvision": torchvision.ops, "math": math,
}  # fmt: skip
_OPERATORS = {
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "neg", "pos", "abs", "eq",
    "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "invert", "not_", "lshift", "rshift",
    "iadd", "isub", "imul", "itruediv", "getitem", "setitem",
}  # fmt: skip
_TORCH = {*dir(_BUILTIN._VariableFunctions), *torch.functional.__all__, *MAKERS} - {"from_file"}
_NAME = re.compile(r"[a-zA-Z]\w*")


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Save what ``prune_model`` has returned: ``structure.json`` and ``weights.safetensors``.

    Args:
        model: the pruned model; its mode is not kept.
        folder: is made if need be.

    Raises:
        ValueError: if the model is not a traced one, or calls what only its own package has.

    Example:
        >>> from tempfile import mkdtemp
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(2, 2)
        ...     def forward(self, x):
        ...         return x + self.linear(x)
        >>> import dsonas
        >>> scaled = dsonas.scale_connections(Residual(), torch.zeros(1, 2))
        >>> scaled.scaling.add.factors.data[1] = 0
        >>> folder = mkdtemp()
        >>> save_model(dsonas.prune_model(scaled, torch.zeros(1, 2)), folder)
        >>> load_model(folder, Residual())(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    if not isinstance(model, fx.GraphModule):
        raise ValueError(
            f"model must be what dsonas.prune_model has returned, got {type(model).__name__}: save "
            "the state_dict() of an ordinary module"
        )
    first: dict[int, str] = {}
    tensors = {name: attribute(model, name) for name in tensor_names(model)}
    shared = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    structure = {
        "format": _FORMAT,
        "nodes": [_node(node) for node in model.graph.nodes],
        "layers": {name: _layer(layer) for name, layer in _layers(model).items()},
        "tensors": {name: _tensor(name, tensor, shared[name]) for name, tensor in tensors.items()},
    }
    weights = {
        name: tensor.detach().contiguous()
        for name, tensor in tensors.items()
        if shared[name] == name
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, to_safetensors(weights))
    write_atomically(folder / STRUCTURE, json.dumps(structure, indent=1).encode())


def load_model(folder: str | Path, model: nn.Module) -> fx.GraphModule:
    """Load what ``save_model`` has saved.

    Args:
        folder: where it is.
        model: a fresh instance of the model that was pruned, on any device, with any weights; it
            is not changed.

    Returns:
        The pruned model with its weights, on the CPU and in the mode of ``model``.

    Raises:
        ValueError: if the files are damaged, or the model has other layers.

    Example:
        >>> load_model("nowhere", nn.Linear(1, 1))
        Traceback (most recent call last):
        ...
        ValueError: folder must hold structure.json of save_model, but nowhere does not
    """
    folder = Path(folder)
    if not (folder / STRUCTURE).is_file():
        raise ValueError(f"folder must hold {STRUCTURE} of save_model, but {folder} does not")
    root = copied(unwrap(model)).cpu()
    try:
        structure = json.loads((folder / STRUCTURE).read_bytes())
        weights = from_safetensors((folder / WEIGHTS).read_bytes())
        if structure["format"] != _FORMAT:
            raise ValueError(f"format must be {_FORMAT}, got {structure['format']!r}")
        for name, layer in structure["layers"].items():
            _restore_layer(root, name, layer)
        _restore_tensors(root, structure["tensors"], weights)
        graph, made = fx.Graph(), {}
        decode = _Decoder(made, {type(m).__module__.partition(".")[0] for m in root.modules()})
        for node in structure["nodes"]:
            target = decode.target(node["op"], node["target"])
            args, kwargs = decode(node["args"]), decode(node["kwargs"])
            if target is getattr and not _NAME.fullmatch(args[1]):
                raise ValueError(f"attributes must be public, got {args[1]!r}")
            made[node["name"]] = graph.create_node(node["op"], target, args, kwargs, node["name"])
        result = rebuild(root, graph, list(structure["tensors"]))
    except (KeyError, TypeError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"folder must hold what save_model has written of a {type(unwrap(model)).__name__}, "
            f"but {folder} does not fit: {type(error).__name__}: {error}"
        ) from error
    take_attributes(root, result)
    return result


def _layers(model: fx.GraphModule) -> dict[str, nn.Module]:
    """The layers that a graph calls, and what is inside of them."""
    called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return {
        f"{name}.{inner}".rstrip("."): part
        for name in sorted(called)
        for inner, part in model.get_submodule(name).named_modules()
    }


def _layer(layer: nn.Module) -> dict[str, Any]:
    """The class of a layer and its sizes and settings; its mode is the model's."""
    plain = {
        key: _encode(value)
        for key, value in vars(layer).items()
        if key[0] != "_" and key != "training"
        and all(isinstance(leaf, PLAIN) for leaf in tree_leaves(value))
    }  # fmt: skip
    return {"class": type(layer).__qualname__, "settings": plain}


def _tensor(name: str, tensor: Tensor, same: str) -> dict[str, Any]:
    is_parameter = isinstance(tensor, nn.Parameter)
    found: dict[str, Any] = {"kind": "parameter" if is_parameter else "buffer"}
    if is_parameter and not tensor.requires_grad:
        found["frozen"] = True
    if tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
        found["stride"] = list(tensor.stride())  # channels_last
    if same != name:
        found["same_as"] = same
    return found


def _restore_layer(root: nn.Module, name: str, saved: dict[str, Any]) -> None:
    """Give a layer of the model the sizes and settings of the pruned one."""
    owner, _, key = name.rpartition(".")
    parent = root.get_submodule(owner)
    dropouts = {kind.__name__: kind for kind in DROPOUTS.values()}
    if key not in parent._modules and saved["class"] in dropouts:  # F.dropout in the code
        parent.add_module(key, dropouts[saved["class"]]())
    layer = root.get_submodule(name)
    if type(layer).__qualname__ != saved["class"]:
        raise ValueError(
            f"model must be an instance of the one that was pruned, but {name} is a "
            f"{type(layer).__qualname__}, not a {saved['class']}"
        )
    decode = _Decoder({}, set())
    for key, value in saved["settings"].items():
        if key in vars(layer):
            setattr(layer, key, decode(value))


def _restore_tensors(root: nn.Module, saved: dict[str, Any], weights: dict[str, Tensor]) -> None:
    made: dict[str, Tensor] = {}
    for name, about in saved.items():
        owner, _, key = name.rpartition(".")
        parent = root.get_submodule(owner)
        if "same_as" in about:
            value = made[about["same_as"]]
        else:
            value = weights[name]
            if "stride" in about:
                laid = torch.empty_strided(value.shape, about["stride"], dtype=value.dtype)
                value = laid.copy_(value)
            if about["kind"] == "parameter":
                value = nn.Parameter(value, requires_grad="frozen" not in about)
        made[name] = value
        if about["kind"] == "buffer" and key not in parent._buffers:
            parent.register_buffer(key, value)  # what a dead sum has left
        else:
            setattr(parent, key, value)


def _node(node: fx.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "target": _function(node.target) if node.op == "call_function" else node.target,
        "args": _encode(node.args),
        "kwargs": _encode(dict(node.kwargs)),
    }


def _function(function: Any) -> str:
    """The name of a function that a file may call."""
    name = getattr(function, "__name__", "")
    for space, home in _SPACES.items():
        key = name.removeprefix(f"{space}_")  # torch.fft.rfft calls itself fft_rfft
        if getattr(home, key, None) is function and _is_allowed(space, key):
            return f"{space}.{key}"
    if _is_output(function):
        return f"class {function.__module__}.{function.__qualname__}"
    raise ValueError(
        "model must call functions of torch, torchvision.ops, math and operator only to be saved, "
        f"but calls {function}: keep the class that does so whole with leaves="
    )


def _is_allowed(space: str, name: str) -> bool:
    if space == "operator":
        return name in _OPERATORS
    if space == "builtins":
        return name == "getattr"
    if space == "torch" and name != "_assert" and name not in _TORCH:
        return False
    return name == "_assert" or _NAME.fullmatch(name) is not None


def _is_output(kind: Any) -> bool:
    """Whether it is a class of what models give."""
    return isinstance(kind, type) and (
        is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
_KINDS: dict[str, tuple[Any, Callable[[Any], Any]]] = {  # what JSON lacks: {"tuple": [1, 2]}
    "node": (fx.Node, lambda x: x.name),
    "tuple": (tuple, lambda x: [_encode(y) for y in x]),
    "dict": (dict, lambda x: [[_encode(key), _encode(y)] for key, y in x.items()]),
    "slice": (slice, lambda x: [_encode(y) for y in (x.start, x.stop, x.step)]),
    "ellipsis": (type(Ellipsis), lambda _: True),
    "torch": (_CONSTANTS, lambda x: str(x).removeprefix("torch.")),
    "device": (torch.device, str),
}


def _encode(x: Any) -> Any:
    """A value as JSON."""
    if isinstance(x, float) and not math.isfinite(x):
        return {"float": str(x)}
    if isinstance(x, PLAIN):
        return x
    if isinstance(x, list):
        return [_encode(y) for y in x]
    for name, (kinds, encode) in _KINDS.items():
        if isinstance(x, kinds):
            return {name: encode(x)}
    raise ValueError(
        f"model must have plain arguments to be saved, got {type(x).__name__}: keep the class that "
        "uses it whole with leaves="
    )


class _Decoder:
    """Reads ``_encode``.

    Args:
        made: nodes by name.
        packages: of the model, whose classes of outputs may be made.
    """

    def __init__(self, made: dict[str, fx.Node], packages: set[str]) -> None:
        self.made, self.packages = made, packages

    def __call__(self, x: Any) -> Any:
        if isinstance(x, list):
            return [self(y) for y in x]
        if not isinstance(x, dict):
            return x
        ((kind, value),) = x.items()
        readers: dict[str, Callable[[Any], Any]] = {
            "node": self.made.__getitem__,
            "float": float,
            "tuple": lambda v: tuple(map(self, v)),
            "dict": lambda v: {self(key): self(y) for key, y in v},
            "slice": lambda v: slice(*map(self, v)),
            "ellipsis": lambda _: Ellipsis,
            "torch": _torch_constant,
            "device": torch.device,
        }
        return readers[kind](value)

    def target(self, op: str, name: str) -> Any:
        """What a node calls, reads or is named."""
        if op == "call_method":
            if not _NAME.fullmatch(name) or name not in dir(Tensor):
                raise ValueError(f"methods must be those of tensors, got {name!r}")
            return name
        if op != "call_function":
            return name
        if name.startswith("class "):
            return self.output_class(name)
        space, _, key = name.partition(".")
        if space not in _SPACES or not _is_allowed(space, key):
            raise ValueError(f"functions must be those of torch, got {name!r}")
        return getattr(_SPACES[space], key)

    def output_class(self, name: str) -> Any:
        """A dataclass or named tuple of a package that the model comes from."""
        module, _, key = name.removeprefix("class ").rpartition(".")
        if module.partition(".")[0] in self.packages:
            found = getattr(sys.modules.get(module), key, None)
            if _is_output(found):
                return found
        raise ValueError(f"outputs must be of classes of the model's package, got {name!r}")


def _torch_constant(name: str) -> Any:
    found = getattr(torch, name)
    if not isinstance(found, _CONSTANTS):
        raise ValueError(f"constants must be types of numbers or layouts, got {name!r}")
    return found
