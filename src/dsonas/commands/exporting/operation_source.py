"""The operations of a network as functions of the generated source."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dsonas.commands.exporting.errors import ExportError
from dsonas.commands.exporting.formatting import Group, exploded
from dsonas.commands.exporting.fuse_bn import fold_candidate
from dsonas.commands.exporting.layers import general_layer, layer_of, leaf_modules
from dsonas.nn import Candidate


def operation_function(operation: str, function: str, channels: Iterable[int], folded: bool) -> str:
    """A function from a number of channels to an operation with its batch normalisation.

    Args:
        operation: its registered name.
        function: its name in the source.
        channels: for which numbers of channels it is needed.
        folded: fold the BN into a convolution before it.

    Raises:
        ExportError: if the operation is not made of modules of ``torch.nn``.

    Example:
        >>> print(operation_function("max_pool3x3", "max_pool3x3", [8], folded=False))
        def max_pool3x3(channels: int) -> nn.Module:
            \"\"\"Operation max_pool3x3, normalised.\"\"\"
            return nn.Sequential(
                nn.MaxPool2d(3, stride=1, padding=1),
                nn.BatchNorm2d(channels, eps=2e-05),
            )
    """
    call = exploded(_sequential(operation, set(channels), folded), indent=4)
    argument = "channels" if "channels" in call else "_channels"
    return (
        f"def {function}({argument}: int) -> nn.Module:\n"
        f'    """Operation {operation}, normalised."""\n'
        f"    return {call}"
    )


def _sequential(operation: str, channels: set[int], folded: bool) -> Group:
    # a second number of channels tells what depends on it from what only happens to equal it
    made = {c: _candidate(operation, c, folded) for c in sorted(channels | {2 * max(channels)})}
    try:
        layers = {c: [layer_of(m) for m in leaf_modules(one)] for c, one in made.items()}
        if len({len(found) for found in layers.values()}) != 1:
            raise ExportError("its modules differ between numbers of channels")
        places = range(len(next(iter(layers.values()))))
        general = [general_layer({c: found[i] for c, found in layers.items()}) for i in places]
    except ExportError as error:
        raise ExportError(
            f"operation {operation!r} cannot be written as plain Python source: {error}; build it "
            "of nn.Sequential and layers of torch.nn, or export --format onnx,pt2 only"
        ) from None
    return Group("nn.Sequential", tuple(layer.expression() for layer in general))


def _candidate(operation: str, channels: int, folded: bool) -> torch.nn.Sequential:
    with torch.device("meta"):  # for its structure alone
        candidate = Candidate(operation, channels, True).eval()
    if folded:
        fold_candidate(candidate)
    return torch.nn.Sequential(candidate.operation, candidate.bn)
