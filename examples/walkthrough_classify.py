"""Classify image files with an exported ONNX file: neither dsonas nor torch is needed.

    python examples/walkthrough_classify.py NETWORK.onnx IMAGE...

It prints file, class and probability of each image.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(model: str, paths: list[str]) -> None:
    """Classify the images one by one."""
    sys.path.insert(0, str(Path(model).parent))
    from pixels import read_pixels  # it lies beside the network

    session = onnxruntime.InferenceSession(model)
    notes = session.get_modelmeta().custom_metadata_map
    keys = ("class_names", "image_size", "input_channels", "crop", "mean", "std")
    names, size, channels, crop, *statistics = (json.loads(notes[key]) for key in keys)
    mean, std = (np.float32(values).reshape(-1, 1, 1) for values in statistics)
    for path in paths:
        pixels = read_pixels(path, size, channels, crop, fit=notes["fit"])
        images = ((pixels / np.float32(255) - mean) / std)[None]
        logits = session.run(None, {"images": images})[0][0]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = probabilities.argmax()
        print(path, names[best], f"{probabilities[best]:.4f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
