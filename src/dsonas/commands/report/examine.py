"""How a finished network does on each of its test images."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dsonas.data import DataConfig, ImageData, load_data
from dsonas.run import RunError, RunFolder, check_fits, held_out_batches
from dsonas.train import Engine, EngineConfig

MOST_SHOWN = 24
MOST_OF_A_PAIR = 3
THUMBNAIL = 64


@dataclass(frozen=True)
class Mistake:
    """A test image that the network takes for another class.

    Args:
        label: true class.
        predicted: class with the highest probability.
        probability: of that class, in [0, 1].
        true_probability: of the true class, in [0, 1].
        picture: a data URI.
        side: of the picture in pixels.
    """

    label: int
    predicted: int
    probability: float
    true_probability: float
    picture: str
    side: int


@dataclass(frozen=True)
class Examination:
    """What the network makes of its test images.

    Args:
        class_names: in the order of the labels.
        counts: for each true class (row), how many images are taken for each class.
        mistakes: the most confident wrong ones.
    """

    class_names: tuple[str, ...]
    counts: list[list[int]]
    mistakes: list[Mistake]

    @property
    def num_images(self) -> int:
        """All test images."""
        return sum(map(sum, self.counts))

    @property
    def num_wrong(self) -> int:
        """Those that are taken for another class."""
        return self.num_images - sum(row[i] for i, row in enumerate(self.counts))

    @property
    def class_errors(self) -> list[tuple[str, float, int]]:
        """Name, error in percent and number of images of each class, the worst first."""
        rows = [
            (name, 100 * (1 - row[i] / sum(row)), sum(row))
            for i, (name, row) in enumerate(zip(self.class_names, self.counts, strict=True))
            if sum(row)
        ]
        return sorted(rows, key=lambda row: -row[1])

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """True class, predicted class and number, the most frequent first."""
        pairs = [
            (self.class_names[i], self.class_names[j], count)
            for i, row in enumerate(self.counts)
            for j, count in enumerate(row)
            if i != j and count
        ]
        return sorted(pairs, key=lambda pair: -pair[2])


def examine(
    folder: RunFolder, config: Mapping[str, Any], data: ImageData | None = None
) -> Examination:
    """Run the network of a folder on its test images.

    Args:
        folder: a finished run.
        config: its settings, nested as in ``config.yaml``.
        data: the data set, if it is in memory already.

    Raises:
        ValueError: if network or data set cannot be had; the message says why.
    """
    network, preprocessing = folder.load_network()
    engine = Engine(_from_mapping(EngineConfig, config.get("engine")))
    if data is None:
        data = load_data(_from_mapping(DataConfig, config.get("data")), config.get("seed") or 0)
    if preprocessing.class_names != data.class_names:
        raise RunError(
            "the network knows other classes than the data set has now: "
            f"{len(preprocessing.class_names)} and {len(data.class_names)} classes"
        )
    check_fits(network.architecture, data)
    data = replace(data, mean=preprocessing.mean, std=preprocessing.std)
    engine.place(network)
    probabilities, labels = _predict(network, data, engine)
    return Examination(
        class_names=data.class_names,
        counts=_count(probabilities.argmax(1), labels, data.num_classes),
        mistakes=_mistakes(probabilities, labels, data),
    )


def _from_mapping(kind: type[Any], values: object) -> Any:
    """A configuration from a file; names that this version does not know are left out."""
    given = values if isinstance(values, dict) else {}
    return kind(**{name: given[name] for name in kind.__dataclass_fields__ if name in given})


@torch.inference_mode()
def _predict(network: torch.nn.Module, data: ImageData, engine: Engine) -> tuple[Tensor, Tensor]:
    """Probabilities (images, classes) and labels (images,) of all test images, on the CPU."""
    network.eval()
    rows, labels = [], []
    for images, batch_labels in held_out_batches(data, engine).epoch(0):
        with engine.autocast():
            rows.append(network(images).float().softmax(1).cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(rows), torch.cat(labels)


def _count(predicted: Tensor, labels: Tensor, num_classes: int) -> list[list[int]]:
    flat = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).tolist()


def _mistakes(probabilities: Tensor, labels: Tensor, data: ImageData) -> list[Mistake]:
    """The most confident mistakes, at most a few of each pair of classes."""
    confidence, predicted = probabilities.max(1)
    wrong = torch.nonzero(predicted != labels).flatten()
    ranked = wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist()
    pairs: Counter[tuple[int, int]] = Counter()
    chosen: list[int] = []
    for index in ranked:
        pair = int(labels[index]), int(predicted[index])
        pairs[pair] += 1
        if pairs[pair] <= MOST_OF_A_PAIR and len(chosen) < MOST_SHOWN:
            chosen.append(index)
    return [
        Mistake(
            label=int(labels[i]),
            predicted=int(predicted[i]),
            probability=float(confidence[i]),
            true_probability=float(probabilities[i, labels[i]]),
            picture=to_data_uri(pixels),
            side=min(pixels.shape[-1], THUMBNAIL),
        )
        for i, pixels in zip(chosen, _gather(data, chosen), strict=True)
    ]


def _gather(data: ImageData, chosen: Sequence[int]) -> list[Tensor]:
    return list(data.test.gather(torch.tensor(chosen, dtype=torch.int64))) if chosen else []


def to_data_uri(pixels: Tensor) -> str:
    """An image as text that a page can hold.

    Args:
        pixels: uint8, (1 or 3, height, width); larger sides than 64 are reduced.

    Example:
        >>> to_data_uri(torch.zeros(1, 8, 8, dtype=torch.uint8))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
