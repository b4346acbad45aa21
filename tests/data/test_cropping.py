"""Random crops, colour jitter and the crop of the test images, as the paper's ImageNet needs."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

from dsonas.data import Augmentation, Batches, DataConfig, load_data, sources
from dsonas.data.augmentation import ASPECTS, RandomCrop, jitter_colors
from dsonas.data.decoding import decode
from dsonas.data.shards import write_shards
from helpers.image_files import write_imagenet

SIZES = [(500, 375), (333, 500), (224, 224), (40, 30), (1, 1), (3, 300), (1000, 17)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("least", [0.08, 0.5, 1.0])
def test_random_crops_lie_inside_and_keep_their_limits(width: int, height: int, least: float):
    crop = RandomCrop(least, seed=3)
    for position in range(200):
        left, top, right, bottom = crop.box(position, width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        across, down = right - left, bottom - top
        rounding = 1 + 1 / min(across, down)
        assert ASPECTS[0] / rounding**2 <= across / down <= ASPECTS[1] * rounding**2
        fits = least * width * height <= min(width, height) ** 2 * 0.75
        if fits:
            assert across * down * rounding**2 >= least * width * height


def test_random_crops_reach_all_of_the_image_and_all_sizes():
    boxes = [RandomCrop(0.08, seed=0).box(position, 400, 300) for position in range(2000)]
    shares = np.array([(r - x) * (b - y) / 120_000 for x, y, r, b in boxes])
    assert shares.min() < 0.09
    assert shares.max() > 0.95
    logs = np.array([math.log((r - x) / (b - y)) for x, y, r, b in boxes])
    always_fit = shares < 0.3
    assert np.median(shares[always_fit]) == pytest.approx(0.19, abs=0.02)
    assert logs[always_fit].mean() == pytest.approx(0, abs=0.03)
    assert logs[always_fit].std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.02)
    assert {min(box[i] for box in boxes) for i in (0, 1)} == {0}
    assert (max(box[2] for box in boxes), max(box[3] for box in boxes)) == (400, 300)


def test_without_a_crop_the_largest_middle_square_is_used(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 48, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = ImageOps.fit(Image.fromarray(pixels), (16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(str(path), 16, 3), np.array(expected).transpose(2, 0, 1))


def test_a_share_of_0_875_is_resize_256_and_crop_224(tmp_path):
    rough = np.random.default_rng(1).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.png")
    found = decode(str(tmp_path / "image.png"), 224, 3, fit="crop:0.875").astype(float)
    resized = image.resize((341, 256), Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((58, 16, 282, 240))).transpose(2, 0, 1)
    assert np.abs(found - expected).mean() < 2  # 341 columns there, 341.3 here
    assert np.abs(decode(str(tmp_path / "image.png"), 224, 3) - expected).mean() > 5


def test_a_subset_keeps_the_crop(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    data = load_data(DataConfig(name=f"folder:{tmp_path}", image_size=32))
    narrow = data.test.cropped(RandomCrop(0.25, seed=0))
    first = torch.tensor([0])
    assert torch.equal(narrow.subset(first).gather(first), narrow.gather(first))
    assert not torch.equal(narrow.gather(first), data.test.gather(first))
    assert data.test.crop != narrow.crop


@pytest.fixture
def batches(tmp_path):
    write_imagenet(tmp_path)
    config = DataConfig(name=f"folder:{tmp_path}", image_size=32, augment="crop", fit="crop:0.875")
    data = load_data(config)
    assert not data.train.in_memory
    assert data.train_augmentation == Augmentation(flip=True, random_crop=True)

    def make(**options) -> Batches:
        defaults = {"augmentation": data.train_augmentation, "shuffle": True, "seed": 1}
        return Batches(data.train, data, batch_size=4, drop_last=True, **(defaults | options))

    return make


def test_random_crops_are_the_same_again_and_when_resumed(batches):
    once, again = list(batches().epoch(2)), list(batches().epoch(2))
    rest = list(batches().epoch(2, start=1))
    for (one, _), (two, _) in zip(once, again, strict=True):
        assert torch.equal(one, two)
    assert [torch.equal(one, two) for (one, _), (two, _) in zip(once[1:], rest, strict=True)] == [
        True
    ] * 2


def test_random_crops_differ_between_epochs_and_images_and_not_in_tests(batches):
    still = {"shuffle": False}
    epochs, measured = (  # before the colours vary
        [next(batches(augmentation=how, **still)._plan.read(n, 0, 0, 1))[0] for n in (0, 1)]
        for how in (Augmentation(random_crop=True), None)
    )
    assert not torch.equal(*epochs)
    assert torch.equal(*measured)
    assert not torch.equal(epochs[0], measured[0])


def test_shards_are_cropped_as_folders_are(tmp_path):
    write_imagenet(tmp_path / "images")
    write_shards(tmp_path / "images", tmp_path / "shards", images_per_shard=4)
    options = {"image_size": 32, "augment": "crop", "fit": "crop:0.5"}
    folder, shards = (
        load_data(DataConfig(name=f"{kind}:{tmp_path / place}", **options))
        for kind, place in (("folder", "images"), ("shards", "shards"))
    )
    assert contents(folder.test) == contents(shards.test)
    assert contents(folder.train) == contents(shards.train)
    crop = RandomCrop(0.08, seed=0)
    some = shards.train.subset(torch.arange(6))
    cut = some.cropped(crop)
    chunks = [torch.tensor([4]), torch.tensor([1, 0])]
    together = torch.cat([pixels for pixels, _ in cut.read(chunks)])
    alone = torch.cat([cut.gather(torch.tensor([at])) for at in (4, 1, 0)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, some.gather(torch.tensor([4, 1, 0])))


def contents(images) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images.gather(torch.arange(len(images))))


def test_images_in_memory_are_cut_out_of_their_square(make_images):
    images = make_images(count=6, size=16)
    some = torch.tensor([4, 1])
    crop = RandomCrop(0.2, seed=0)
    cut = images.cropped(crop).gather(some)
    assert (cut.dtype, cut.shape) == (torch.uint8, images.gather(some).shape)
    left, top, right, bottom = (round(edge) for edge in crop.box(4, 16, 16))
    part = images.gather(some)[0][:, top:bottom, left:right]
    assert torch.equal(cut[0], transforms.resize(part, [16, 16], antialias=True))
    assert torch.equal(images.cropped(None).gather(some), images.gather(some))


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision_one_image_at_a_time(channels: int, make_images):
    images = make_images(count=5, channels=channels).gather(torch.arange(5))
    draws = torch.rand(3, 5, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    factors_of_images = 1 + 0.4 * (2 * draws.view(3, 5) - 1).T
    found = jitter_colors(images, draws)
    for image, varied, factors in zip(images, found, factors_of_images, strict=True):
        expected = image.float() / 255
        expected = transforms.adjust_brightness(expected, float(factors[0]))
        expected = transforms.adjust_contrast(expected, float(factors[1]))
        expected = transforms.adjust_saturation(expected, float(factors[2]))
        torch.testing.assert_close(varied / 255, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("augment", "shake"), ("augment", "my_file:vary"), ("fit", "pad:0.5"), ("fit", "crop:1.01")],
)
def test_a_configuration_refuses_by_name(name: str, value: float | str):
    with pytest.raises(ValueError, match=rf"^data\.{name} must be .*, got {value!r}: "):
        DataConfig(**{name: value})
