"""``dsonas check`` and ``shards``: what a folder of images holds, and the same as shards."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace

from rich.console import Console
from rich.progress import Progress

from dsonas.commands.configuring import OptionParser, UsageError, add_groups, parse, to_config
from dsonas.commands.size_options import blank_data
from dsonas.data import DataConfig, FolderCheck, check_folder, write_shards
from dsonas.run import RunConfig, StopSignal
from dsonas.train import STAGES

MOST_SHOWN = 20  # of each list, as text; --json has all


def check(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Check a folder of images."""
    parser = OptionParser(
        command, "FOLDER [--json] [OPTIONS]",
        "Look at a folder of images as a run would, without training: what its folders mean, "
        "images of each class and part, their sizes, what is left out, what cannot be read and "
        "why, exact copies, and the settings that suit it. Every image is decoded once.",
    )  # fmt: skip
    parser.add_argument("FOLDER", type=str, help="as in --data.name folder:FOLDER")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_groups(parser, ("data",), ("data",))
    values = parse(parser, arguments)
    name = f"folder:{values.FOLDER.removeprefix('folder:')}"
    if values.data.name not in (DataConfig.name, name):
        raise UsageError(
            f"data.name must be left out, as FOLDER says where the images are, got "
            f"{values.data.name!r} and {values.FOLDER!r}"
        )
    values.data.name = name
    config = to_config(values)
    found = check_folder(config.data)
    given = {
        f"data.{key}": str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in asdict(config.data).items() if value != getattr(DataConfig, key)
    }  # fmt: skip
    options = {**given, "data.name": name, **found.proposed, **_batches(config, found)}
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    proposed = shlex.join(["dsonas", "run", *words])
    if values.json:
        print(json.dumps({**found.to_json(), "proposed": options, "command": proposed}))
    else:
        print("\n".join([*_lines(found), f"proposed    {proposed}"]))
    return 0


def _batches(config: RunConfig, found: FolderCheck) -> dict[str, str]:
    """Batch sizes as a run would lower them."""
    train, test = (sum(found.counts[part].values()) for part in ("train", "test"))
    counted = replace(config.data, val=None)  # has been taken out of the training images already
    data = blank_data(counted, train, test, len(found.class_names), int(found.image_size))
    fitting, _ = config.with_fitting_batches(data)
    sizes = {name: getattr(fitting, name).batch_size for name in STAGES}
    return {
        f"{name}.batch_size": str(size) for name, size in sizes.items()
        if size != getattr(config, name).batch_size
    }  # fmt: skip


def _lines(found: FolderCheck) -> list[str]:
    """The check as text."""
    parts = [part for part, counts in found.counts.items() if counts]
    width = max(len("class"), *(len(name) for name in found.class_names))
    lines = [f"layout      {found.layout}", f"images      {found.describe_images()}"]
    lines.append(f"{'class':<{width}}  " + "  ".join(f"{part:>8}" for part in parts))
    for name in found.class_names[:MOST_SHOWN]:
        row = "  ".join(f"{found.counts[part].get(name, 0):>8}" for part in parts)
        lines.append(f"{name:<{width}}  {row}")
    if (more := len(found.class_names) - MOST_SHOWN) > 0:
        lines.append(f"and {more} more classes: --json has all")
    for title in ("unreadable", "ignored", "copies"):
        names: dict[str, str] = getattr(found, title)
        lines.append(f"{title:<12}{len(names)}" + ":" * bool(names))
        lines += [f"  {name}: {reason}" for name, reason in list(names.items())[:MOST_SHOWN]]
        if len(names) > MOST_SHOWN:
            lines.append(f"  and {len(names) - MOST_SHOWN} more: --json has all")
    return lines + [f"note        {note}" for note in found.notes]


def shards(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Write shards."""
    parser = OptionParser(
        command, "FOLDER OUT [OPTIONS]",
        "Write an image folder as shards, to be streamed from a disk or an object store: OUT/train "
        "and OUT/val, each some tar files and an index.json. Files that are no readable images are "
        "left out. Use them by --data.name shards:OUT, or shards:URL after copying.",
    )  # fmt: skip
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
