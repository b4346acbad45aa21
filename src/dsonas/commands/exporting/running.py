"""Export a finished run: write, read back, compare on images of the run, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from dsonas._utils import write_atomically
from dsonas.commands.exporting.formats import FORMATS, Call, Deployment, Format
from dsonas.commands.exporting.layers import ExportError, fuse_bn
from dsonas.cost import architecture_cost
from dsonas.data import Batches, DataConfig
from dsonas.nn import Network
from dsonas.run import RunFolder, Shape, test_data, upgraded

TOLERANCE = 1e-4  # of outputs, as a part of the largest
TIMED_SECONDS = 0.2  # at least, for each latency
NUM_RANDOM = 64
BATCH_SIZE = 128


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
    network, preprocessing, shape = run.load_network()
    if isinstance(network, Network):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        macs = architecture_cost(network.architecture).macs
    else:
        chosen = _for_own_module(chosen, formats is None, fold)
        macs = (run.metrics or {}).get("macs", 0)
    data, seed = _stored(run)
    deployment = Deployment(
        network=fuse_bn(network) if fold else network,
        preprocessing=preprocessing,
        shape=shape,
        macs=macs,
        folded=fold,
        data=_called(data) if data else "unknown data",
        test_error=(run.metrics or {}).get("test_error"),
        seed=seed,
    )
    batches, description = _check_images(run, data, seed or 0, shape, num_images)
    comparison = _Comparison(network, batches, description, threads)
    return [_export(format, deployment, run.path / "export", comparison) for format in chosen]


def _chosen_formats(names: list[str]) -> list[Format]:
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        shown = repr(unknown[0]) if unknown else "none"
        raise ExportError(f"format must be one or more of {', '.join(FORMATS)}, got {shown}")
    for name in names:
        FORMATS[name].require()
    return [format for name, format in FORMATS.items() if name in names]


def _for_own_module(formats: list[Format], all_asked: bool, fold: bool) -> list[Format]:
    """The formats that a module of the user's is written in; refuses what it cannot be."""
    able = [format for format in formats if not format.only_ours]
    if len(able) < len(formats) and not all_asked:
        name = next(format.name for format in formats if format.only_ours)
        raise ExportError(
            f"format {name} holds our own blocks alone, and this is a network of your own: choose "
            "--format onnx,pt2, which need neither dsonas nor your source"
        )
    if fold:
        raise ExportError(
            "--fold knows our own blocks alone, and this is a network of your own: leave it out, "
            "onnxruntime folds when it loads"
        )
    return able


def _stored(run: RunFolder) -> tuple[DataConfig | None, int | None]:
    """Data set and seed of a run, as far as its ``config.yaml`` can be read."""
    data = seed = None
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        text = (run.path / "config.yaml").read_text(encoding="utf-8")
        settings = upgraded(yaml.safe_load(text))
        seed = settings.get("seed")
        data = DataConfig(**settings["data"])
    return data, seed if isinstance(seed, int) else None


def _called(config: DataConfig) -> str:
    """The name of a data set; of a folder its own name alone."""
    root = config.root
    return f"folder {root.resolve().name}" if config.source == "folder" and root else config.source


def _check_images(
    run: RunFolder, config: DataConfig | None, seed: int, shape: Shape, num_images: int
) -> tuple[Sequence[Tensor], str]:
    """Test images of the run, as many of each class, in batches, and what they are; or random."""
    try:
        if config is None:
            raise ValueError("config.yaml names no data set")
        data = test_data(run, config, seed)
        chosen = data.test.sample(num_images, seed=0)
        whole = Batches(chosen, data, batch_size=BATCH_SIZE, augmentation=None, shuffle=False,
                        drop_last=False, seed=0).epoch(0)  # fmt: skip
        batches = [images for images, _ in whole]
        description = f"{len(chosen)} test images of {_called(config)}"
    except (ValueError, OSError) as error:
        size = (NUM_RANDOM, shape.input_channels, shape.image_size, shape.image_size)
        batches = [torch.randn(size, generator=torch.Generator().manual_seed(0))]
        reason = " ".join(str(error).split()).split(": ")[0]
        description = f"{NUM_RANDOM} random images ({reason})"
    # the first image by itself: a file must not depend on the size of the batch
    first, *others = batches
    return [*first.tensor_split([1]), *others] if len(first) > 1 else batches, description


class _Comparison:
    """The outputs and the latency to which every file is held."""

    def __init__(
        self, network: nn.Module, batches: Sequence[Tensor], images: str, threads: int
    ) -> None:
        self.batches, self.images, self.threads = batches, images, threads
        self.expected = self._outputs(network)
        self.latency_ms = self.time(network)

    def time(self, call: Call) -> float:
        """Milliseconds for one image."""
        from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

        names = {"call": call, "image": self.batches[0]}
        timer = Timer("call(image)", globals=names, num_threads=self.threads)
        with torch.inference_mode():
            return 1e3 * timer.blocked_autorange(min_run_time=TIMED_SECONDS).median

    def difference(self, call: Call) -> tuple[float, int]:
        """The largest difference of a logit, and the number of images with the same class."""
        found = self._outputs(call)
        same = int((found.argmax(1) == self.expected.argmax(1)).sum())
        return float((found - self.expected).abs().max()), same

    @torch.inference_mode()
    def _outputs(self, call: Call) -> Tensor:
        return torch.cat([call(images) for images in self.batches])


def _export(
    format: Format, deployment: Deployment, target: Path, comparison: _Comparison
) -> ExportResult:
    try:
        paths = format.write(deployment, target)
    except (ExportError, OSError):
        raise
    except Exception as error:  # an exporter meets code of the user's that it cannot follow
        cause = error.__cause__ or error  # the ONNX exporter wraps what it meets in advice
        reason = " ".join(str(cause).split())[:200]
        raise ExportError(
            f"format {format.name} cannot hold this network ({type(cause).__name__}: {reason}): "
            "choose another --format, or write its forward so that torch.export can follow it"
        ) from error
    call = format.open(paths[0], comparison.threads)
    difference, same = comparison.difference(call)
    allowed = TOLERANCE * max(1.0, float(comparison.expected.abs().max()))
    if not difference <= allowed:  # nor is NaN
        for path in paths:
            path.unlink()
        raise ExportError(
            f"{paths[0]} gave outputs that differ by {difference:.2g} from those of the run, and "
            f"was deleted; {allowed:.2g} is allowed: choose another --format, or leave out --fold"
        )
    write_atomically(target / "pixels.py", (files("dsonas.data") / "pixels.py").read_bytes())
    return ExportResult(
        format=format.name,
        paths=tuple(paths),
        size_bytes=sum(path.stat().st_size for path in paths),
        max_difference=difference,
        same_predictions=same,
        num_images=len(comparison.expected),
        images=comparison.images,
        latency_ms=comparison.time(call),
        pytorch_latency_ms=comparison.latency_ms,
        threads=comparison.threads,
        folded=deployment.folded,
    )
