import logging

import numpy as np
import pytest
import torch
from PIL import Image

from dsonas.data import DataError, FileImages, TensorImages
from dsonas.data.decoding import UnreadableImageError, decode, read_header


def file_images(folder, count=4, **options):
    paths = [str(folder / f"{number}.png") for number in range(count)]
    return FileImages(paths, torch.arange(count) % 2, image_size=8, channels=3, **options)


@pytest.fixture
def folder(tmp_path, save_image):
    for number in range(4):
        save_image(tmp_path / f"{number}.png", seed=number)
    return tmp_path


def test_gather_follows_the_indices(make_images):
    images = make_images()
    chosen = torch.tensor([3, 0, 3])
    batch = images.gather(chosen)
    assert batch.dtype == torch.uint8
    assert batch.shape == (3, 3, 8, 8)
    assert torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])


def test_subset_of_a_subset(make_images):
    images = make_images()
    nested = images.subset(torch.arange(10, 20)).subset(torch.tensor([4, 1]))
    assert torch.equal(nested.gather(torch.tensor([0, 1])), images.gather(torch.tensor([14, 11])))
    assert torch.equal(nested.labels, images.labels[torch.tensor([14, 11])])


def test_bad_tensors_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        TensorImages(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="got 3 for 2"):
        TensorImages(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(3))


def test_files_and_memory_agree(folder):
    streamed = file_images(folder)
    loaded, bad = streamed.load(num_threads=2)
    assert not bad
    assert loaded.in_memory
    assert not streamed.in_memory
    everything = torch.tensor([2, 0, 3, 1])
    assert torch.equal(streamed.gather(everything), loaded.gather(everything))
    part = torch.tensor([False, True, False, True])
    first = torch.tensor([0, 1])
    assert torch.equal(streamed.subset(part).gather(first), loaded.subset(part).gather(first))


def test_loading_leaves_out_damaged_files(folder):
    (folder / "1.png").write_bytes(b"no image")
    loaded, bad = file_images(folder).load(num_threads=1)
    assert bad == {str(folder / "1.png"): "cannot identify image file"}
    assert loaded.labels.tolist() == [0, 0, 1]
    assert torch.equal(
        loaded.gather(torch.tensor([2])), file_images(folder).gather(torch.tensor([3]))
    )


def test_streaming_replaces_a_damaged_file_within_its_class(folder, caplog):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        batch = file_images(folder).gather(torch.tensor([1, 3]))
    assert torch.equal(batch[0], batch[1])
    assert "1.png" in caplog.text
    assert "3.png takes its place" in caplog.text


def test_streaming_fails_where_a_class_has_no_readable_file(folder):
    for number in (1, 3):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match="nor any other image of its class"):
        file_images(folder).gather(torch.tensor([1]))


def test_centre_of_the_image_is_kept(tmp_path):
    pixels = np.zeros((30, 10, 3), np.uint8)
    pixels[10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "tall.png")
    assert (decode(str(tmp_path / "tall.png"), 10, 3) == 200).all()


def test_exif_orientation_is_honoured(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    decoded = decode(str(tmp_path / "turned.jpg"), 16, 3)
    assert decoded[:, :7].max() < 30
    assert decoded[:, 9:].min() > 225


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    path = str(tmp_path / f"deep.{suffix}")
    Image.fromarray(values).save(path)
    assert read_header(path).grey
    assert np.abs(decode(path, 16, 1)[0, 0] - np.linspace(0, 255, 16)).max() <= 1


def test_transparent_parts_become_white(tmp_path):
    path = str(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(path)
    assert (decode(path, 8, 3) == 255).all()
    assert not read_header(path).grey
    Image.new("LA", (8, 8), (10, 255)).save(path)
    assert (decode(path, 8, 1) == 10).all()
    assert read_header(path).grey


@pytest.mark.parametrize(("color", "grey"), [((200, 0, 0), False), ((90, 90, 90), True)])
def test_palettes_are_resolved(tmp_path, color, grey):
    path = str(tmp_path / "palette.png")
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*color, 0, 0, 0])
    image.save(path)
    assert read_header(path).grey == grey
    assert decode(path, 8, 3)[:, 0, 0].tolist() == list(color)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "gif"), ("RGB", "webp")]
)
def test_common_modes_decode_to_both_colours(tmp_path, save_image, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    save_image(path, mode=mode)
    assert decode(str(path), 8, 3).shape == (3, 8, 8)
    assert decode(str(path), 8, 1).shape == (1, 8, 8)
    assert read_header(str(path)).grey == (mode in ("1", "L"))
    assert read_header(str(path)).short_side == 16


@pytest.mark.parametrize(("mode", "reason"), [("F", "floating-point"), ("LAB", "LAB")])
def test_pixels_that_cannot_be_used_are_refused_by_the_header(tmp_path, mode, reason):
    path = str(tmp_path / "image.tif")
    Image.new(mode, (8, 8)).save(path)
    for read in (read_header, lambda file: decode(file, 8, 1)):
        with pytest.raises(UnreadableImageError, match=reason):
            read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_truncated_files_are_unreadable(tmp_path, save_image, suffix):
    path = tmp_path / f"image.{suffix}"
    save_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match=f"cannot read image .*image.{suffix}"):
        decode(str(path), 8, 3)
