"""A finished network as files for elsewhere: ONNX, a ``torch.export`` program, plain Python.

Names load on first use, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import ExportError
    from .formats import FORMATS
    from .fuse_bn import fold_batch_norms
    from .running import ExportResult, export_run
    from .source import network_source

__all__ = [
    "FORMATS",
    "ExportError",
    "ExportResult",
    "export_run",
    "fold_batch_norms",
    "network_source",
]

_HOME = {
    "FORMATS": "formats",
    "ExportError": "errors",
    "ExportResult": "running",
    "export_run": "running",
    "fold_batch_norms": "fuse_bn",
    "network_source": "source",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
