"""Classify image files with an exported ONNX file: neither dsonas nor torch is needed.

    python examples/walkthrough_classify.py NETWORK.onnx IMAGE...

It prints file, class and probability of each image.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, paths: list[str]) -> None:
    """Classify the images one by one."""
    session = onnxruntime.InferenceSession(model)
    notes = session.get_modelmeta().custom_metadata_map
    keys = ("class_names", "image_size", "input_channels", "mean", "std")
    names, size, channels, mean, std = (json.loads(notes[key]) for key in keys)
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("L" if channels == 1 else "RGB")
        square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(square, np.float32).reshape(size, size, channels) / 255
        images = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]
        logits = session.run(None, {"images": images})[0][0]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = probabilities.argmax()
        print(path, names[best], f"{probabilities[best]:.4f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
