"""A network and images: the batches of a run, and what a finished network makes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch

from dsonas._utils import csv_text, derive_seed
from dsonas.data import Batches, DataConfig, ImageData, ImageSet, list_files, load_images, load_test
from dsonas.run.network_files import FinishedNetwork, RunError, Shape
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder
from dsonas.train import Engine, EngineConfig, Outcome, classify

EVALUATION_BATCH = 250


def training_batches(data: ImageData, engine: Engine, config: RunConfig) -> Batches:
    """All training images as step 3 sees them, in an order fixed by the seed."""
    return Batches(
        data.train,
        data,
        batch_size=config.train.batch_size,
        augmentation=data.train_augmentation,
        shuffle=True,
        drop_last=True,
        seed=derive_seed(config.seed, "train"),
        device=engine.device,
        workers=config.data.workers,
        share=engine.processes.share,
    )


def test_data(
    folder: RunFolder, finished: FinishedNetwork, config: DataConfig, seed: int
) -> ImageData:
    """Load the images that measure the network of a finished run, as it expects them.

    Of an image folder these are the test images of the run, by its ``split.csv``; that shards are
    not those of the run is said; see ``load_test``. Class names are those of the network.
    """
    _, preprocessing, shape = finished
    known = {"class_names": preprocessing.class_names, **preprocessing.pixels(shape)}
    shards = (folder.metrics or {}).get("shards")
    return load_test(config, seed, split=folder.split, shards=shards, **known)


def held_out_batches(
    data: ImageData, engine: Engine, workers: int = 0, images: ImageSet | None = None
) -> Batches:
    """The test images in order, or others."""
    place = {"device": engine.device, "workers": workers, "share": engine.processes.share}
    chosen = data.test if images is None else images
    return Batches(chosen, data, batch_size=EVALUATION_BATCH, **place)


def evaluate_run(folder: RunFolder, finished: FinishedNetwork, config: RunConfig) -> dict[str, Any]:
    """Measure the network of a run on the test images of its data set; see ``class_metrics``."""
    engine, data = Engine(config.engine), test_data(folder, finished, config.data, config.seed)
    found = classify_test(folder, finished, data, engine)
    measured = {"test_error": round(found.error, 6), "test_loss": round(found.loss, 6)}
    return {**measured, **class_metrics(found, data.class_names)}


def classify_test(
    folder: RunFolder, finished: FinishedNetwork, data: ImageData, engine: Engine
) -> Outcome:
    """Classify the test images, normalised as the network of a run expects, on a device.

    A RunError if the network is not for these images.
    """
    network, preprocessing, shape = finished
    if preprocessing.class_names != data.class_names:
        raise RunError(
            f"the network of {folder.path} knows the classes {preprocessing.class_names}, "
            f"the data set has {data.class_names}: give the data set it was trained on"
        )
    check_fits(shape, data)
    engine.place(network)
    # as in training, even if the folder's training images have changed since
    data = replace(data, mean=preprocessing.mean, std=preprocessing.std)
    return classify(network, held_out_batches(data, engine), engine)


def check_fits(wanted: Shape, data: ImageData) -> None:
    """Refuse a network that is not for images and classes like those of a data set."""
    given = Shape.of(data)
    if wanted != given:
        raise RunError(
            f"the architecture is for images of {wanted[0]} pixels, {wanted[1]} channels and "
            f"{wanted[2]} classes, the data set has {given[0]}, {given[1]} and {given[2]}: "
            "give the data set it was found on, or set data.image_size or data.color"
        )


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
    rows = [("file", "class", "predicted", "probability")]
    values = (outcome.labels.tolist(), outcome.predicted.tolist(), outcome.probability.tolist())
    for at, (label, predicted, probability) in enumerate(zip(*values, strict=True)):
        names = data.class_names[label], data.class_names[predicted]
        rows.append((data.test.name(at) or str(at), *names, f"{probability:.6f}"))
    return csv_text(rows)
