"""The images of a run as step 3 sees them: all training images, and the test images in order."""

from __future__ import annotations

from dsonas._utils import derive_seed
from dsonas.data import Batches, DataConfig, ImageData, ImageSet, load_test
from dsonas.run.run_config import RunConfig
from dsonas.run.runs import RunFolder
from dsonas.train import Engine

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


def test_data(folder: RunFolder, config: DataConfig, seed: int) -> ImageData:
    """Load the images that measure the network of a finished run, as it expects them.

    Of an image folder these are the test images of the run, by its ``split.csv``; see
    ``load_test``. The names of the classes are those of the network.

    Raises:
        ValueError: if the network or the images cannot be had; the message says why.
    """
    _, preprocessing, shape = folder.load_network()
    pixels = preprocessing.pixels(shape)
    names = preprocessing.class_names
    return load_test(config, seed, class_names=names, split=folder.split, **pixels)


def held_out_batches(
    data: ImageData, engine: Engine, workers: int = 0, images: ImageSet | None = None
) -> Batches:
    """The test images in order, or others."""
    return Batches(
        data.test if images is None else images,
        data,
        batch_size=EVALUATION_BATCH,
        augmentation=None,
        shuffle=False,
        drop_last=False,
        seed=0,
        device=engine.device,
        workers=workers,
        share=engine.processes.share,
    )
