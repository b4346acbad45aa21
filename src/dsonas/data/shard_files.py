"""Reading webdataset shards, local or from an object store, each from front to back and once."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from subprocess import TimeoutExpired
from tarfile import TarError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data_config import PIPE, PLACEHOLDER, DataError
from .shard_index import INDEX_NAME, ShardIndex

MOST_OPEN = 96  # shards at a time: below the limit of open files, or of connections
Samples = Generator[tuple[int, bytes], None, None]
CONSENT = "DSONAS_ALLOW_PIPE"
_LABEL = "cls"
_PATIENCE = 1.0  # seconds that a command gets to end after its output has


class MissingIndexError(DataError):
    """There are no shards where they were looked for."""


class ShardFiles:
    """The shards of one part of a data set.

    Args:
        root: folder, URL, or ``pipe:COMMAND`` with ``{}`` where a file's path belongs.
        part: the folder in it, such as ``train``.

    Raises:
        MissingIndexError: if there is no index.
        DataError: if it is wrong, or if a local shard is missing or truncated.
    """

    def __init__(self, root: str, part: str) -> None:
        place = join(root, f"{part}/{INDEX_NAME}")
        self.index = ShardIndex.from_json(_read(place), place)
        self.urls = tuple(join(root, f"{part}/{shard.file}") for shard in self.index.shards)
        if not is_remote(root):
            self._check_sizes()
        counts = torch.tensor([len(shard.labels) for shard in self.index.shards])
        self.labels = torch.tensor([at for shard in self.index.shards for at in shard.labels])
        self.shard_of = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self._first = (counts.cumsum(0) - counts).tolist()

    def _check_sizes(self) -> None:
        for url, shard in zip(self.urls, self.index.shards, strict=True):
            if not Path(url).is_file():
                raise DataError(f"shard {url} is missing: copy it again, its index names it")
            if (size := Path(url).stat().st_size) != shard.num_bytes:
                raise DataError(
                    f"shard {url} has {size} bytes, its index says {shard.num_bytes}: it is "
                    "truncated or of another set, copy it again"
                )

    def name(self, position: int) -> str:
        """What to call an image."""
        shard = int(self.shard_of[position])
        return f"image {position - self._first[shard]} of {self.urls[shard]}"

    def contents(self, positions: Tensor) -> Generator[bytes, None, None]:
        """The encoded images at some positions, in the order asked for.

        A shard is opened when its first image is asked for, read from front to back, and closed
        after its last. What lies in front of the image asked for is kept if it is asked for later.
        Memory is therefore bounded by how far the order departs from that of the files.

        Args:
            positions: int64 tensor of positions in the part.

        Raises:
            DataError: if a shard cannot be read or does not hold what the index says.
        """
        left = np.bincount(positions.numpy(), minlength=len(self.labels))
        shards = self.shard_of[positions]
        unread = np.bincount(shards.numpy(), minlength=len(self.urls))
        held: dict[int, bytes] = {}
        opened: dict[int, Samples] = {}

        def hold(samples: Iterable[tuple[int, bytes]]) -> None:
            held.update((found, content) for found, content in samples if left[found])

        try:
            for position, shard in zip(positions.tolist(), shards.tolist(), strict=True):
                while position not in held:
                    if shard not in opened:
                        if len(opened) == MOST_OPEN:
                            hold(opened.pop(next(iter(opened))))  # all the rest of the oldest
                        opened[shard] = self._samples(shard)
                    hold([next(opened[shard])])
                left[position] -= 1
                unread[shard] -= 1
                yield held[position] if left[position] else held.pop(position)
                if not unread[shard] and shard in opened:
                    opened.pop(shard).close()
        finally:
            for samples in opened.values():
                samples.close()

    def _samples(self, shard: int) -> Samples:
        """Positions and encoded images of one shard."""
        url, first = self.urls[shard], self._first[shard]
        labels, found = self.index.shards[shard].labels, 0
        for label, content in _read_tar(url):
            if found == len(labels) or label != labels[found]:
                raise DataError(
                    f"shard {url} does not belong to its index, image {found} differs: copy it, or "
                    "write the shards again"
                )
            yield first + found, content
            found += 1
        if found < len(labels):
            raise DataError(
                f"shard {url} ends after {found} of the {len(labels)} images of its index: it is "
                "truncated, copy it again"
            )


def is_remote(root: str) -> bool:
    """Whether a place is a URL or a pipe rather than a local folder.

    Example:
        >>> is_remote("https://example.org/shards"), is_remote("my/shards")
        (True, False)
    """
    return root.startswith(PIPE) or "://" in root


def join(root: str, path: str) -> str:
    """The place of a file.

    Example:
        >>> join("my", "val/index.json"), join("gs://bucket/set/", "val/000000.tar")
        ('my/val/index.json', 'gs://bucket/set/val/000000.tar')
        >>> join("pipe:aws s3 cp s3://bucket/set/{} -", "val/000000.tar")
        'pipe:aws s3 cp s3://bucket/set/val/000000.tar -'
    """
    if root.startswith(PIPE):
        return root.replace(PLACEHOLDER, path)
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else str(Path(root) / path)


def webdataset(module: str) -> Any:
    """A module of webdataset, imported when needed.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return import_module(f"webdataset.{module}")
    except ImportError:
        raise DataError(
            'shards need webdataset, which is not installed: pip install "dsonas[stream]"'
        ) from None


