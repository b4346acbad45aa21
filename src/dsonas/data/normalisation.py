"""Pixel statistics of a training set, and pixels to normalised floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsonas._utils import send

from .images import ImageSet

_CHUNK = 256
_NUM_STREAMED = 2048


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in units of 0..1.

    Exact for images in memory; from 2048 images spread over the set where they are streamed. A
    deviation is at least 1/255, so that dividing by it is safe.
    """
    used = torch.arange(len(images))
    if not images.in_memory:
        used = used[:: max(1, len(images) // _NUM_STREAMED)]
    histogram = torch.zeros(images.image_shape[0], 256, dtype=torch.int64)
    for chunk in used.split(_CHUNK):
        for channel, pixels in enumerate(images.gather(chunk).unbind(1)):
            histogram[channel] += torch.bincount(pixels.flatten(), minlength=256)
    weights = histogram.double() / histogram.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels from 0 to 255 into floats of mean 0 and deviation 1.

    With numbers for each channel in units of 0..1, ``(images / 255 - mean) / std``: a new float32
    tensor ``(batch, channels, height, width)`` in channels_last.
    """
    deviations = send(torch.tensor(std), images.device).view(1, -1, 1, 1)
    means = send(torch.tensor(mean), images.device).view(1, -1, 1, 1)
    # the arithmetic runs in NCHW, several times faster for three channels, and is then copied:
    # .contiguous() would leave one-channel images in NCHW strides, and convolutions with them
    values = torch.mul(images, 1 / (255 * deviations)).sub_(means / deviations)
    result = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    return result.copy_(values)
