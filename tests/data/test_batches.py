import multiprocessing
import time

import pytest
import torch

from dsonas._utils import derive_seed
from dsonas.data import Batches, DataError, FileImages
from dsonas.data.augmentation import crop_and_flip, draw_offsets
from dsonas.data.images import channel_statistics, normalise


def make_batches(images, make_data, **options):
    data = make_data(images, crop_padding=1, flip=True, cutout=3)
    defaults = {
        "batch_size": 6,
        "augmentation": data.train_augmentation,
        "shuffle": True,
        "drop_last": False,
        "seed": 5,
    }
    return Batches(images, data, **(defaults | options))


@pytest.fixture
def streamed(tmp_path, save_image):
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        save_image(path, seed=number)
    return FileImages([str(path) for path in paths], torch.arange(20) % 4, image_size=8, channels=3)


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_shapes_types_and_counts(make_images, make_data):
    batches = make_batches(make_images(), make_data)
    result = list(batches.epoch(0))
    assert len(batches) == batches.num_batches == len(result) == 4
    assert [len(labels) for _, labels in result] == [6, 6, 6, 2]
    assert {images.dtype for images, _ in result} == {torch.float32}
    assert {labels.dtype for _, labels in result} == {torch.int64}


def test_drop_last_leaves_out_the_incomplete_batch(make_images, make_data):
    batches = make_batches(make_images(), make_data, drop_last=True)
    assert len(batches) == 3
    assert [len(labels) for _, labels in batches.epoch(0)] == [6, 6, 6]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmented", [True, False])
def test_batches_are_channels_last_and_so_are_convolutions(
    make_images, make_data, channels, augmented
):
    options = {} if augmented else {"augmentation": None}
    batches = make_batches(make_images(channels=channels), make_data, **options)
    images, _ = next(batches.epoch(0))
    assert images.stride() == (64 * channels, 1, 8 * channels, channels)
    convolution = torch.nn.Conv2d(channels, 8, 3).to(memory_format=torch.channels_last)
    assert convolution(images).is_contiguous(memory_format=torch.channels_last)


def test_evaluation_visits_every_image_in_order(make_images, make_data):
    images = make_images()
    options = {"augmentation": None, "shuffle": False}
    batches = make_batches(images, make_data, **options)
    data = make_data(images)
    seen = torch.cat([batch for batch, _ in batches.epoch(0)])
    expected = images.gather(torch.arange(20)).double() / 255
    for channel in range(3):
        normal = (expected[:, channel] - data.mean[channel]) / data.std[channel]
        torch.testing.assert_close(seen[:, channel].double(), normal, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in batches.epoch(0)]), images.labels)


def test_every_epoch_is_a_new_permutation(make_images, make_data):
    images = make_images()
    batches = make_batches(images, make_data, augmentation=None)
    epochs = [torch.cat([batch for batch, _ in batches.epoch(number)]) for number in (0, 1)]
    assert not torch.equal(*epochs)
    assert torch.equal(*[epoch.flatten(1).sum(1).sort().values for epoch in epochs])


def test_batches_depend_on_seed_epoch_and_place_only(make_images, make_data):
    one = make_batches(make_images(), make_data)
    other = make_batches(make_images(), make_data)
    list(other.epoch(0))
    torch.manual_seed(1234)
    assert_same(one.epoch(3), other.epoch(3))
    first, _ = next(one.epoch(3))
    for changed in (make_batches(make_images(), make_data, seed=6).epoch(3), one.epoch(4)):
        assert not torch.equal(first, next(changed)[0])


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resuming_continues_exactly(make_images, make_data, start):
    batches = make_batches(make_images(), make_data)
    assert_same(batches.epoch(2, start), list(batches.epoch(2))[start:])


def test_equals_the_plain_steps(make_images, make_data):
    images = make_images()
    data = make_data(images, crop_padding=1, flip=True)
    batches = make_batches(images, make_data, augmentation=data.train_augmentation, shuffle=False)
    generator = torch.Generator().manual_seed(derive_seed(5, "augmentation", 0, 1))
    pixels, augmentation = images.gather(torch.arange(6, 12)), data.train_augmentation
    cropped = crop_and_flip(
        pixels, draw_offsets(pixels.shape, augmentation, generator), augmentation
    )
    second = list(batches.epoch(0))[1][0]
    assert torch.equal(second, normalise(cropped, data.mean, data.std))