def _read(url: str) -> bytes:
    try:
        with _open(url) as stream:
            return stream.read()
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise MissingIndexError(
            f"no index of shards at {url} ({_reason(error)}): give the folder or URL that "
            "`dsonas shards` wrote, with train/ and val/ in it"
        ) from error


def _open(url: str) -> Any:
    if not is_remote(url):
        return open(url, "rb")
    if url.startswith(PIPE) and os.environ.get(CONSENT) != "1":
        raise DataError(
            f"{url} runs a shell command, which a configuration alone may not do: "
            f"set the environment variable {CONSENT}=1 if you trust it"
        )
    return webdataset("gopen").gopen(url)


def _read_tar(url: str) -> Iterator[tuple[int, bytes]]:
    """Labels and encoded images of a shard."""
    tar = webdataset("tariterators")
    stream = None
    try:
        stream = _open(url)
        for sample in tar.group_by_keys(tar.tar_file_expander([{"url": url, "stream": stream}])):
            yield _label_and_image(sample)
    except DataError:
        raise
    except (OSError, TarError, EOFError, ValueError, KeyError) as error:
        reason = _exit_status(stream) or _reason(error)
        raise DataError(
            f"shard {url} cannot be read ({reason}): copy it again, or check its place"
        ) from error
    finally:
        if stream is not None:
            _close(stream)


def _label_and_image(sample: dict[str, Any]) -> tuple[int, bytes]:
    images = [value for key, value in sample.items() if key[0] != "_" and key != _LABEL]
    if len(images) != 1 or _LABEL not in sample:
        raise ValueError(f"sample {sample['__key__']} must have one image and one label")
    return int(sample[_LABEL]), images[0]


def _close(stream: Any) -> None:
    """Close a stream of which the rest may be unread: its command must not complain then."""
    if hasattr(stream, "ignore_errors"):
        stream.ignore_errors = True
    stream.close()


def _exit_status(stream: Any) -> str | None:
    """How the command behind a stream has failed, if it has."""
    if not hasattr(stream, "proc"):
        return None
    try:
        status = stream.proc.wait(_PATIENCE)
    except TimeoutExpired:
        return None
    return f"its command ended with exit {status}" if status else None


def _reason(error: BaseException) -> str:
    """What went wrong, without what webdataset adds for programmers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.args[0] if error.args else error)
    if found := re.search(r": (exit -?\d+) \(read\)", text):
        return f"its command ended with {found[1]}"
    return text.split(" @ ")[0] or type(error).__name__
