"""The file formats of an export: how each is written and read back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsonas._utils import write_atomically
from dsonas.commands.exporting.deployment import Deployment
from dsonas.commands.exporting.errors import ExportError
from dsonas.commands.exporting.source import network_source

Call = Callable[[Tensor], Tensor]
METADATA_FILE = "metadata.json"


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        name: as ``--format`` takes it.
        write: makes the files in a folder and returns them, the one to open first.
        open: a function from normalised images (B, C, H, W) to logits, from a file and a number of
            CPU threads.
        packages: what it needs beyond the dependencies of dsonas.
    """

    name: str
    write: Callable[[Deployment, Path], list[Path]]
    open: Callable[[Path, int], Call]
    packages: tuple[str, ...] = ()

    def require(self) -> None:
        """Refuse to start without the packages.

        Raises:
            ExportError: naming what to install.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ExportError(
                f"format {self.name} needs {', '.join(missing)}: install them with "
                'pip install "dsonas[export]", or choose another --format'
            )


def _example(deployment: Deployment) -> tuple[Tensor]:
    skeleton = deployment.network.architecture.skeleton
    size = skeleton.image_size
    # two images, since an exporter takes a batch of one for a constant
    return (torch.zeros(2, skeleton.input_channels, size, size),)


def _write_onnx(deployment: Deployment, folder: Path) -> list[Path]:
    program = torch.onnx.export(
        deployment.network,
        _example(deployment),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    _forget_origin(program.model)
    for key, value in deployment.metadata().items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    path = folder / "network.onnx"
    write_atomically(path, program.model_proto.SerializeToString())
    return [path]


def _forget_origin(model: Any) -> None:
    """Drop the notes of the exporter: they hold file names of this machine."""
    graph = model.graph
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    for item in (model, graph, *graph, *values):
        item.metadata_props.clear()
        item.doc_string = None


def _open_onnx(path: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return call


def _write_pt2(deployment: Deployment, folder: Path) -> list[Path]:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        deployment.network, _example(deployment), dynamic_shapes=({0: batch},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine
    buffer = io.BytesIO()
    notes = {METADATA_FILE: json.dumps(deployment.metadata())}
    torch.export.save(program, buffer, extra_files=notes)
    path = folder / "network.pt2"
    write_atomically(path, buffer.getvalue())
    return [path]


def _open_pt2(path: Path, threads: int) -> Call:
    return torch.export.load(path).module()


def _write_python(deployment: Deployment, folder: Path) -> list[Path]:
    source = network_source(deployment)
    buffer = io.BytesIO()
    torch.save(source.weights, buffer)
    weights, path = folder / "network.pt", folder / "network.py"
    write_atomically(weights, buffer.getvalue())
    write_atomically(path, source.text.encode())
    return [path, weights]


def _open_python(path: Path, threads: int) -> Call:
    # run rather than imported, so that nothing is cached beside it
    names = {"__name__": "exported_network", "__file__": str(path)}
    exec(compile(path.read_bytes(), str(path), "exec"), names)
    return names["load"]()  # type: ignore[operator]


FORMATS = {
    "onnx": Format("onnx", _write_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format("pt2", _write_pt2, _open_pt2),
    "python": Format("python", _write_python, _open_python),
}
