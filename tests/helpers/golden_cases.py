"""Reads the golden data and translates the published names into ours.

The folder is named by the environment variable DSONAS_GOLDEN (default: tests/golden). Nothing here
knows a size: levels, blocks, channels, images and classes all come from the data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsonas.graph.architecture import REDUCTION_OPERATIONS, Architecture, Skeleton, doubled_channels
from dsonas.graph.block import BlockGraph
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.network import Network

OPERATION_NAMES = ("conv3x3", "conv5x5", "max_pool", "avg_pool")
BN_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_var",
}
AUXILIARY_NAMES = {
    "0": "aux_bn",
    "3.0": "aux_conv1",
    "3.1": "aux_conv1_bn",
    "4.0": "aux_conv2",
    "4.1": "aux_conv2_bn",
    "7": "aux_fc",
}
# The published constants of adaptive MAC: the output vector, then operations 1 to 4 of a level.
MAC_RATIOS = {"after": 0.448, "1": 0.986, "2": 1.0, "3": 0.447, "4": 0.447}
Arrays = Mapping[str, np.ndarray]


def golden_folder() -> Path:
    """The folder of the golden data; an error if it holds none."""
    folder = Path(os.environ.get("DSONAS_GOLDEN") or Path(__file__).parents[1] / "golden")
    if not any(folder.glob("*.npz")):
        raise FileNotFoundError(f"DSONAS_GOLDEN: no golden data (*.npz) in {folder.absolute()}")
    return folder


@cache
def read(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The plain arrays and the meta data of a file; both empty if the folder lacks it."""
    path = golden_folder() / f"{name}.npz"
    if not path.exists():
        return {}, {}
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return arrays, json.loads(str(arrays.pop("meta_json")))


