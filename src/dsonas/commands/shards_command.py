"""What ``dsonas shards`` does, from its arguments to its exit code."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress

from dsonas.commands.configuring import OptionParser, parse
from dsonas.data import write_shards
from dsonas.run import StopSignal

DESCRIPTION = (
    "Write an image folder as shards, to be streamed from a disk or an object store: OUT/train\n"
    "and OUT/val, each some tar files and an index.json. Files that are no readable images are\n"
    "left out. Use them by --data.name shards:OUT, or shards:URL after copying."
)


def shards(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write shards."""
    parser = OptionParser(command, "FOLDER OUT [OPTIONS]", DESCRIPTION)
    parser.add_function_arguments(
        write_shards, as_group=False, as_positional=True, skip={"progress"}
    )
    options = parse(parser, arguments).as_dict()
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {part: bar.add_task(part, total=None) for part in ("val", "train")}
        written = write_shards(
            **options, progress=lambda part, n, of: bar.update(tasks[part], completed=n, total=of)
        )
    for part, index in written.items():
        num_images = sum(len(shard.labels) for shard in index.shards)
        size = sum(shard.num_bytes for shard in index.shards) / 1e6
        print(
            f"{part:<6} {num_images} images in {len(index.shards)} shards, {size:.1f} MB, "
            f"{len(index.skipped)} files skipped"
        )
    print(f"use them by --data.name shards:{options['out']}")
    return 0
