"""One rule from image files to pixels: every kind of pixel, and what is refused or said."""

import logging

import numpy as np
import pytest
from PIL import Image

from dsonas.data import pixels
from dsonas.data.decoding import decode
from dsonas.data.pixels import read_pixels

RAMP = np.tile(np.arange(16), (16, 1))


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels, "_told", [])


def saved(folder, image, name="image.tif", **options) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
@pytest.mark.parametrize("top", [65535, 15000])
def test_sixteen_bits_use_their_whole_range(tmp_path, name, top, caplog):
    path = saved(tmp_path, Image.fromarray((RAMP * (top // 15)).astype(np.uint16)), name)
    assert np.abs(read_pixels(path, 16, 1)[0] - RAMP * (top // 15) / 257).max() <= 0.5
    assert caplog.text == ""


@pytest.mark.parametrize(("top", "scale"), [(255, 1), (65535, 257)])
def test_long_integers_are_8_bits_if_they_can_be_and_16_otherwise(tmp_path, top, scale):
    path = saved(tmp_path, Image.fromarray((RAMP * (top // 15)).astype(np.int32)))
    assert np.array_equal(read_pixels(path, 16, 1)[0], RAMP * 17)
    assert np.array_equal(read_pixels(path, 16, 3)[2], RAMP * 17)


def test_a_portable_greymap_of_16_bits_is_never_taken_for_8(tmp_path):
    """Pillow gives it 32 bits, as it gave 16-bit PNG files before."""
    path = saved(tmp_path, Image.fromarray((RAMP * 17).astype(np.uint16)), "grey.pgm")
    assert Image.open(path).mode == "I"
    assert read_pixels(path, 16, 1).max() == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (RAMP.astype(np.int32) - 1, "pixels from -1 to 14 have no known range"),
        (RAMP.astype(np.int32) * 5000, "pixels from 0 to 75000 have no known range"),
        (RAMP.astype(np.float32), "floating-point pixels have no known range"),
    ],
)
def test_pixels_without_a_known_range_are_refused(tmp_path, values, reason):
    path = saved(tmp_path, Image.fromarray(values))
    with pytest.raises(ValueError, match=reason):
        read_pixels(path, 16, 1)
    with pytest.raises(ValueError, match=rf"cannot read image .*image\.tif: {reason}"):
        decode(path, 16, 1)


def test_an_improbable_range_is_said_once_with_the_file(tmp_path, caplog):
    dark = Image.fromarray((RAMP * 200).astype(np.uint16))
    first, second = (saved(tmp_path, dark, f"{i}.png") for i in "ab")
    black = saved(tmp_path, Image.fromarray((RAMP * 0).astype(np.uint16)), "black.png")
    with caplog.at_level(logging.WARNING):
        for path in (black, first, second):
            read_pixels(path, 16, 1)
    (record,) = caplog.records
    assert "a.png: its 16-bit pixels are at most 3000 of 65535" in record.getMessage()


def clear(mode: str, colour, **options):
    return Image.new(mode, (8, 8), colour), options


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (clear("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (clear("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (clear("RGBA", (0, 100, 200, 51)), (204, 224, 244)),
        (clear("LA", (100, 0)), (255,) * 3),
        (clear("L", 7, transparency=7), (255,) * 3),
        (clear("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255,) * 3),
        (clear("RGB", (1, 2, 4), transparency=(1, 2, 3)), (1, 2, 4)),
        (clear("1", 0, transparency=0), (255,) * 3),
        (clear("1", 1), (255,) * 3),
        (clear("1", 0), (0,) * 3),
        (clear("I;16", 514), (2,) * 3),
        (clear("I;16", 514, transparency=514), (255,) * 3),
        (clear("P", 0), (90, 80, 70)),
        (clear("P", 0, transparency=0), (255,) * 3),
    ],
)
def test_transparent_parts_are_white_whatever_the_mode(tmp_path, made, expected):
    image, options = made
    if image.mode == "P":
        image.putpalette([90, 80, 70, 0, 0, 0])
    path = saved(tmp_path, image, "image.png", **options)
    assert read_pixels(path, 8, 3)[:, 3, 3].tolist() == list(expected)


def test_print_colours_become_red_green_and_blue(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    assert read_pixels(path, 8, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_the_middle_square_is_what_the_crop_leaves(tmp_path):
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 20:40] = 200
    path = saved(tmp_path, Image.fromarray(values), "image.png")
    inner, whole = (read_pixels(path, 8, 1, crop)[0] for crop in (0.5, 1.0))
    assert inner.min() > 160  # the filter sees a little more than the square
    assert whole[0].max() < 40
    left = read_pixels(path, 8, 1, 0.5, lambda width, height: (0, 0, width / 4, height))
    assert left.max() < 10
