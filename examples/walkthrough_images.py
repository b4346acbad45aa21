"""Three folders of small PNG images to try the walk-through with: handwritten 0, 1 and 2.

    python examples/walkthrough_images.py my_images

They are scans of 8x8 pixels that come with scikit-learn.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Write FOLDER/zero/000.png and so on: 537 images."""
    digits = load_digits()
    for label, name in enumerate(("zero", "one", "two")):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(digits.images[digits.target == label]):
            Image.fromarray(np.uint8(255 / 16 * pixels)).save(place / f"{number:03}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
