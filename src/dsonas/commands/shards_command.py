"""What ``dsonas shards`` does, from its arguments to its exit code."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dsonas.commands.configuring import OptionParser, parse
from dsonas.data import ShardConfig, write_shards
from dsonas.run import StopSignal

DESCRIPTION = (
    "Write an image folder as webdataset shards, to be streamed from a disk or an object store:\n"
    "OUT/train and OUT/val, each some tar files and an index.json. Files that are no readable\n"
    "images are left out. Use them by --data.name shards:OUT, or shards:URL after copying."
)


def shards(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write shards."""
    parser = OptionParser(command, "FOLDER OUT [OPTIONS]", DESCRIPTION)
    add, defaults = parser.add_argument, ShardConfig()
    text = "one folder per class, or train/ and val/ (or test/) with such folders inside"
    add("FOLDER", type=str, help=text)
    add("OUT", type=str, help="a new folder")
    text = "at most so many images in a file (default 1000, fewer in small sets)"
    add("--images_per_shard", type=int, default=None, metavar="N", help=text)
    text = "shrink larger images to this shorter side; JPEG stays JPEG (default: copy the files)"
    add("--size", type=int, default=None, metavar="PIXELS", help=text)
    text = f"share held out where there is no test part (default {defaults.test_fraction})"
    add("--test_fraction", type=float, default=defaults.test_fraction, metavar="X", help=text)
    text = f"decoding threads (default {defaults.workers})"
    add("--workers", type=int, default=defaults.workers, metavar="N", help=text)
    values = parse(parser, arguments)
    names = ("images_per_shard", "size", "test_fraction", "workers")
    config = ShardConfig(**{name: values[name] for name in names})
    _write(Path(values.FOLDER), Path(values.OUT), config)
    return 0


def _write(folder: Path, out: Path, config: ShardConfig) -> None:
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {part: bar.add_task(part, total=None) for part in ("val", "train")}
        written = write_shards(
            folder, out, config, lambda part, n, of: bar.update(tasks[part], completed=n, total=of)
        )
    for part, index in written.items():
        size = sum(shard.num_bytes for shard in index.shards) / 1e6
        print(
            f"{part:<6} {index.num_images} images in {len(index.shards)} shards, {size:.1f} MB, "
            f"{len(index.skipped)} files skipped"
        )
    print(f"use them by --data.name shards:{out}")
