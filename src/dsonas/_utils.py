"""What every room needs: seeds, finite numbers, copies to a device, atomic files, collectives."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from operator import index
from pathlib import Path
from traceback import extract_tb
from types import ModuleType, NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:  # the command line and the configuration start without torch
    import torch
    from torch import Tensor

if TYPE_CHECKING:  # type checkers see plain numbers
    BatchSize: TypeAlias = int
    ImageSize: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveInt: TypeAlias = int
    Threads: TypeAlias = int
    HalfOpenUnit: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    PositiveFloat: TypeAlias = float
    Share: TypeAlias = float
else:
    from jsonargparse.typing import (
        NonNegativeFloat as NonNegativeFloat,
        NonNegativeInt as NonNegativeInt,
        PositiveFloat as PositiveFloat,
        PositiveInt as PositiveInt,
        restricted_number_type,
    )

    BatchSize = restricted_number_type("BatchSize", int, (">=", 2))  # BN needs two
    ImageSize = restricted_number_type("ImageSize", int, (">=", 4))
    HalfOpenUnit = restricted_number_type("HalfOpenUnit", float, [(">=", 0), ("<", 1)])
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])
    # far more end a process without a message
    Threads = restricted_number_type("Threads", int, [(">=", 1), ("<=", 1024)])

FEW_BYTES = 2**14  # of a tensor, up to which gathering is faster than gloo's sum (measured)


def derive_seed(seed: int, *parts: int | str) -> int:
    """Derive the seed of one random decision from the run's seed and the name of the decision.

    A pure function: it keeps no state, so that a resumed run draws what the uninterrupted run
    would have drawn. Different ``parts``, which say what the seed is for, give independent seeds;
    ``1`` and ``"1"`` differ. Returns an integer in ``[0, 2**63)``; a TypeError if something is
    neither an integer nor a string.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 4)
        False
    """
    words = [index(seed), *(part if isinstance(part, str) else index(part) for part in parts)]
    digest = hashlib.blake2b(json.dumps(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def check_settings(config: Any, group: str) -> None:
    """Hold the fields of a frozen dataclass to their types; numbers become plain ones.

    Types are jsonargparse's restricted numbers, ``Literal``, tuples of them, and None. A ValueError
    names the field as one of a group, its rule, its value and its default.

    Example:
        >>> from dataclasses import field, make_dataclass
        >>> Config = make_dataclass("Config", [("lr", PositiveFloat, field(default=0.1))])
        >>> check_settings(Config(1), "train")
        >>> check_settings(Config(-1.0), "train")
        Traceback (most recent call last):
        ...
        ValueError: train.lr must be a number > 0, got -1.0: leave it out for the default, 0.1
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        try:
            object.__setattr__(config, entry.name, _held_to(hints[entry.name], value))
        except (TypeError, ValueError):
            raise ValueError(
                f"{group}.{entry.name} must be {rule_of(hints[entry.name])}, got {value!r}: "
                f"leave it out for the default, {entry.default!r}"
            ) from None


def rule_of(hint: Any) -> str:
    """Say which values a type allows.

    Example:
        >>> rule_of(PositiveInt | None), rule_of(Literal["a", "b"]), rule_of(Share)
        ('a whole number > 0 or null', 'one of a, b', 'a number > 0 and <= 1')
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(rule_of, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return f"a list such as [A, B], each {rule_of(get_args(hint)[0])}"
    plain = {bool: "true or false", str: "a text", NoneType: "null"}
    if hint in plain:
        return plain[hint]
    kind = "a whole number" if issubclass(hint, int) else "a number"
    symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    rules = getattr(hint, "_restrictions", ())
    bounds = (f"{symbols[test.__name__]} {bound:g}" for test, bound in rules)
    return f"{kind} {' and '.join(bounds)}".rstrip()


def _held_to(hint: Any, value: Any) -> Any:
    """The value as a plain one; ValueError or TypeError if it is not of the type."""
    if isinstance(hint, UnionType):
        *others, last = [kind for kind in get_args(hint) if kind is not NoneType]
        if value is None and NoneType in get_args(hint):
            return None
        for kind in others:
            with contextlib.suppress(TypeError, ValueError):
                return _held_to(kind, value)
        return _held_to(last, value)
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_held_to(get_args(hint)[0], part) for part in value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    number = int if isinstance(hint, type) and issubclass(hint, int) else float
    if hint is bool or not isinstance(value, (int,) if number is int else (int, float)):
        raise TypeError
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return number(hint(value))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; if that is the CPU, the tensor itself.

    ``torch.tensor(..., device="cuda")`` and indexing by a list copy from pageable memory, which
    waits until the device has done all its work; a copy from pinned memory is only queued.

    Example:
        >>> import torch
        >>> send(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def mask_like(live: Sequence[bool], like: Tensor) -> Tensor:
    """1 where something is live and 0 elsewhere, of the type and on the device of a tensor.

    Example:
        >>> import torch
        >>> mask_like([True, False], torch.zeros(3))
        tensor([1., 0.])
    """
    import torch

    return send(torch.tensor(live, dtype=like.dtype), like.device)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as lines of CSV that end as on Unix."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if it is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def readable_json(value: Any, depth: int, indent: str = "\n") -> str:
    """Write JSON to be read: down to a depth, every item of mappings and tables has its own line.

    Example:
        >>> print(readable_json({"sizes": [1, 2], "rows": [[3, 4], [5, 6]]}, 2))
        {
          "sizes": [1, 2],
          "rows": [
            [3, 4],
            [5, 6]
          ]
        }
    """
    inner = indent + "  "
    if depth and value and isinstance(value, Mapping):
        (begin, end), pairs = "{}", value.items()
        rows = [f"{json.dumps(key)}: {readable_json(v, depth - 1, inner)}" for key, v in pairs]
    elif depth and value and isinstance(value, list) and isinstance(value[0], list | Mapping):
        begin, end = "[]"
        rows = [readable_json(item, depth - 1, inner) for item in value]
    else:
        return json.dumps(value)
    return f"{begin}{inner}{f',{inner}'.join(rows)}{indent}{end}"


_SPACE = "free some space and repeat the command"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "lift the limit on the size of files and repeat the command",
}
_IMPORTED = "dsonas_import:"


def import_file(path: Path, option: str) -> ModuleType:
    """Import a Python file of the user's, once in a process.

    A ValueError if it is missing, or fails: it names the line, and the option that named the file.
    """
    if not (path.is_file() and path.suffix == ".py"):
        raise ValueError(f"{option} must name a Python file (NAME.py) that exists, got {path}")
    name = f"{_IMPORTED}{path.resolve()}:{fingerprint(path)}"  # one that has changed is another
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except Exception as error:  # whatever the user's code raises
            del sys.modules[name]
            raise ValueError(f"{option} {path} fails{told_by(path, error)}") from error
    return sys.modules[name]


def absolute_path(path: str) -> str:
    """A path that is found from every folder; ``~`` is the user's home."""
    return os.path.abspath(os.path.expanduser(path))