def test_cutout_blanks_to_the_mean(make_images, make_data):
    images = make_images()
    data = make_data(images, cutout=3)
    batches = make_batches(images, make_data, augmentation=data.train_augmentation)
    for batch, _ in batches.epoch(0):
        zeros = (batch == 0).all(1).flatten(1).sum(1)
        assert bool((zeros >= 4).all())
        assert bool((zeros <= 9).all())


def test_global_random_state_is_left_alone(make_images, make_data, streamed):
    before = torch.get_rng_state()
    for images in (make_images(), streamed):
        list(make_batches(images, make_data).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_equal_those_in_memory(streamed, make_data, workers):
    loaded, _ = streamed.load(num_threads=1)
    expected = make_batches(loaded, make_data)
    batches = make_batches(streamed, make_data, workers=workers)
    assert_same(batches.epoch(1), expected.epoch(1))
    assert_same(batches.epoch(1, start=2), expected.epoch(1, start=2))


def readers() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


def test_readers_stay_for_the_next_epoch_and_end_with_the_batches(streamed, make_data):
    before = readers()
    batches, expected = (make_batches(streamed, make_data, workers=n) for n in (2, 0))
    list(batches.epoch(0))
    own = readers() - before
    assert len(own) == 2
    assert_same(batches.epoch(3), expected.epoch(3))
    assert_same(batches.epoch(1, start=2), expected.epoch(1, start=2))
    assert own <= readers()
    del batches
    assert not own & readers()


def test_an_epoch_left_in_the_middle_and_two_side_by_side_disturb_no_other(streamed, make_data):
    before = readers()
    batches, expected = (make_batches(streamed, make_data, workers=n) for n in (2, 0))
    left = batches.epoch(0)
    next(left)
    assert_same(batches.epoch(1), expected.epoch(1))
    del left
    one, other = zip(*zip(batches.epoch(2), batches.epoch(3), strict=True), strict=True)
    assert_same(one, expected.epoch(2))
    assert_same(other, expected.epoch(3))
    assert_same(batches.epoch(4), expected.epoch(4))
    del batches
    assert readers() <= before


def test_resumed_stream_does_not_decode_what_it_skips(streamed, make_data, monkeypatch):
    decoded = []
    original = FileImages.gather

    def counting_gather(self, indices):
        decoded.extend(indices.tolist())
        return original(self, indices)

    monkeypatch.setattr(FileImages, "gather", counting_gather)
    list(make_batches(streamed, make_data).epoch(0, start=3))
    assert len(decoded) == 2


@pytest.mark.parametrize("start", [-1, 5])
def test_start_out_of_range_is_refused_at_once(make_images, make_data, start):
    with pytest.raises(ValueError, match=f"start must be from 0 to 4.*got {start}"):
        make_batches(make_images(), make_data).epoch(0, start)


def test_sizes_are_checked(make_images, make_data):
    images = make_images()
    with pytest.raises(DataError, match=r"fewer images than a batch.*20, got 21: lower batch_size"):
        make_batches(images, make_data, batch_size=21, drop_last=True)
    assert len(make_batches(images, make_data, batch_size=21)) == 1
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_batches(images, make_data, batch_size=0)
    with pytest.raises(DataError, match="got 0"):
        make_batches(images.subset(torch.arange(0)), make_data)


def test_normalise_leaves_its_input_alone():
    images = torch.rand(2, 1, 4, 4)
    before = images.clone()
    assert normalise(images, [0.5], [0.5]) is not images
    assert torch.equal(images, before)


def test_statistics_equal_those_of_the_floats(make_images):
    images = make_images(count=300)
    mean, std = channel_statistics(images)
    values = images.gather(torch.arange(300)).double() / 255
    expected_std, expected_mean = torch.std_mean(values, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(mean).double(), expected_mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected_std, atol=1e-6, rtol=0)


def test_constant_images_can_be_normalised():
    from dsonas.data import TensorImages

    images = TensorImages(torch.full((3, 1, 4, 4), 7, dtype=torch.uint8), torch.zeros(3))
    mean, std = channel_statistics(images)
    assert std == (1 / 255,)
    assert bool((normalise(images.gather(torch.arange(3)), mean, std).abs() < 1e-4).all())


def test_batches_are_fast(make_images, make_data):
    images = make_images(count=128 * 20, channels=1, size=28)
    batches = make_batches(images, make_data, batch_size=128)
    fastest = min(time_of_epoch(batches) for _ in range(3))
    assert fastest / len(batches) < 0.01, "ten times the 1 ms that an idle core needs"


def time_of_epoch(batches):
    start = time.perf_counter()
    for _ in batches.epoch(0):
        pass
    return time.perf_counter() - start
