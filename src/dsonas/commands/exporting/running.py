"""``dsonas export``: write a finished run, read back, compare on images of the run, time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from dsonas._utils import write_atomically
from dsonas.commands.configuring import OptionParser, parse, stored_config
from dsonas.commands.exporting.formats import FORMATS, Deployment, Format
from dsonas.commands.exporting.layers import ExportError, fuse_bn
from dsonas.cost import architecture_cost
from dsonas.data import Batches, DataConfig
from dsonas.nn import Network
from dsonas.run import FinishedNetwork, RunFolder, StopSignal, test_data

DESCRIPTION = """\
Write the network of a finished run under DIR/export, for use without dsonas. Each file is
read back and compared with the run on its test images, or on random ones where those are
out of reach. Class names and preprocessing travel with every format; pixels.py beside
them reads image files as the run did.

  onnx     network.onnx: for onnxruntime and many others; any batch size
  pt2      network.pt2: a torch.export program; any batch size
  python   network.py, network.json, network.pt: source for torch alone, plan, weights"""
TOLERANCE = 1e-4  # of outputs, as a part of the largest
TIMED_SECONDS = 0.2  # at least, for each latency
NUM_RANDOM = 64
BATCH_SIZE = 128
_OF_ALL = ("images", "num_images", "pytorch_latency_ms", "threads", "folded")  # not of one file


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A format written and checked."""

    format: str  # one of ``FORMATS``
    paths: tuple[Path, ...]  # the files, the main one first
    size_bytes: int  # of all of them
    max_difference: float  # largest absolute difference of a logit to that of the run's network
    same_predictions: int  # images with the same class
    num_images: int  # images compared
    images: str  # which they were
    latency_ms: float  # median for one image, read back from the file
    pytorch_latency_ms: float  # the same for the run's network in PyTorch
    threads: int  # CPU threads of both
    folded: bool  # whether BNs were folded into convolutions


