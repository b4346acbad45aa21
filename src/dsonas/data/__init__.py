"""Data sets, the split of the training set, augmentation and batches.

Names load on first use, so that reading ``DataConfig`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentation import Augmentation, augment
    from .batches import Batches
    from .config import DataConfig, DataError
    from .images import FileImages, ImageSet, TensorImages
    from .loading import ImageData, load_data, split_for_search
    from .normalisation import normalise
    from .prediction import load_images

__all__ = [
    "Augmentation",
    "Batches",
    "DataConfig",
    "DataError",
    "FileImages",
    "ImageData",
    "ImageSet",
    "TensorImages",
    "augment",
    "load_data",
    "load_images",
    "normalise",
    "split_for_search",
]

_HOME = {
    "Augmentation": "augmentation",
    "Batches": "batches",
    "DataConfig": "config",
    "DataError": "config",
    "FileImages": "images",
    "ImageData": "loading",
    "ImageSet": "images",
    "TensorImages": "images",
    "augment": "augmentation",
    "load_data": "loading",
    "load_images": "prediction",
    "normalise": "normalisation",
    "split_for_search": "loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
