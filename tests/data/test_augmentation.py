import random

import numpy as np
import pytest
import torch

from dsonas.data import Augmentation, Batches, DataError, FileImages
from dsonas.data.augmentation import crop_and_flip, cut_out, draw_offsets

FULL = Augmentation(crop_padding=2, flip=True, cutout=4)


def reference(image, offsets, sample, augmentation):
    """One image, pixel by pixel."""
    _, height, width = image.shape
    padding, side = augmentation.crop_padding, augmentation.cutout
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_column = width - 1 - column if offsets.flipped[sample] else column
            y = row + int(offsets.top[sample]) - padding
            x = source_column + int(offsets.left[sample]) - padding
            first_row = int(offsets.centre_row[sample]) - side // 2
            first_column = int(offsets.centre_column[sample]) - side // 2
            cut = (
                first_row <= row < first_row + side and first_column <= column < first_column + side
            )
            if 0 <= y < height and 0 <= x < width and not cut:
                result[:, row, column] = image[:, y, x]
    return result


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def augment(images, augmentation, generator):
    """What ``Batches`` does, but for normalisation in between."""
    offsets = draw_offsets(images.shape, augmentation, generator)
    return cut_out(crop_and_flip(images, offsets, augmentation), offsets, augmentation)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "augmentation",
    [
        FULL,
        Augmentation(),
        Augmentation(crop_padding=3),
        Augmentation(flip=True),
        Augmentation(cutout=3),
        Augmentation(cutout=50),
        Augmentation(crop_padding=9, flip=True),
    ],
)
def test_equals_a_plain_loop_over_images(channels, dtype, augmentation):
    images = torch.randint(1, 256, (12, channels, 7, 9), generator=generator()).to(dtype)
    offsets = draw_offsets(images.shape, augmentation, generator(1))
    expected = torch.stack(
        [reference(image, offsets, at, augmentation) for at, image in enumerate(images)]
    )
    result = augment(images, augmentation, generator(1))
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_input_is_left_alone():
    images = torch.randint(1, 256, (4, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    augment(images, FULL, generator())
    assert torch.equal(images, before)


def test_memory_layout_of_the_input_does_not_matter():
    images = torch.rand(4, 3, 8, 8)
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(
        augment(images, FULL, generator()), augment(channels_last, FULL, generator())
    )


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(crop_padding=4), Augmentation(flip=True), Augmentation(cutout=4)],
)
def test_images_of_a_batch_differ(augmentation):
    image = torch.randint(1, 256, (1, 3, 16, 16), dtype=torch.uint8)
    results = augment(image.expand(64, 3, 16, 16), augmentation, generator())
    distinct = {result.numpy().tobytes() for result in results}
    assert len(distinct) == 2 if augmentation.flip else len(distinct) > 25


def test_offsets_cover_their_range_evenly():
    offsets = draw_offsets(torch.Size([90_000, 1, 6, 6]), FULL, generator())
    for values, places in ((offsets.top, 5), (offsets.left, 5), (offsets.centre_row, 6)):
        shares = torch.bincount(values, minlength=places) / 90_000
        assert len(shares) == places
        assert float((shares - 1 / places).abs().max()) < 0.01
    assert float(offsets.flipped.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_switching_cutout_on_leaves_crops_as_they_were():
    shape = torch.Size([16, 3, 8, 8])
    with_cutout = draw_offsets(shape, FULL, generator())
    without = draw_offsets(shape, Augmentation(crop_padding=2, flip=True), generator())
    assert torch.equal(with_cutout.top, without.top)
    assert torch.equal(with_cutout.flipped, without.flipped)


def test_cutout_keeps_memory_format():
    images = torch.rand(4, 1, 8, 8).to(memory_format=torch.channels_last)
    offsets = draw_offsets(images.shape, FULL, generator())
    assert cut_out(images, offsets, FULL).stride() == images.stride()


def test_nothing_to_do_returns_the_images_themselves():
    images = torch.rand(2, 1, 4, 4)
    offsets = draw_offsets(images.shape, Augmentation(), generator())
    assert crop_and_flip(images, offsets, Augmentation()) is images


TRANSFORM = """
import random
import numpy as np
import torch

def vary(image):
    assert image.dtype == torch.uint8 and image.ndim == 3
    shift = torch.randint(0, 50, ()) + random.randint(0, 50) + np.random.randint(0, 50)
    return (image.int() + shift).clamp(0, 255).to(torch.uint8)

def smaller(image):
    return image[:, 1:]

def failing(image):
    raise KeyError("no")
"""


@pytest.fixture
def transformed(tmp_path, make_images, make_data):
    (tmp_path / "mine.py").write_text(TRANSFORM)

    def make(function="vary", images=None, **options):
        images = images or make_images()
        data = make_data(images, transform=f"{tmp_path / 'mine.py'}:{function}")
        return Batches(
            images, data, batch_size=6, augmentation=data.train_augmentation, shuffle=True,
            drop_last=False, seed=5, **options,
        )  # fmt: skip

    return make


def test_a_function_of_the_users_is_called_with_every_image(transformed, make_images, make_data):
    images = make_images()
    plain = Batches(
        images, make_data(images), batch_size=6, augmentation=None, shuffle=True, drop_last=False,
        seed=5,
    )  # fmt: skip
    shifts = set()
    for (varied, labels), (still, same) in zip(transformed().epoch(0), plain.epoch(0), strict=True):
        assert torch.equal(labels, same)
        for one, other in zip(varied, still, strict=True):
            unclipped = one < one.amax() - 1e-6
            shifts.add(round(float((one - other)[0][unclipped[0]].median()), 4))
    assert len(shifts) > 10  # every image has its own


@pytest.mark.parametrize("start", [0, 2])
def test_a_users_random_numbers_follow_from_seed_and_epoch(transformed, start):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    whole, again = list(transformed().epoch(1)), list(transformed().epoch(1, start))
    for (one, _), (other, _) in zip(whole[start:], again, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(transformed().epoch(2))[0], whole[0][0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_workers_call_a_users_function_as_one_process_does(transformed, tmp_path, save_image):
    for number in range(12):
        save_image(tmp_path / f"{number}.png", seed=number)
    paths = [str(tmp_path / f"{number}.png") for number in range(12)]
    images = FileImages(paths, torch.arange(12) % 4, image_size=8, channels=3)
    alone, together = (
        list(transformed(images=images, workers=workers).epoch(0)) for workers in (0, 2)
    )
    for (one, _), (other, _) in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("smaller", r"must return a uint8 tensor \(3, 8, 8\) .*, got torch.uint8 \(3, 7, 8\)"),
        ("failing", "fails: KeyError: 'no'"),
        ("absent", "must name a function of that file, got 'absent'"),
    ],
)
def test_a_users_function_is_refused_in_one_line(transformed, function, message):
    with pytest.raises(DataError, match=rf"^data\.augment .*mine\.py:{function} {message}"):
        next(transformed(function).epoch(0))


def test_a_users_file_must_exist(make_images, make_data):
    images = make_images()
    data = make_data(images, transform="gone.py:vary")
    with pytest.raises(DataError, match=r"a Python file .* that exists, got gone\.py"):
        Batches(
            images, data, batch_size=6, augmentation=data.train_augmentation, shuffle=True,
            drop_last=False, seed=5,
        )  # fmt: skip
