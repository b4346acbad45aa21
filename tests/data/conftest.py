"""Small image folders and in-memory image sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsonas.data import Augmentation, ImageData, TensorImages


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB"):
    """Save smooth random pixels, so that JPEG keeps them nearly as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make class folders ``classes`` with ``count`` images each under ``tmp_path / part``."""

    def make(part: str = "", classes: str = "ab", count: int = 5, **options) -> Path:
        for label, name in enumerate(classes):
            for number in range(count):
                path = tmp_path / "images" / part / name / f"{number}.png"
                save_image(path, seed=100 * label + number + 1000 * sum(map(ord, part)), **options)
        return tmp_path / "images"

    return make


@pytest.fixture
def make_images() -> Callable[..., TensorImages]:
    """Make random pixels whose labels go round the classes."""

    def make(count: int = 20, channels: int = 3, size: int = 8, classes: int = 4) -> TensorImages:
        generator = torch.Generator().manual_seed(count)
        shape = (count, channels, size, size)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return TensorImages(pixels, torch.arange(count) % classes)

    return make


@pytest.fixture
def make_data() -> Callable[..., ImageData]:
    """Wrap an image set with simple statistics."""

    def make(images, **augmentation) -> ImageData:
        channels = images.image_shape[0]
        return ImageData(
            train=images,
            test=images,
            class_names=tuple("abcd"),
            mean=tuple(0.4 + 0.05 * channel for channel in range(channels)),
            std=tuple(0.2 + 0.05 * channel for channel in range(channels)),
            train_augmentation=Augmentation(**augmentation),
        )

    return make


@pytest.fixture(name="save_image")
def save_image_fixture() -> Callable[..., None]:
    return save_image
