"""Data sets, the split of the training set, augmentation and batches.

Names load on first use, so that reading ``DataConfig`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentation import Augmentation as Augmentation
    from .augmentation import augment as augment
    from .batches import Batches as Batches
    from .config import DataConfig as DataConfig
    from .config import DataError as DataError
    from .images import FileImages as FileImages
    from .images import ImageSet as ImageSet
    from .images import TensorImages as TensorImages
    from .loading import ImageData as ImageData
    from .loading import load_data as load_data
    from .loading import split_for_search as split_for_search
    from .normalisation import normalise as normalise
    from .prediction import load_images as load_images

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
    return sorted(_HOME)
