"""What is exported, and the file formats: how each is written and read back."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import torch
from torch import Tensor, nn

from dsonas._utils import readable_json, write_atomically
from dsonas.commands.exporting.layers import ExportError, network_plan
from dsonas.nn import Network
from dsonas.run import Preprocessing, Shape

Call = Callable[[Tensor], Tensor]
METADATA_FILE = "metadata.json"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A trained network with everything that travels with it."""

    network: nn.Module  # the final network, in evaluation mode: ours, or a module of the user's
    preprocessing: Preprocessing  # class names, and the way from an image file to an input
    shape: Shape  # of its images and outputs
    macs: int  # multiply-adds for one image
    folded: bool = False  # whether ``fuse_bn`` has made the network
    data: str = "unknown"  # the data set it was trained on, for the reader
    test_error: float | None = None  # in percent; None if it is not known
    seed: int | None = None  # of the run; None if it is not known

    def metadata(self) -> dict[str, Any]:
        """Class names, preprocessing and origin as values that JSON can hold."""
        import dsonas

        return {
            **self.preprocessing.description(self.shape),
            "macs": self.macs,
            "params": sum(parameter.numel() for parameter in self.network.parameters()),
            "test_error": self.test_error,
            "data": self.data,
            "seed": self.seed,
            "dsonas": dsonas.__version__,
        }


@dataclass(frozen=True)
class Format:
    """A file format."""

    name: str  # as ``--format`` takes it
    # makes the files in a folder and returns them, the one to open first
    write: Callable[[Deployment, Path], list[Path]]
    # a function from normalised images (B, C, H, W) to logits, from a file and a number of CPU
    # threads
    open: Callable[[Path, int], Call]
    packages: tuple[str, ...] = ()  # what it needs beyond the dependencies of dsonas
    only_ours: bool = False  # whether it cannot hold a module of the user's

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
    size, channels, _ = deployment.shape
    # two images, since an exporter takes a batch of one for a constant
    return (torch.zeros(2, channels, size, size),)


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
    notes = deployment.metadata().items()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in notes}
    program.model.metadata_props.update(texts)
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
    try:
        program = _program(deployment, strict=False)
    except Exception:  # the other way follows other code of the user's, such as len(images)
        program = _program(deployment, strict=True)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine
    buffer = io.BytesIO()
    notes = {METADATA_FILE: json.dumps(deployment.metadata())}
    with warnings.catch_warnings():  # of weights in channels_last, which are whole
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, buffer, extra_files=notes)
    path = folder / "network.pt2"
    write_atomically(path, buffer.getvalue())
    return [path]


def _program(deployment: Deployment, *, strict: bool) -> Any:
    shapes = ({0: torch.export.Dim("batch")},)
    example = _example(deployment)
    return torch.export.export(deployment.network, example, dynamic_shapes=shapes, strict=strict)


def _open_pt2(path: Path, threads: int) -> Call:
    return torch.export.load(path).module()


def _write_python(deployment: Deployment, folder: Path) -> list[Path]:
    network, buffer = deployment.network, io.BytesIO()
    assert isinstance(network, Network)
    notes = {**deployment.metadata(), "folded": deployment.folded, **network_plan(network)}
    torch.save(dict(network.state_dict()), buffer)
    contents = {
        "network.py": Path(__file__).with_name("runtime.py").read_bytes(),
        "network.json": (readable_json(notes, 6) + "\n").encode(),
        "network.pt": buffer.getvalue(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _open_python(path: Path, threads: int) -> Call:
    # run rather than imported, so that nothing is cached beside it
    return run_path(str(path))["load"]()


FORMATS = {
    "onnx": Format("onnx", _write_onnx, _open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format("pt2", _write_pt2, _open_pt2),
    "python": Format("python", _write_python, _open_python, only_ours=True),
}
