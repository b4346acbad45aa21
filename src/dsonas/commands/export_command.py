"""What ``dsonas export`` does, from its arguments to its exit code."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from dsonas.commands.configuring import OptionParser, UsageError, parse
from dsonas.commands.exporting import FORMATS, ExportResult, export_run
from dsonas.run import StopSignal

DESCRIPTION = (
    "Write the network of a finished run under DIR/export, for use without dsonas. Each file is\n"
    "read back and compared with the run on its test images, or on random ones where those are\n"
    "out of reach. Class names and preprocessing travel with every format; pixels.py beside\n"
    "them reads image files as the run did.\n\n"
    "  onnx     network.onnx: for onnxruntime and many others; any batch size\n"
    "  pt2      network.pt2: a torch.export program; any batch size\n"
    "  python   network.py, network.json, network.pt: source for torch alone, plan, weights"
)


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
    formats = _formats(values.format)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for CUDA
    results = export_run(values.DIR, formats, values.fold, threads=values.threads)
    print(json.dumps(_summary(results), default=str) if values.json else _table(results))
    return 0


def _formats(given: list[str] | None) -> list[str] | None:
    if given is None:
        return None
    names = [name.strip() for text in given for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    return names


def _summary(results: list[ExportResult]) -> dict[str, Any]:
    shared = ("images", "num_images", "pytorch_latency_ms", "threads", "folded")
    files = [asdict(result) for result in results]
    own = [{name: file[name] for name in file if name not in shared} for file in files]
    return {**{name: files[0][name] for name in shared}, "exports": own}


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
