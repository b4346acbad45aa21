import logging

import pytest
import torch

from dsonas.data import DataError, load_images
from dsonas.data.decoding import decode

RGB = {"image_size": 8, "input_channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
GREY = {"image_size": 8, "input_channels": 1, "mean": [0.5], "std": [0.25]}


def test_files_and_folders_in_batches(tmp_path, save_image):
    for number in range(5):
        save_image(tmp_path / "many" / "deep" / f"{number}.png", seed=number)
    save_image(tmp_path / "one.jpg", seed=9)
    (tmp_path / "many" / "notes.txt").write_text("no image")
    (tmp_path / "many" / "._0.png").write_text("left by another system")
    paths = [str(tmp_path / "one.jpg"), tmp_path / "many"]
    batches = list(load_images(paths, **RGB, batch_size=4))
    assert [images.shape for images, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    names = [name for _, names in batches for name in names]
    assert names[0] == str(tmp_path / "one.jpg")
    assert len(names) == 6
    expected = (torch.from_numpy(decode(names[1], 8, 3)) / 255 - 0.5) / 0.25
    torch.testing.assert_close(batches[0][0][1], expected, atol=1e-5, rtol=1e-5)


def test_damaged_files_are_skipped_and_counted(tmp_path, save_image, caplog):
    save_image(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        ((images, names),) = load_images([tmp_path], **RGB)
    assert len(images) == 1
    assert names == [str(tmp_path / "good.png")]
    assert "1 unreadable image files skipped" in caplog.text
    assert "bad.png: cannot identify image file" in caplog.text


@pytest.mark.parametrize("options", [RGB, GREY])
def test_nothing_but_damaged_files_is_an_error(tmp_path, options):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 files .*bad\.png: cannot identify"):
        list(load_images([tmp_path / "bad.png"], **options))


def test_missing_paths_are_found_before_reading(tmp_path, save_image):
    save_image(tmp_path / "good.png")
    with pytest.raises(DataError, match=r"gone\.png not found"):
        load_images([tmp_path / "good.png", tmp_path / "gone.png"], **RGB)


def test_empty_input_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no images"):
        load_images([tmp_path], **RGB)
    with pytest.raises(DataError, match="no images given"):
        load_images([], **RGB)


def test_grey_image_for_rgb_network_is_converted_as_in_training(tmp_path, save_image):
    save_image(tmp_path / "grey.png", mode="L")
    ((images, _),) = load_images([tmp_path / "grey.png"], **RGB)
    assert images.shape == (1, 3, 8, 8)
    assert torch.equal(images[0, 0], images[0, 2])


def test_colour_image_for_grey_network_is_converted(tmp_path, save_image):
    save_image(tmp_path / "colour.png")
    ((images, _),) = load_images([tmp_path / "colour.png"], **GREY)
    assert images.shape == (1, 1, 8, 8)


def test_a_broken_link_is_skipped_as_any_file_that_cannot_be_read(tmp_path, save_image, caplog):
    save_image(tmp_path / "good.png")
    link = tmp_path / "gone.png"
    link.symlink_to("nowhere")
    skipped = {}
    for paths in ([tmp_path], [link, tmp_path / "good.png"]):
        ((_, names),) = load_images(paths, **RGB, skipped=skipped)
        assert names == [str(tmp_path / "good.png")]
        assert skipped == {str(link): "No such file or directory"}
