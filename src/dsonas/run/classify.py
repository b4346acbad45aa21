"""What a finished network makes of image files, and of its test images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch

from dsonas.data import ImageData, list_files, load_images
from dsonas.run.runs import RunFolder
from dsonas.train import Engine, EngineConfig, Outcome


class Prediction(NamedTuple):
    """What a network makes of an image file."""

    file: str  # its name
    classes: list[tuple[str, float]]  # the most probable first, each with its probability in [0, 1]
    skipped: str = ""  # why the file cannot be read; then there are no classes


@torch.inference_mode()
def predict_images(
    folder: RunFolder, paths: Sequence[str], *, top: int = 1, device: str | None = None
) -> Iterator[Prediction]:
    """Name the most probable classes of every image, and what cannot be read, in order.

    ``top`` classes, or all if there are not so many, computed on a device of ``EngineConfig``.
    """
    network, preprocessing, shape = folder.load_network()
    names, pixels = preprocessing.class_names, preprocessing.pixels(shape)
    engine = Engine(EngineConfig(device=device or "cpu"))
    engine.place(network)
    every, skipped = list_files(paths), dict[str, str]()
    waiting = iter(every)
    for images, files in load_images(every, **pixels, skipped=skipped):
        probabilities = network(images.to(engine.device)).softmax(1).cpu()
        best = probabilities.topk(min(top, len(names)))
        for file, values, labels in zip(files, *(part.tolist() for part in best), strict=True):
            while (before := next(waiting)) != file:
                yield Prediction(before, [], skipped[before])
            classes = [(names[at], value) for at, value in zip(labels, values, strict=True)]
            yield Prediction(file, classes)
    for file in waiting:
        yield Prediction(file, [], skipped[file])


def class_metrics(outcome: Outcome, class_names: Sequence[str]) -> dict[str, Any]:
    """How a network does beside its error, by scikit-learn.

    Returns:
        ``images``; ``majority_rate``, the share of the most frequent class, which is what always
        naming it would get right; ``balanced_accuracy``, the mean recall of the classes that have
        images; for each of ``classes`` name, precision, recall, F1 and images; ``confusion``: for
        each true class how many are taken for each class. All shares are in [0, 1].

    Example:
        >>> labels, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0])
        >>> found = class_metrics(Outcome(labels, predicted, torch.ones(4), 0.5), ["cat", "dog"])
        >>> found["majority_rate"], found["balanced_accuracy"], found["confusion"]
        (0.75, 0.5, [[3, 0], [1, 0]])
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # slow to import

    labels = list(range(len(class_names)))
    given: dict[str, Any] = {"y_true": outcome.labels.numpy(), "y_pred": outcome.predicted.numpy()}
    found: Any = precision_recall_fscore_support(**given, labels=labels, zero_division=cast(Any, 0))
    precision, recall, f1, counts = (values.tolist() for values in found)
    seen = [share for share, count in zip(recall, counts, strict=True) if count]
    rows = zip(class_names, precision, recall, f1, counts, strict=True)
    return {
        "images": len(outcome.labels),
        "majority_rate": round(max(counts) / len(outcome.labels), 6),
        "balanced_accuracy": round(sum(seen) / len(seen), 6),
        "classes": [
            {"name": name, "precision": round(p, 6), "recall": round(r, 6), "f1": round(f, 6),
             "images": count}
            for name, p, r, f, count in rows
        ],
        "confusion": confusion_matrix(**given, labels=labels).tolist(),
    }  # fmt: skip


def predictions_csv(outcome: Outcome, data: ImageData) -> str:
    """The text of ``predictions.csv``: file (or number), class, prediction of each test image."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("file", "class", "predicted", "probability"))
    values = (outcome.labels.tolist(), outcome.predicted.tolist(), outcome.probability.tolist())
    for at, (label, predicted, probability) in enumerate(zip(*values, strict=True)):
        names = data.class_names[label], data.class_names[predicted]
        writer.writerow((data.test.name(at) or at, *names, f"{probability:.6f}"))
    return buffer.getvalue()
