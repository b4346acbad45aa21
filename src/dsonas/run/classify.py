"""Classify image files with a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dsonas.data import load_images
from dsonas.run.runs import RunFolder


@torch.inference_mode()
def predict_images(folder: RunFolder, paths: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Class and probability of every image.

    Args:
        folder: a finished run.
        paths: image files, and folders of them.

    Returns:
        Iterator over (file name, class name, probability in [0, 1]).
    """
    network, preprocessing = folder.load_network()
    pixels = preprocessing.pixels(network.architecture.skeleton)
    for images, names in load_images(paths, **pixels):
        probabilities, labels = network(images).softmax(1).max(1)
        for name, label, probability in zip(
            names, labels.tolist(), probabilities.tolist(), strict=True
        ):
            yield name, preprocessing.class_names[label], probability