def export(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Export a finished run."""
    parser = OptionParser(command, "DIR [--format NAME[,NAME...]] [OPTIONS]", DESCRIPTION)
    add = parser.add_argument
    add("DIR", type=str, help="the folder of a finished run")
    add("--format", type=str, action="append", metavar="NAME",
        help="onnx, pt2 or python; several with commas, or repeated (default all)")  # fmt: skip
    add("--fold", action="store_true", help="fold batch normalisation into convolutions")
    text = "CPU threads of the latency (default 1)"
    add("--threads", type=int, default=1, metavar="N", help=text)
    add("--json", action="store_true", help="print one JSON object alone")
    values = parse(parser, arguments)
    names = values.format and [one.strip() for text in values.format for one in text.split(",")]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for CUDA
    results = export_run(values.DIR, names, values.fold, threads=values.threads)
    if values.json:
        made = [asdict(result) for result in results]
        own = [{name: one[name] for name in one if name not in _OF_ALL} for one in made]
        print(json.dumps({name: made[0][name] for name in _OF_ALL} | {"exports": own}, default=str))
    else:
        print(_table(results))
    return 0


def _table(results: list[ExportResult]) -> str:
    first = results[0]
    # of the files of a format the first with its folder, the others by name
    names = [", ".join([str(r.paths[0]), *(path.name for path in r.paths[1:])]) for r in results]
    width = max(len("PyTorch, eager"), *map(len, names))
    lines = [
        f"{'file':<{width}}     size  max difference  same class    latency",
        f"{'PyTorch, eager':<{width}}{'':39}{first.pytorch_latency_ms:8.3f} ms",
    ]
    for name, result in zip(names, results, strict=True):
        same = f"{result.same_predictions}/{result.num_images}"
        lines.append(
            f"{name:<{width}}{result.size_bytes / 1000:6.0f} kB  {result.max_difference:14.1e}  "
            f"{same:>10} {result.latency_ms:8.3f} ms"
        )
    folded = "batch normalisation folded; " if first.folded else ""
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    lines.append(f"{folded}compared on {first.images}; latency: one image, {threads}, median")
    return "\n".join(lines)


def export_run(
    folder: str | Path,
    formats: Iterable[str] | None = None,
    fold: bool = False,
    *,
    threads: int = 1,
    num_images: int = 1000,
) -> list[ExportResult]:
    """Write the network of a finished run under ``folder/export`` and check every file.

    Each file is read back and given the run's test images, or random ones where its data set is
    out of reach. ``pixels.py`` beside them reads image files as the run did.

    Args:
        folder: of the run.
        formats: ``onnx``, ``pt2`` (a ``torch.export`` program) and ``python`` (source and weights).
            None: all that can hold the network.
        fold: fold BNs into the convolutions before them.
        threads: CPU threads for measuring latency, >= 1.
        num_images: test images to compare at most, >= 1.

    Returns:
        A result for each format, in the order of ``FORMATS``.

    Raises:
        ExportError: if a format is unknown, lacks its packages or cannot hold the network, or if a
            file gives other outputs than the run's network; such a file is deleted.
        RunError: if the folder holds no finished network.
        OSError: if a file cannot be written.

    Example:
        >>> export_run("no_such_run")
        Traceback (most recent call last):
        ...
        dsonas.run.network_files.RunError: no_such_run holds no finished network ...
    """
    chosen = _chosen_formats(list(FORMATS if formats is None else formats))
    for name, value in (("threads", threads), ("num_images", num_images)):
        if value < 1:
            raise ExportError(f"{name} must be at least 1, got {value}")
    run = RunFolder(folder)
    finished = run.load_network()
    metrics, network = run.metrics or {}, finished.network
    if isinstance(network, Network):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        macs = architecture_cost(network.architecture).macs
    else:
        chosen = _for_own_module(chosen, formats is None, fold)
        macs = metrics.get("macs", 0)
    data, seed = _stored(run)
    deployment = Deployment(
        network=fuse_bn(network) if fold else network,
        preprocessing=finished.preprocessing,
        shape=finished.shape,
        macs=macs,
        folded=fold,
        data=_called(data) if data else "unknown data",
        test_error=metrics.get("test_error"),
        seed=seed,
    )
    batches, images = _check_images(run, finished, data, seed or 0, num_images)
    expected, milliseconds = _outputs(network, batches), _latency(network, batches[0], threads)
    results = []
    for format in chosen:
        paths = _write(format, deployment, run.path / "export")
        call = format.open(paths[0], threads)
        outputs = _outputs(call, batches)
        difference = float((outputs - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # nor is NaN
            for path in paths:
                path.unlink()
            raise ExportError(
                f"{paths[0]} gave outputs that differ by {difference:.2g} from those of the run, "
                f"and was deleted; {allowed:.2g} is allowed: choose another --format, or leave out "
                "--fold"
            )
        pixels = (files("dsonas.data") / "pixels.py").read_bytes()
        write_atomically(run.path / "export" / "pixels.py", pixels)
        found = ExportResult(
            format=format.name,
            paths=tuple(paths),
            size_bytes=sum(path.stat().st_size for path in paths),
            max_difference=difference,
            same_predictions=int((outputs.argmax(1) == expected.argmax(1)).sum()),
            num_images=len(expected),
            images=images,
            latency_ms=_latency(call, batches[0], threads),
            pytorch_latency_ms=milliseconds,
            threads=threads,
            folded=fold,
        )
        results.append(found)
    return results


def _chosen_formats(names: list[str]) -> list[Format]:
    unknown = [repr(name) for name in names if name not in FORMATS]
    if unknown or not names:
        got = (unknown or ["none"])[0]
        raise ExportError(f"--format must be one of {', '.join(FORMATS)}, got {got}")
    for name in names:
        FORMATS[name].require()
    return [format for name, format in FORMATS.items() if name in names]


def _for_own_module(formats: list[Format], all_asked: bool, fold: bool) -> list[Format]:
    """The formats that a module of the user's is written in; refuses what it cannot be."""
    unable = [format.name for format in formats if format.only_ours]
    if unable and not all_asked:
        raise ExportError(
            f"format {unable[0]} holds our own blocks alone, and this is a network of your own: "
            "choose --format onnx,pt2, which need neither dsonas nor your source"
        )
    if fold:
        raise ExportError(
            "--fold knows our own blocks alone, and this is a network of your own: leave it out, "
            "onnxruntime folds when it loads"
        )
    return [format for format in formats if not format.only_ours]


def _stored(run: RunFolder) -> tuple[DataConfig | None, int | None]:
    """Data set and seed of a run, if its ``config.yaml`` can be read."""
    with suppress(OSError, ValueError):
        config, _ = stored_config(run.path)
        return config.data, config.seed
    return None, None


def _called(config: DataConfig) -> str:
    """The name of a data set; of a folder its own name alone."""
    root = config.root
    return f"folder {root.resolve().name}" if config.source == "folder" and root else config.source


def _check_images(
    run: RunFolder,
    finished: FinishedNetwork,
    config: DataConfig | None,
    seed: int,
    num_images: int,
) -> tuple[Sequence[Tensor], str]:
    """Test images of the run, as many of each class, in batches, and what they are; or random."""
    try:
        if config is None:
            raise ValueError("config.yaml names no data set")
        data = test_data(run, finished, config, seed)
        chosen = data.test.sample(num_images, seed=0)
        whole = Batches(chosen, data, batch_size=BATCH_SIZE, augmentation=None, shuffle=False,
                        drop_last=False, seed=0).epoch(0)  # fmt: skip
        batches = [images for images, _ in whole]
        description = f"{len(chosen)} test images of {_called(config)}"
    except (ValueError, OSError) as error:
        size, channels, _ = finished.shape
        generator = torch.Generator().manual_seed(0)
        batches = [torch.randn(NUM_RANDOM, channels, size, size, generator=generator)]
        reason = " ".join(str(error).split()).split(": ")[0]
        description = f"{NUM_RANDOM} random images ({reason})"
    # the first image by itself: a file must not depend on the size of the batch
    first, *others = batches
    return [*first.tensor_split([1]), *others] if len(first) > 1 else batches, description


@torch.inference_mode()
def _outputs(call: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([call(images) for images in batches])


def _latency(call: Callable[[Tensor], Tensor], image: Tensor, threads: int) -> float:
    """Milliseconds for one image."""
    from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

    timer = Timer("call(image)", globals={"call": call, "image": image}, num_threads=threads)
    with torch.inference_mode():
        return 1e3 * timer.blocked_autorange(min_run_time=TIMED_SECONDS).median


def _write(format: Format, deployment: Deployment, target: Path) -> list[Path]:
    try:
        return format.write(deployment, target)
    except (ExportError, OSError):
        raise
    except Exception as error:  # an exporter meets code of the user's that it cannot follow
        cause = error.__cause__ or error  # the ONNX exporter wraps what it meets in advice
        reason = " ".join(str(cause).split())[:200]
        raise ExportError(
            f"format {format.name} cannot hold this network ({type(cause).__name__}: {reason}): "
            "choose another --format, or write its forward so that torch.export can follow it"
        ) from error
