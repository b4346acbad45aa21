"""Export a finished run: write, read back, compare, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsonas.commands.exporting.deployment import Deployment
from dsonas.commands.exporting.errors import ExportError
from dsonas.commands.exporting.example_images import (
    CheckImages,
    check_images,
    describe,
    stored_data_config,
    stored_settings,
)
from dsonas.commands.exporting.formats import FORMATS, Call, Format
from dsonas.commands.exporting.fuse_bn import fold_batch_norms
from dsonas.nn import Network
from dsonas.run import Preprocessing, RunFolder

TOLERANCE = 1e-4  # of outputs, as a part of the largest
TIMED_SECONDS = 0.2  # at least, for each latency


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A format written and checked.

    Args:
        format: one of ``FORMATS``.
        paths: the files, the main one first.
        size_bytes: of all of them.
        max_difference: largest absolute difference of a logit to that of the run's network.
        same_predictions: images with the same class.
        num_images: images compared.
        images: which they were.
        latency_ms: median for one image, read back from the file.
        pytorch_latency_ms: the same for the run's network in PyTorch.
        threads: CPU threads of both.
        folded: whether BNs were folded into convolutions.
    """

    format: str
    paths: tuple[Path, ...]
    size_bytes: int
    max_difference: float
    same_predictions: int
    num_images: int
    images: str
    latency_ms: float
    pytorch_latency_ms: float
    threads: int
    folded: bool


def export_run(
    folder: str | Path,
    formats: Iterable[str] = tuple(FORMATS),
    fold: bool = False,
    *,
    threads: int = 1,
    num_images: int = 1000,
) -> list[ExportResult]:
    """Write the network of a finished run under ``folder/export`` and check every file.

    Each file is read back and given the run's test images, or random ones where its data set is
    out of reach.

    Args:
        folder: of the run.
        formats: ``onnx``, ``pt2`` (a ``torch.export`` program) and ``python`` (source and weights).
        fold: fold BNs into the convolutions before them.
        threads: CPU threads for measuring latency, >= 1.
        num_images: test images to compare at most, >= 1.

    Returns:
        A result for each format, in the order of ``FORMATS``.

    Raises:
        ExportError: if a format is unknown, lacks its packages or cannot hold the network, or if a
            file gives other outputs than the run's network; such a file is deleted.
        RunError: if the folder holds no finished network.

    Example:
        >>> export_run("no_such_run")
        Traceback (most recent call last):
        ...
        dsonas.run.network_files.RunError: no_such_run holds no finished network ...
    """
    chosen = _chosen_formats(formats)
    for name, value in (("threads", threads), ("num_images", num_images)):
        if value < 1:
            raise ExportError(f"{name} must be at least 1, got {value}")
    run = RunFolder(folder)
    network, preprocessing = run.load_network()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    deployment = _deployment(run, network, preprocessing, fold)
    images = check_images(run, network, preprocessing, num_images)
    comparison = _Comparison(network, images, threads)
    target = run.path / "export"
    return [_export(format, deployment, target, comparison) for format in chosen]


def _chosen_formats(names: Iterable[str]) -> list[Format]:
    given = list(names)
    unknown = [name for name in given if name not in FORMATS]
    if unknown or not given:
        shown = repr(unknown[0]) if unknown else "none"
        raise ExportError(f"format must be one or more of {', '.join(FORMATS)}, got {shown}")
    chosen = [format for name, format in FORMATS.items() if name in given]
    for format in chosen:
        format.require()
    return chosen


def _deployment(
    run: RunFolder, network: Network, preprocessing: Preprocessing, fold: bool
) -> Deployment:
    try:
        data = describe(stored_data_config(run))
    except ValueError:
        data = "unknown data"
    seed = stored_settings(run).get("seed")
    return Deployment(
        network=fold_batch_norms(network) if fold else network,
        preprocessing=preprocessing,
        folded=fold,
        data=data,
        test_error=(run.metrics or {}).get("test_error"),
        seed=seed if isinstance(seed, int) else None,
    )


class _Comparison:
    """The outputs and the latency to which every file is held."""

    def __init__(self, network: Network, images: CheckImages, threads: int) -> None:
        self.images, self.threads = images, threads
        self.expected = _outputs(network, images.batches)
        self.latency_ms = self.time(network)

    def time(self, call: Call) -> float:
        """Milliseconds for one image."""
        from torch.utils.benchmark import Timer  # its import looks for compilers and may say so

        names = {"call": call, "image": self.images.first}
        timer = Timer("call(image)", globals=names, num_threads=self.threads)
        with torch.inference_mode():
            return 1e3 * timer.blocked_autorange(min_run_time=TIMED_SECONDS).median

    def difference(self, call: Call) -> tuple[float, int]:
        """The largest difference of a logit, and the number of images with the same class."""
        found = _outputs(call, self.images.batches)
        same = int((found.argmax(1) == self.expected.argmax(1)).sum())
        return float((found - self.expected).abs().max()), same


@torch.inference_mode()
def _outputs(call: Call, batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([call(images) for images in batches])


def _export(
    format: Format, deployment: Deployment, target: Path, comparison: _Comparison
) -> ExportResult:
    paths = format.write(deployment, target)
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
    return ExportResult(
        format=format.name,
        paths=tuple(paths),
        size_bytes=sum(path.stat().st_size for path in paths),
        max_difference=difference,
        same_predictions=same,
        num_images=len(comparison.expected),
        images=comparison.images.description,
        latency_ms=comparison.time(call),
        pytorch_latency_ms=comparison.latency_ms,
        threads=comparison.threads,
        folded=deployment.folded,
    )
