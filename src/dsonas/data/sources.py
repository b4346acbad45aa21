"""Data sets that come as arrays: digits, Fashion-MNIST, CIFAR."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsonas._utils import derive_seed

from .data_config import DataConfig, DataError
from .images import ImageSet, TensorImages
from .splitting import Split

SPLIT_SEED = 20181105  # fixed, so that results of runs with different seeds are comparable
MEMORY_LIMIT = 2 * 1024**3  # bytes of decoded images; larger folders are streamed from disk
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
FASHION_MNIST_STATISTICS = ((0.2860,), (0.3530,))
CIFAR: dict[str, tuple[str, Statistics]] = {  # names of torchvision
    "cifar10": ("CIFAR10", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": ("CIFAR100", ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
}
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a data set, and what its files have told."""

    train: ImageSet  # the training images, both parts of a search together
    test: ImageSet  # the test images, the same whatever the run's seed
    # those by which step 3 chooses the epoch whose network it keeps; None: the last is kept
    val: ImageSet | None = None
    class_names: tuple[str, ...]  # names of the classes in the order of their labels
    skipped: tuple[str, ...] = ()  # files that could not be read, relative to the image folder
    layout: str = ""  # how the folders of an image folder were understood, in one line
    split: Split | None = None  # which files of an image folder are for what; None for other data


@dataclass(frozen=True, kw_only=True)
class SourceData(Parts):
    """What a source delivers; None means: to be derived from the training part."""

    # means and standard deviations, one of each per channel, in 0..1
    statistics: Statistics | None = None
    crop_padding: int | None = None  # default padding of random crops in pixels
    flip: bool = True  # whether mirroring is sensible


def read_digits(config: DataConfig, seed: int) -> SourceData:
    """Read scikit-learn's 1797 handwritten digits of 8x8 pixels, a stratified part held out."""
    from sklearn.datasets import load_digits  # slow to import, needed by this source only

    pixels, labels = load_digits(return_X_y=True)
    scaled = np.rint(np.asarray(pixels) * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    digits = TensorImages(torch.from_numpy(scaled), torch.from_numpy(np.asarray(labels)))
    train, test = digits.split(float(config.test), SPLIT_SEED)
    names = tuple(str(digit) for digit in range(10))
    source = SourceData(train=train, test=test, class_names=names, crop_padding=1, flip=False)
    return _adapt(source, config, seed)


def read_fashion_mnist(config: DataConfig, seed: int) -> SourceData:
    """Read Fashion-MNIST from the files of its authors, packed or not, or Debian's package."""
    source = SourceData(
        train=_read_idx_pair("train", config),
        test=_read_idx_pair("t10k", config),
        class_names=FASHION_MNIST_CLASSES,
        statistics=FASHION_MNIST_STATISTICS,
        crop_padding=2,
    )
    return _adapt(source, config, seed)


def _data_roots(config: DataConfig) -> list[Path]:
    if config.root is not None:
        return [config.root]
    places = filter(None, (os.environ.get("DSONAS_DATA"), "~/.cache/dsonas"))
    return [Path(os.path.expanduser(place)) for place in places]


def _read_idx_pair(part: str, config: DataConfig) -> TensorImages:
    images = _read_idx(_find_fashion_mnist(f"{part}-images-idx3-ubyte", config), 3)
    labels = _read_idx(_find_fashion_mnist(f"{part}-labels-idx1-ubyte", config), 1)
    if len(images) != len(labels):
        raise DataError(
            f"Fashion-MNIST {part}: {len(images)} images but {len(labels)} labels: "
            "download both files again"
        )
    return TensorImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels))