@cache
def read_cases(name: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Case -> group -> array, or name -> array for a packed group; and the meta data."""
    arrays, meta = read(name)
    cases: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        case, group = key.split("/", 1)
        groups = cases.setdefault(case, {})
        if key.endswith("/flat"):
            groups[group.removesuffix("/flat")] = _unpack(array, arrays[key[:-4] + "index"])
        elif not key.endswith("/index"):
            groups[group] = array
    return cases, meta


def _unpack(flat: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    shapes = json.loads(str(index))
    ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes], dtype=int)
    *pieces, rest = np.split(flat, ends)
    assert rest.size == 0, "the index must describe all values"
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}


@dataclass(frozen=True)
class Case:
    """One network of the golden data, with its stored results."""

    file: str
    name: str
    groups: dict[str, Any]
    meta: dict[str, Any]
    param: dict[str, np.ndarray]
    aux: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]

    @classmethod
    def of(cls, file: str, name: str) -> Case:
        """Read a case; ``params_of`` in its meta data names the one that holds its inputs."""
        cases, meta = read_cases(file)
        source = cases[meta[name].get("params_of", name)]
        groups = source | cases[name] if source is not cases[name] else source
        factors = source.get("lambda_raw") or {
            key: array for key, array in source["param"].items() if key.startswith("lambda_")
        }
        return cls(file, name, groups, meta[name], source["param"], source["aux"], factors)

    @property
    def num_levels(self) -> int:
        """M, the levels of a block."""
        return self.meta["num_layers"]

    @property
    def is_source(self) -> bool:
        """Whether activations and later statistics are stored for this very case."""
        return "aux_after" in read_cases(self.file)[0][self.name]

    @property
    def complete(self) -> BlockGraph:
        """The block with every connection."""
        return BlockGraph.complete(PAPER_OPERATIONS, self.num_levels)

    @property
    def sharing(self) -> str:
        """Which blocks hold the same scaling factors."""
        return "share" if "lambda_after" in self.factors else "full"

    @property
    def units(self) -> list[str]:
        """The published names of the blocks, stage after stage."""
        return [
            f"stage{s}_unit{j}"
            for s, count in enumerate(self.meta["units"], 1)
            for j in range(1, count)
        ]

    @property
    def reduction_units(self) -> list[str]:
        """The published names of the reduction blocks."""
        return [f"stage{s}_unit{n}" for s, n in enumerate(self.meta["units"][:-1], 1)]

    @property
    def skeleton(self) -> Skeleton:
        units = self.meta["units"]
        return Skeleton(
            stem="imagenet" if "conv1_weight" in self.param else "cifar",
            input_channels=self.param["conv0_weight"].shape[1],
            image_size=self.meta["size"],
            num_classes=len(self.param["fc1_bias"]),
            blocks=tuple(count - 1 for count in units),
            channels=doubled_channels(self.meta["filter_init"], len(units)),
        )

    def supernet(self) -> Architecture:
        """Every connection that has a scaling factor (the published chain lacks some)."""
        graphs = []
        for unit in self.units:
            live = np.zeros(len(self.complete.live), bool)
            for name in self.factor_names(unit):
                live[self.positions(name)] = True
            graphs.append(self.complete.prune(live.tolist()))
        reductions = ((True,) * len(REDUCTION_OPERATIONS),) * len(self.reduction_units)
        return Architecture(self.skeleton, tuple(graphs), reductions, self.sharing)

    def factor_names(self, unit: str) -> list[str]:
        """The published names of a block's vectors of scaling factors."""
        if f"lambda_{unit}" in self.factors:
            return [f"lambda_{unit}"]
        prefix, suffix = ("", "") if self.sharing == "share" else (f"{unit}_", f"_{unit}")
        levels, places = range(2, self.num_levels + 1), range(1, len(OPERATION_NAMES) + 1)
        names = [f"lambda_{prefix}layer_{level}_{i}" for level in levels for i in places]
        return [*names, f"lambda_after{suffix}"]

    def positions(self, name: str) -> list[int]:
        """Where the entries of a block's vector stand in our packed vector."""
        size, connections = self.factors[name].size, self.complete.connections
        if size == len(connections):
            return list(range(size))
        target = self.complete.output_node
        if match := re.search(r"layer_(\d+)_(\d+)$", name):
            target = len(OPERATION_NAMES) * (int(match[1]) - 1) + int(match[2])
        places = [i for i, connection in enumerate(connections) if connection.target == target]
        # The published chain reads the level before only: the last sources of the complete block.
        return places[len(places) - size :]


def module_names(network: Network, case: Case) -> dict[str, str]:
    """Our modules with parameters -> their published names, the joined output weights apart."""
    names = {"final_bn": "final_bn", "classifier": "fc1"}
    for i in range(len(network.stem)):
        names |= {f"stem.{i}.0": f"conv{i}", f"stem.{i}.1": f"bn{i}"}
    for i, unit in enumerate(case.units):
        names |= _block_module_names(f"blocks.{i}", unit, network.blocks[i].graph)
    for s, unit in enumerate(case.reduction_units):
        for branch in network.reductions[s].branches:
            ours, theirs = f"reductions.{s}.branches.{branch}", f"{unit}_{branch}"
            names |= {f"{ours}.0": theirs, f"{ours}.1": f"{theirs}_bn"}
    names |= {f"auxiliary.{ours}": theirs for ours, theirs in AUXILIARY_NAMES.items()}
    present = dict(network.named_modules())
    return {ours: theirs for ours, theirs in names.items() if ours in present}


def _block_module_names(ours: str, unit: str, graph: BlockGraph) -> dict[str, str]:
    names = {f"{ours}.output_bn": f"{unit}_bn", f"{ours}.shortcut.0": f"{unit}_id_conv"}
    names[f"{ours}.shortcut.1"] = f"{unit}_id_conv_bn"
    for node in graph.kept_nodes:
        level, i = graph.level(node), (node - 1) % len(OPERATION_NAMES)
        operation = f"{unit}_{level}_{OPERATION_NAMES[i]}"
        names[f"{ours}.nodes.{node}.operation.0"] = f"{operation}_sep"
        names[f"{ours}.nodes.{node}.operation.1"] = operation
        names[f"{ours}.nodes.{node}.bn"] = f"{operation}_bn"
    return names


def tensor_names(network: Network, case: Case) -> dict[str, list[str]]:
    """Our parameters and statistics -> the published arrays they are joined from."""
    names: dict[str, list[str]] = {}
    modules = dict(network.named_modules())
    for ours, theirs in module_names(network, case).items():
        is_bn = isinstance(modules[ours], nn.BatchNorm2d)
        for key in modules[ours].state_dict():
            if key != "num_batches_tracked":
                names[f"{ours}.{key}"] = [f"{theirs}_{BN_NAMES[key] if is_bn else key}"]
    for i, unit in enumerate(case.units):
        graph = network.blocks[i].graph
        if graph.kept_nodes:
            outputs = graph.inputs[graph.output_node]
            names[f"blocks.{i}.output.weight"] = [f"{unit}_output_conv_{q}_weight" for q in outputs]
    if network.scaling is not None:
        for i in range(len(network.scaling.blocks)):
            names[f"scaling.blocks.{i}"] = case.factor_names(case.units[i])
        for s, unit in enumerate(case.reduction_units):
            names[f"scaling.reductions.{s}"] = [f"lambda_{unit}"]
    return names


def fixed_names(network: Network) -> frozenset[str]:
    """Our parameters that are fixed gammas; they count as 1 whatever the data hold."""
    return frozenset(name for name, p in network.named_parameters() if not p.requires_grad)


def load_values(network: Network, case: Case, arrays: Arrays) -> None:
    """Set parameters and statistics from published arrays, in double precision."""
    network.double()
    fixed, state = fixed_names(network), network.state_dict()
    for ours, theirs in tensor_names(network, case).items():
        if ours not in fixed and all(name in arrays for name in theirs):
            state[ours] = joined(ours, theirs, case, arrays)
    network.load_state_dict(state)


def joined(ours: str, theirs: list[str], case: Case, arrays: Arrays) -> Tensor:
    """One of our tensors from the published arrays."""
    pieces = [torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in theirs]
    if ours.startswith("scaling.blocks."):
        packed = torch.zeros(len(case.complete.live), dtype=torch.float64)
        for name, part in zip(theirs, pieces, strict=True):
            packed[case.positions(name)] = part.reshape(-1)
        return packed
    if ours.startswith("scaling."):
        return pieces[0].reshape(-1)
    return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0]


def parts(ours: str, theirs: list[str], case: Case, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The inverse of ``joined``: published names with their parts of one of our tensors."""
    if ours.startswith("scaling.blocks."):
        for name in theirs:
            yield name, tensor[case.positions(name)]
    else:
        pieces = tensor.chunk(len(theirs), 1) if len(theirs) > 1 else [tensor]
        yield from zip(theirs, pieces, strict=True)


def decays(published_name: str) -> bool:
    """Whether the published optimiser decays it: convolution and linear weights only."""
    return published_name.endswith("_weight")