def absolute_place(place: str) -> str:
    """``FILE.py:FUNCTION`` with a file that is found from every folder; other texts stay."""
    file, colon, function = place.rpartition(":")
    return f"{absolute_path(file)}:{function}" if colon else place


def is_imported(path: Path) -> bool:
    """Whether this process has imported a Python file of the user's, or one with its content."""
    digest = fingerprint(path)
    return any(name.startswith(_IMPORTED) and name.endswith(digest) for name in list(sys.modules))


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def told_by(path: Path, error: Exception) -> str:
    """Say in which line of a file of the user's an error came up, and what it says."""
    frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    place = "" if line is None else f" in line {line}"
    return f"{place}: {type(error).__name__}: {error}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old or the new content, never a part.

    Raises:
        OSError: naming the file, if it cannot be written; the old content is still there then.
    """
    if path.is_dir():  # . has no name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync_names(path.parent)
    except OSError as error:  # a full disk is reported without the name of a file
        _remove(temporary)
        reason = error.strerror or str(error)
        if error.errno in _REMEDIES:
            reason += f": {_REMEDIES[error.errno]}"
        raise OSError(error.errno, reason, str(path)) from None
    except BaseException:
        _remove(temporary)
        raise


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a power cut does not undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


class LostProcessError(ConnectionError):
    """Another process of the run does not answer any more."""


def num_processes() -> int:
    """Of those that have met; 1 before that."""
    import torch

    met = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if met else 1


def sum_over_processes(values: Tensor, group: Any = None) -> Tensor:
    """Add up a tensor over the processes, in place.

    By torch rather than by Fabric, whose own sum makes all processes wait for each other first. Few
    values on a CPU are gathered and added up here, always in the same order: for them gloo's own
    sum takes more than twice as long.

    Raises:
        LostProcessError: if one of them does not answer.
    """
    import torch

    with answering():
        if values.device.type != "cpu" or values.nbytes > FEW_BYTES:
            torch.distributed.all_reduce(values, group=group)
            return values
        parts = [torch.empty_like(values) for _ in range(num_processes())]
        torch.distributed.all_gather(parts, values, group=group)
    return values.copy_(torch.stack(parts).sum(0))


def sum_all_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Add up several tensors of one type over the processes, in one exchange.

    Raises:
        LostProcessError: if one of them does not answer.
    """
    if not tensors:
        return []
    parts = sum_over_processes(flatten(tensors)).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@contextmanager
def answering() -> Iterator[None]:
    """Say in one line that another process is gone."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # its own fault, come to light here
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:150]
        raise LostProcessError(
            "another process of this run has ended, or has not answered for ten "
            "minutes; its own message says why. The same command goes on from the "
            f"last checkpoint ({reason})"
        ) from None


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def write_back(flat: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy the pieces of one long vector into tensors of any shapes, in place: see ``flatten``."""
    import torch

    pieces = flat.split([target.numel() for target in targets])
    if any(target.ndim != 1 for target in targets):
        pieces = [piece.view_as(target) for piece, target in zip(pieces, targets, strict=True)]
    with torch.no_grad():
        torch._foreach_copy_(list(targets), list(pieces))  # pyright: ignore[reportPrivateImportUsage]
