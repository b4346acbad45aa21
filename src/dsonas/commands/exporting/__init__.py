"""A finished network as files for elsewhere: ONNX, a ``torch.export`` program, plain Python."""

from dsonas.commands.exporting.formats import FORMATS, Deployment
from dsonas.commands.exporting.layers import ExportError, fuse_bn
from dsonas.commands.exporting.running import ExportResult, export_run

__all__ = ["FORMATS", "Deployment", "ExportError", "ExportResult", "export_run", "fuse_bn"]
