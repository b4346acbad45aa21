"""How a finished network does on each of its test images: measured once, then kept."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsonas._utils import write_atomically
from dsonas.data import DataConfig, ImageData, ImageSet
from dsonas.run import RunFolder, classify_test, test_data
from dsonas.train import Engine, EngineConfig, Outcome

FILE_NAME = "evaluation.json"
MOST_SHOWN, MOST_OF_A_PAIR, THUMBNAIL = 24, 3, 64


@dataclass(frozen=True)
class Mistake:
    """A test image that the network takes for another class."""

    label: int
    predicted: int
    probability: float  # of the predicted class, in [0, 1]
    file: str = ""  # its path in its folder, if it is in a file
    picture: str = ""  # a data URI; only the surest few have one
    side: int = 0  # of the picture in pixels


@dataclass(frozen=True)
class Examination:
    """What the network makes of its test images."""

    class_names: list[str]
    confusion: list[list[int]]  # for each true class (row), how many are taken for each class
    mistakes: list[Mistake]  # all, the surest first
    network: str  # SHA-256 of its file

    @property
    def num_images(self) -> int:
        """All test images."""
        return sum(map(sum, self.confusion))

    @property
    def error(self) -> float:
        """Test error in percent."""
        return 100 * len(self.mistakes) / self.num_images

    @property
    def class_errors(self) -> list[tuple[str, float, int]]:
        """Name, error in percent and number of images of each class, the worst first."""
        rows = [
            (name, 100 * (1 - row[i] / sum(row)), sum(row))
            for i, (name, row) in enumerate(zip(self.class_names, self.confusion, strict=True))
            if sum(row)
        ]
        return sorted(rows, key=lambda row: -row[1])

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """True class, predicted class and number, the most frequent first."""
        pairs = Counter((mistake.label, mistake.predicted) for mistake in self.mistakes)
        ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return [(self.class_names[i], self.class_names[j], count) for (i, j), count in ranked]


def examine(
    folder: RunFolder,
    config: Mapping[str, Any],
    data: ImageData | None = None,
    outcome: Outcome | None = None,
) -> Examination:
    """Run the network of a finished run on its test images, or read what that gave before.

    The result goes into ``evaluation.json``, with the network's fingerprint, and stays as it was
    measured: images that are added, moved or lost later change nothing in it.

    Raises:
        ValueError: if network or data set cannot be had; the message says why.
    """
    file = folder.path / "network.safetensors"
    key = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    if stored := _stored(folder.path / FILE_NAME, key):
        return stored
    if data is None or outcome is None:
        finished = folder.load_network()
        wanted = _from_mapping(DataConfig, config.get("data"))
        data = data or test_data(folder, finished, wanted, config.get("seed") or 0)
        engine = Engine(_from_mapping(EngineConfig, config.get("engine")))
        outcome = outcome or classify_test(folder, finished, data, engine)
    size = data.num_classes
    counts = torch.bincount(outcome.labels * size + outcome.predicted, minlength=size**2)
    mistakes = _mistakes(outcome, data.test)
    found = Examination(list(data.class_names), counts.reshape(size, size).tolist(), mistakes, key)
    keys = ("name", "error", "images")
    classes = [dict(zip(keys, row, strict=True)) for row in found.class_errors]
    text = json.dumps({"test_error": found.error, "classes": classes, **asdict(found)})
    with suppress(OSError):  # a folder that is read only: the report goes elsewhere
        write_atomically(folder.path / FILE_NAME, text.encode())
    return found


def _stored(file: Path, key: str) -> Examination | None:
    """What was measured before with this very network; None if there is nothing of use."""
    try:
        value = json.loads(file.read_text())
        mistakes = [Mistake(**mistake) for mistake in value["mistakes"]]
        found = Examination(value["class_names"], value["confusion"], mistakes, value["network"])
        return found if found.network == key and found.error >= 0 and found.class_errors else None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None


def _from_mapping(kind: type[Any], values: object) -> Any:
    """A configuration from a file; names that this version does not know are left out."""
    given = values if isinstance(values, dict) else {}
    return kind(**{name: given[name] for name in kind.__dataclass_fields__ if name in given})


def _mistakes(outcome: Outcome, images: ImageSet) -> list[Mistake]:
    """All mistakes, the surest first; the surest few of each pair of classes with a picture."""
    confidence, predicted, labels = outcome.probability, outcome.predicted, outcome.labels
    wrong = torch.nonzero(predicted != labels).flatten()
    pairs: Counter[tuple[int, int]] = Counter()
    found, num_shown = [], 0
    for i in wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist():
        pair, picture, side = (int(labels[i]), int(predicted[i])), "", 0
        pairs[pair] += 1
        if pairs[pair] <= MOST_OF_A_PAIR and num_shown < MOST_SHOWN:
            num_shown += 1
            picture, side = _thumbnail(images.gather(torch.tensor([i]))[0])
        file = images.name(i)
        found.append(Mistake(*pair, round(float(confidence[i]), 6), file, picture, side))
    return found


def _thumbnail(pixels: Tensor) -> tuple[str, int]:
    """An image, uint8 (1 or 3, side, side), as a data URI of at most 64 pixels; and its side."""
    image, buffer = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), image.width
