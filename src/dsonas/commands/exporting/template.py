"""Those parts of the generated source that are the same for every network but for a few words."""

from __future__ import annotations

from string import Template

HEAD = Template('''\
"""An image classifier that dsonas found by architecture search.

$facts

    python network.py IMAGE...    prints file, class and probability of each image

The weights lie beside this file, in network.pt. It needs torch; image files also need Pillow.
In evaluation mode it computes what the network of the run computes.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

$class_names
IMAGE_SIZE = $image_size  # height and width in pixels
INPUT_CHANNELS = $input_channels  # $color
# per channel, of pixels from 0 to 1
$mean
$std
WEIGHTS = Path(__file__).with_name("network.pt")''')

CONV_BN_RELU = Template('''\
def conv_bn_relu(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=$eps),
        nn.ReLU(),
    )''')

CONV_RELU = Template('''\
def conv_relu(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """A convolution, batch normalisation folded into it, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2),
        nn.ReLU(),
    )''')

REDUCTION = Template('''\
class Reduction(nn.Module):
    """Halve height and width: the sum of a 1x1 and a 3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = $convolution(inputs, outputs, 1)
        self.conv3x3 = $convolution(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, inputs, H, W) to (B, outputs, H / 2, W / 2), rounded up."""
        return self.conv1x1(x[:, :, ::2, ::2]) + self.conv3x3(x)''')

TAIL = '''\
def load(weights: str | Path = WEIGHTS) -> Network:
    """The trained network, ready to classify."""
    network = Network()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)  # the faster layout


def read_image(path: str | Path) -> Tensor:
    """An image file as the network expects it: upright, cut to a square, normalised.

    Returns a tensor (INPUT_CHANNELS, IMAGE_SIZE, IMAGE_SIZE).
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        file.draft(None, (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))  # decodes large JPEGs faster
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits to 8
            values = torch.frombuffer(
                bytearray(image.convert("I").tobytes()), dtype=torch.int32
            )
            scaled = (values.clamp(0, 65535) + 128) // 257
            image = Image.frombytes("L", image.size, bytes(scaled.tolist()))
        elif image.has_transparency_data:
            background = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(background, image.convert("RGBA"))
        image = image.convert("L" if INPUT_CHANNELS == 1 else "RGB")
        image = ImageOps.fit(image, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(IMAGE_SIZE, IMAGE_SIZE, INPUT_CHANNELS).permute(2, 0, 1)
    mean = torch.tensor(MEAN).view(-1, 1, 1)
    std = torch.tensor(STD).view(-1, 1, 1)
    return pixels * (1 / (255 * std)) - mean / std  # (pixels / 255 - mean) / std


@torch.inference_mode()
def main(paths: list[str]) -> None:
    """Print file, class and probability of each image."""
    network = load()
    for path in paths:
        probabilities = network(read_image(path)[None]).softmax(1)[0]
        probability, label = probabilities.max(0)
        print(path, CLASS_NAMES[int(label)], f"{probability:.4f}", sep="\\t")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {sys.argv[0]} IMAGE...")
    main(sys.argv[1:])
'''
