"""Shards written from a folder of digits, and read back in every way."""

import json
import logging
import math
import shutil
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from dsonas.data import Batches, DataConfig, DataError, load_data, split_for_search, write_shards
from dsonas.data.batches import part_of
from dsonas.data.shards import LANES, ShardFiles, ShardIndex, stream_order

PER_SHARD = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three digits, 16 for training and 4 for the test of each, in PNG and JPEG files."""
    root = tmp_path_factory.mktemp("digits")
    flat, labels = load_digits(return_X_y=True)
    for label in range(3):
        for i, pixels in enumerate(np.asarray(flat)[labels == label][:20]):
            image = Image.fromarray(np.uint8(pixels.reshape(8, 8) * 15.9))
            place = root / ("val" if i % 5 == 4 else "train") / f"digit{label}"
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{i:02}.{('png', 'jpg')[i % 2]}", quality=95)
    return root


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """Its shards; not to be changed."""
    out = tmp_path_factory.mktemp("shards") / "out"
    write_shards(folder, out, images_per_shard=PER_SHARD)
    return out


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture
def opened(monkeypatch):
    """The shards that were opened since, in order."""
    urls = []
    original = ShardFiles.read

    def counting(self, shard):
        urls.append(self.urls[shard])
        return original(self, shard)

    monkeypatch.setattr(ShardFiles, "read", counting)
    return urls


def load(place, **options):
    return load_data(DataConfig(name=f"shards:{place}", image_size=8, **options))


def make_batches(data, images=None, **options):
    defaults = {"batch_size": 8, "shuffle": True, "drop_last": True, "seed": 5}
    augmentation = data.search_augmentation
    images = data.train if images is None else images
    return Batches(images, data, augmentation=augmentation, **(defaults | options))


def everything(images):
    return images.gather(torch.arange(len(images)))


def in_any_order(images, labels):
    return sorted(zip(labels.tolist(), (pixels.numpy().tobytes() for pixels in images)))  # noqa: B905


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def seen(batches):
    images, labels = zip(*batches, strict=True)
    return in_any_order(torch.cat(images), torch.cat(labels))


def test_shards_hold_what_the_folder_holds(folder, written):
    streamed = load(written)
    plain = load_data(DataConfig(name=f"folder:{folder}", image_size=8))
    assert streamed.class_names == plain.class_names
    assert not streamed.train.in_memory
    for one, other in ((streamed.train, plain.train), (streamed.test, plain.test)):
        assert in_any_order(everything(one), one.labels) == in_any_order(
            everything(other), other.labels
        )
    assert streamed.train.image_shape == (1, 8, 8)


def test_statistics_of_the_index_are_those_of_the_images(folder, written):
    streamed = load_data(DataConfig(name=f"shards:{written}"))
    plain = load_data(DataConfig(name=f"folder:{folder}"))
    assert streamed.image_size == plain.image_size == 32
    assert (streamed.mean, streamed.std) == (plain.mean, plain.std)


def test_the_same_folder_gives_the_same_bytes(folder, written, tmp_path):
    write_shards(folder, tmp_path / "again", images_per_shard=PER_SHARD, workers=3)
    files = sorted(path.relative_to(written) for path in written.rglob("*.*"))
    assert len(files) == 16 + 12 + 2
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (written / file).read_bytes()


def test_every_shard_has_its_share_and_small_sets_have_16(folder, written, tmp_path):
    def sizes(index):
        return [len(shard.labels) for shard in index.shards]

    assert sizes(load(written).train.files.index) == [3] * 16
    assert sizes(write_shards(folder, tmp_path / "default")["train"]) == [3] * 16
    smaller = write_shards(folder, tmp_path / "smaller", images_per_shard=2)
    assert (sizes(smaller["train"]), sizes(smaller["val"])) == ([2] * 24, [1] * 12)


def test_larger_images_are_shrunk(save_image, tmp_path):
    for name in "ab":
        save_image(tmp_path / "images" / name / "wide.png", size=(60, 30))
        save_image(tmp_path / "images" / name / "tall.jpg", size=(10, 40))
    index = write_shards(tmp_path / "images", tmp_path / "out", size=12)["train"]
    sizes = set()
    for shard in index.shards:
        with tarfile.open(tmp_path / "out" / "train" / shard.file) as tar:
            for member in tar:
                if not member.name.endswith(".cls"):
                    sizes.add(Image.open(tar.extractfile(member)).size)
    assert sizes <= {(24, 12), (10, 40)}
    assert index.short_side in (10, 11, 12)


def test_files_that_are_no_images_are_left_out(folder, tmp_path, caplog):
    root = shutil.copytree(folder, tmp_path / "damaged")
    content = (root / "train" / "digit0" / "01.jpg").read_bytes()
    (root / "train" / "digit0" / "01.jpg").write_bytes(content[: len(content) // 2])
    (root / "train" / "digit1" / "02.png").write_text("not an image")
    with caplog.at_level(logging.WARNING):
        indices = write_shards(root, tmp_path / "out")
    num_images = [len(shard.labels) for index in indices.values() for shard in index.shards]
    assert sum(num_images) == 58
    skipped = [name for index in indices.values() for name in index.skipped]
    assert sorted(skipped) == ["train/digit0/01.jpg", "train/digit1/02.png"]
    assert "unreadable image files skipped" in caplog.text
    assert sorted(load(tmp_path / "out").skipped) == sorted(skipped)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=50),
    st.integers(1, 70),
    st.integers(0, 10),
)
def test_an_order_names_every_position_once(sizes, batch_size, seed):
    shard_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = stream_order(shard_of, batch_size, seed)
    assert torch.equal(order.sort().values, torch.arange(sum(sizes)))
    assert torch.equal(order, stream_order(shard_of, batch_size, seed))


def test_a_reader_holds_a_bounded_number_of_shards():
    shard_of = torch.arange(400).repeat_interleave(100)
    read = shard_of[stream_order(shard_of, 128, seed=0)].tolist()
    last = {shard: at for at, shard in enumerate(read)}
    held, most = set(), 0
    for at, shard in enumerate(read):
        held.add(shard)
        most = max(most, len(held))
        held -= {shard} if last[shard] == at else set()
    assert LANES <= most <= 2 * LANES


@pytest.mark.parametrize("num_readers", [2, 4, 16])
def test_readers_share_only_the_shards_at_the_cuts(num_readers):
    shard_of = torch.arange(100).repeat_interleave(64)
    chunks = stream_order(shard_of, 128, seed=1).split(128)
    readers = [
        {int(s) for chunk in chunks for s in shard_of[part_of(chunk, part, num_readers)]}
        for part in range(num_readers)
    ]
    assert set.union(*readers) == set(range(100))
    assert sum(map(len, readers)) <= 100 + num_readers


def test_parts_of_parts_are_parts():
    for size in (5, 20, 33):
        chunk = torch.arange(size)
        for rank in range(2):
            half = part_of(chunk, rank, 2)
            whole = [part_of(chunk, 2 * rank + worker, 4).tolist() for worker in range(2)]
            assert half.tolist() == whole[0] + whole[1]
    chunk = torch.arange(64)
    nested = [part_of(part_of(chunk, at // 4, 2), at % 4, 4).tolist() for at in range(8)]
    assert nested == [part_of(chunk, at, 8).tolist() for at in range(8)]


def test_an_epoch_has_every_image_once_and_opens_every_shard_once(written, opened):
    data = load(written, augment="none")
    batches = make_batches(data, batch_size=8)
    assert len(batches) == 6
    expected = make_batches(data, shuffle=False)
    first = seen(batches.epoch(0))
    assert sorted(opened) == sorted(data.train.files.urls)
    assert first == seen(expected.epoch(0)) == seen(batches.epoch(1))
    assert len(set(first)) > 40


def test_orders_differ_by_epoch_and_seed_only(written):
    data = load(written)
    one, other = make_batches(data), make_batches(load(written))
    list(other.epoch(0))
    torch.manual_seed(99)
    assert_same(one.epoch(3), other.epoch(3))
    first = next(one.epoch(3))[0]
    for changed in (one.epoch(4), make_batches(data, seed=6).epoch(3)):
        assert not torch.equal(first, next(changed)[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(written, workers):
    data = load(written)
    for options in ({}, {"shuffle": False, "drop_last": False, "batch_size": 7}):
        expected = make_batches(data, **options)
        batches = make_batches(data, workers=workers, **options)
        assert_same(batches.epoch(1), expected.epoch(1))
        assert_same(batches.epoch(1, start=3), expected.epoch(1, start=3))


def test_two_processes_together_see_every_image_once(written):
    data = load(written, augment="none")
    order = data.train.order(seed=3, batch_size=8).split(8)
    halves = [[part_of(chunk, rank, 2) for chunk in order] for rank in range(2)]
    parts = [torch.cat([images for images, _ in data.train.read(half)]) for half in halves]
    assert [len(part) for part in parts] == [24, 24]
    everyone = torch.cat(parts).flatten(1).sum(1).sort().values
    assert torch.equal(everyone, everything(data.train).flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resuming_continues_exactly_and_skips_shards_that_are_done(written, opened, start):
    data = load(written)
    weights, _ = split_for_search(data.train, 0.75, seed=1)  # one lane for each of three shards
    for images, batch_size in ((data.train, 8), (weights, 2)):
        batches = make_batches(data, images, batch_size=batch_size)
        whole = list(batches.epoch(2))
        opened.clear()
        assert_same(batches.epoch(2, start), whole[start:])
        order = batches._plan._order(2)
        rest = data.train.files.shard_of[images.rows[order[start * batch_size :]]]
        assert len(opened) == len(torch.unique(rest))


def test_parts_of_a_search_are_disjoint_by_shard(written):
    data = load(written)
    weights, factors = split_for_search(data.train, 0.25, seed=7)
    shards = [set(data.train.files.shard_of[part.rows].tolist()) for part in (weights, factors)]
    assert shards[0].isdisjoint(shards[1])
    assert shards[0] | shards[1] == set(range(16))
    assert (len(weights), len(factors)) == (36, 12)
    again = split_for_search(load(written).train, 0.25, seed=7)
    assert torch.equal(again[1].rows, factors.rows)
    others = [split_for_search(data.train, 0.25, seed)[1].rows for seed in range(8, 12)]
    assert not all(torch.equal(rows, factors.rows) for rows in others)


def test_a_split_needs_two_shards(written):
    train = load(written).train
    train = train.subset(train.files.shard_of == 3)
    assert [len(part) for part in split_for_search(train, 0, seed=0)] == [3, 3]
    with pytest.raises(DataError, match="at least 2 shards, the set has 1"):
        split_for_search(train, 0.5, seed=0)


def test_subsets_are_stratified_and_read(written):
    data = load(written, max_train_images=9, max_test_images=3)
    assert torch.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert [len(labels) for _, labels in make_batches(data, batch_size=4).epoch(0)] == [4, 4]
    assert everything(data.test).shape == (3, 1, 8, 8)


def test_gather_follows_the_indices(written):
    train = load(written).train
    whole = everything(train)
    chosen = torch.tensor([40, 3, 41, 3, 0])
    assert torch.equal(train.gather(chosen), whole[chosen])
    assert train.gather(chosen[:0]).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_colour_is_as_for_folders(make_folder, tmp_path, color):
    write_shards(make_folder(count=10), tmp_path / "out")
    data = load(tmp_path / "out", color=color)
    plain = load_data(DataConfig(name=f"folder:{tmp_path}/images", image_size=8, color=color))
    assert data.input_channels == plain.input_channels == len(data.mean)
    one, other = everything(data.train), everything(plain.train)
    assert torch.equal(one.sum((1, 2, 3)).sort().values, other.sum((1, 2, 3)).sort().values)


def test_grey_images_are_refused_where_colour_is_demanded(written):
    with pytest.raises(DataError, match=r"grey but data.color is rgb \(60 such images"):
        load(written, color="rgb")


def damage_image(shard, number):
    """Overwrite the middle of an image; names and sizes stay."""
    with tarfile.open(shard) as tar:
        members = [member for member in tar if not member.name.endswith(".cls")]
        start, size = members[number].offset_data, members[number].size
    content = bytearray(shard.read_bytes())
    content[start : start + size] = bytes(size)
    shard.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_by_one_of_its_class(copied, caplog, workers):
    before = load(copied).train
    damage_image(copied / "train" / "000003.tar", 1)
    data = load(copied)
    with caplog.at_level(logging.WARNING):
        assert_same(make_batches(data, workers=workers).epoch(0), make_batches(data).epoch(0))
    assert "cannot read image number 1 of" in caplog.text
    assert "takes its place" in caplog.text
    position = 3 * PER_SHARD + 1
    same = torch.nonzero(before.labels == before.labels[position]).flatten()
    other = same[(same > position).nonzero()[0, 0]]
    assert torch.equal(data.train.gather(torch.tensor([position])), before.gather(other[None]))


def test_a_class_without_readable_images_ends_in_one_line(copied):
    train = load(copied).train
    for position in torch.nonzero(train.labels == 0).flatten().tolist():
        shard = copied / "train" / f"{position // PER_SHARD:06}.tar"
        damage_image(shard, position % PER_SHARD)
    with pytest.raises(DataError, match="nor any other image of its class"):
        everything(load(copied).train)


RGB = [[0.5] * 3, [0.2] * 3]
SHARD = {"file": "000000.tar", "num_bytes": 1, "labels": [0, 1]}


def change_index(root, **changes):
    path = root / "train" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_index(copied, tmp_path):
    (copied / "val" / "index.json").unlink()
    for place in (copied, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no index of shards at .*index.json.*`dsonas shards`"):
            load(place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not an index of shards"),
        ({"version": 2}, "this dsonas reads .*'version': 1}, got {'version': 2}"),
        ({"shards": []}, "must be at least one shard"),
        ({"shards": [{"file": "000000.tar"}]}, "key 'num_bytes' is missing"),
        ({"shards": 3}, "is not an index of shards"),
        ({"class_names": ["a", "b"]}, "must have labels from 0, below 2"),
        ({"class_names": ["a", "b", "c"]}, "different classes"),
        ({"short_side": None}, "is not an index of shards"),
        ({"num_grey": math.inf}, "is not an index of shards"),
        ({"statistics": {}}, "key 'grey' is missing"),
        ({"statistics": {"grey": [[0.5], [0]], "rgb": RGB}}, "deviations above 0, got .0.5,. and"),
        ({"statistics": {"grey": [[0.5], ["a"]], "rgb": RGB}}, "must be real number"),
        ({"statistics": {"grey": RGB, "rgb": RGB}}, "grey must be 1 means and 1 deviations"),
        ({"shards": [SHARD, SHARD]}, "none twice"),
        ({"shards": [SHARD | {"labels": [0.5]}]}, "labels in whole numbers"),
        ({"shards": [SHARD | {"num_bytes": "1"}]}, "labels in whole numbers"),
    ],
)
def test_wrong_index(copied, changes, message):
    change_index(copied, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_name_files_elsewhere(copied):
    for name in ("../../secret.tar", "a; touch hacked", "/etc/passwd", "-rf"):
        change_index(copied, shards=[{"file": name, "num_bytes": 1, "labels": [0, 1]}])
        with pytest.raises(DataError, match="must be a name of letters"):
            load(copied)


@pytest.mark.parametrize("content", [b"\xff{", b"[" * 100_000])
def test_index_that_is_no_json(copied, content):
    (copied / "train" / "index.json").write_bytes(content)
    with pytest.raises(DataError, match="is not an index of shards"):
        load(copied)


def test_other_images_of_the_same_labels_are_other_data(folder, written, copied, tmp_path):
    write_shards(folder, tmp_path / "smaller", images_per_shard=PER_SHARD, size=5)
    one, other = load(written), load(tmp_path / "smaller")
    assert torch.equal(one.train.labels, other.train.labels)
    assert load(copied).identity == one.identity != other.identity


def test_the_index_of_a_part_is_written_out_once(written, monkeypatch):
    original, told = ShardIndex.__repr__, []
    monkeypatch.setattr(ShardIndex, "__repr__", lambda self: told.append(1) or original(self))
    data = load(written, val=0.3)
    assert data.val is not None
    assert data.identity == data.identity
    assert data.shards == load(written).shards
    assert len(told) == 4  # training and test shards of both


def test_missing_and_truncated_shards_are_found_before_training(copied):
    shard = copied / "train" / "000002.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    expected = rf"000002.tar .* has {len(content) - 512} bytes where its index says {len(content)}"
    with pytest.raises(DataError, match=expected):
        load(copied)
    shard.unlink()
    with pytest.raises(DataError, match=r"000002.tar is missing or truncated, it has 0 bytes"):
        load(copied)


@pytest.mark.parametrize("tenths", range(10))
def test_a_shard_truncated_meanwhile_ends_in_one_line(copied, tenths):
    data, shard = load(copied), copied / "train" / "000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * tenths // 10])
    with pytest.raises(DataError, match=r"000002.tar is missing or truncated.* copy it") as caught:
        list(make_batches(data).epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", range(2 * PER_SHARD))
def test_a_damaged_shard_is_named_in_one_line(copied, number):
    data, shard = load(copied), copied / "train" / "000002.tar"
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[number].offset
    content = shard.read_bytes()
    shard.write_bytes(content[:header] + bytes(512) + content[header + 512 :])
    with pytest.raises(DataError, match=r"000002.tar does not hold what its index") as caught:
        list(make_batches(data).epoch(0))
    assert "\n" not in str(caught.value)


def test_shards_of_another_set_are_refused(copied):
    one, other = (copied / "train" / f"{number:06}.tar" for number in (0, 1))
    labels = [shard.labels for shard in load(copied).train.files.index.shards]
    assert labels[0] != labels[1]
    if one.stat().st_size == other.stat().st_size:
        shutil.copy(one, other)
    with pytest.raises(DataError, match=r"000001.tar .*its index says"):
        list(make_batches(load(copied)).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_lost_meanwhile_ends_in_one_line(copied, workers):
    data = load(copied)
    (copied / "train" / "000002.tar").unlink()
    with pytest.raises(DataError) as caught:
        list(make_batches(data, workers=workers).epoch(0))
    message = f"shard {copied}/train/000002.tar is missing"
    assert str(caught.value).startswith(message)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def served(written):
    """The address of a web server of the shards."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(written)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_url_is_read_like_a_folder(served, written):
    batches = make_batches(load(served), workers=2)
    assert_same(batches.epoch(0), make_batches(load(written)).epoch(0))
    with pytest.raises(DataError, match=r"no index of shards at .*elsewhere/train/index.json"):
        load(f"{served}/elsewhere")
    cached = load(f"simplecache::{served}", max_train_images=10)
    assert len(everything(cached.train)) == 10


def test_what_a_store_says_comes_in_one_line(served, monkeypatch):
    with pytest.raises(DataError, match=r"cannot be read .*check its place") as caught:
        load(served.replace("127.0.0.1", "127.0.0.1:x"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="Protocol not known: nothing"):
        load("nothing://bucket/set")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r'Install s3fs .*pip install "dsonas\[stream\]"'):
        load("s3://bucket/set")


def test_only_a_new_folder_is_written_to(folder, written):
    with pytest.raises(DataError, match="is not empty"):
        write_shards(folder, written)


def test_the_share_of_the_writer_is_checked(tmp_path):
    with pytest.raises(ValueError, match="test_fraction must be"):
        write_shards(tmp_path, tmp_path / "out", test_fraction=1.0)


def test_places_are_kept_as_they_are():
    with pytest.raises(ValueError, match="shards with a path"):
        DataConfig(name="shards:")
    assert DataConfig(name="shards:https://host//a").location == "https://host//a"
    assert DataConfig(name="shards:simplecache::gs://b/c").location == "simplecache::gs://b/c"
    assert DataConfig(name="shards:gs://b/c").source == "shards"
