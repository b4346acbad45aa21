"""CIFAR-10 as folders of JPEG files, small and in memory."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor


def read_images(folder: Path, part: str, size: int) -> tuple[Tensor, Tensor]:
    """Read the images of a part in the order of their files, averaged down to ``size`` pixels.

    Returns:
        Pixels (N, 3, size, size), uint8, and labels; a file in ``folder`` keeps both.
    """
    cache = folder / f"{part}-{size}.pt"
    if not cache.exists():
        found = ImageFolder(str(folder / part), pil_to_tensor)
        small = [F.adaptive_avg_pool2d(x.float(), size).round().byte() for x, _ in found]
        written = cache.with_suffix(f".{os.getpid()}")  # others may read or write at once
        torch.save((torch.stack(small), torch.tensor(found.targets)), written)
        written.replace(cache)
    return torch.load(cache)