def _find_fashion_mnist(stem: str, config: DataConfig) -> Path:
    roots = _data_roots(config)
    folders = [folder for root in roots for folder in (root, root / "FashionMNIST" / "raw")]
    if config.root is None:
        folders.append(DEBIAN_FASHION_MNIST)
    for folder in folders:
        for name in (stem, f"{stem}.gz"):
            if (folder / name).is_file():
                return folder / name
    raise DataError(
        f"Fashion-MNIST file {stem}.gz not found in {', '.join(map(str, folders))}: "
        "run `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or download the four "
        f".gz files of https://github.com/zalandoresearch/fashion-mnist to {roots[0]}"
    )


def _read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes: magic number 0, 0, 8, dimensions; sizes; then the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:  # gzip raises all three
        raise DataError(f"cannot read {path}: {error}: download it again") from error
    start = 4 + 4 * num_dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + int(np.prod(sizes))
    if content[:4] != bytes([0, 0, 8, num_dimensions]) or len(content) != expected:
        raise DataError(
            f"{path} is damaged: {len(content)} bytes where its head promises {expected}: "
            "download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()


def read_cifar(config: DataConfig, seed: int) -> SourceData:
    """Read CIFAR-10 or CIFAR-100 from the unpacked files of its authors."""
    from torchvision import datasets  # a second, for this only

    name, statistics = CIFAR[config.source]
    reader, roots, found = getattr(datasets, name), _data_roots(config), list[Any]()
    for root in roots:
        try:
            found = [reader(root, train=train, download=False) for train in (True, False)]
            break
        except RuntimeError:  # torchvision: files missing, or their checksums are wrong
            continue
    if not found:
        raise DataError(
            f"{config.source} not found, or damaged, in {', '.join(map(str, roots))}: download "
            f"{reader.url} and unpack it with `tar -xf` so that the folder "
            f"{roots[0] / reader.base_folder} exists"
        )
    pixels = [torch.from_numpy(part.data.transpose(0, 3, 1, 2)).contiguous() for part in found]
    train, test = (
        TensorImages(images, torch.tensor(part.targets))
        for images, part in zip(pixels, found, strict=True)
    )
    source = SourceData(
        train=train,
        test=test,
        class_names=tuple(found[0].classes),
        statistics=statistics,
        crop_padding=4,
    )
    return _adapt(source, config, seed)


def _adapt(source: SourceData, config: DataConfig, seed: int) -> SourceData:
    """Choose the images wanted, then bring them to the size and colour wanted."""
    channels, own_size, _ = source.train.image_shape
    if config.color == "rgb" and channels == 1:
        raise DataError(f"{config.source} is grey but data.color is rgb: use --data.color auto")
    size = config.image_size or own_size
    train_seed = derive_seed(seed, "max_train_images")
    train = source.train.sample(config.max_train_images, train_seed)
    test = source.test.sample(config.max_test_images, SPLIT_SEED)
    to_grey = config.color == "grey" and channels == 3
    needed = (len(train) + len(test)) * (1 if to_grey else channels) * size**2
    if size != own_size and needed > MEMORY_LIMIT:
        raise DataError(
            f"{config.source} resized to {size} pixels takes {needed} bytes, more than "
            f"{MEMORY_LIMIT}: lower data.image_size or data.max_train_images"
        )
    return replace(
        source,
        train=_convert(train, size, to_grey),
        test=_convert(test, size, to_grey),
        statistics=None if to_grey else source.statistics,
        crop_padding=source.crop_padding if size == own_size else None,
    )


def _convert(images: ImageSet, size: int, to_grey: bool) -> ImageSet:
    if images.image_shape[1:] == (size, size) and not to_grey:
        return images
    from torchvision.transforms.v2 import functional as transforms  # a second, for this only

    channels = 1 if to_grey else images.image_shape[0]
    converted = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    for chunk in torch.arange(len(images)).split(_CHUNK):
        pixels = images.gather(chunk)
        grey = transforms.rgb_to_grayscale(pixels) if to_grey else pixels
        converted[chunk] = transforms.resize(grey, [size, size], antialias=True)
    return TensorImages(converted, images.labels)
