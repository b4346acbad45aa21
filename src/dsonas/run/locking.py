"""One process at a time in a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without POSIX locks: nothing is locked
    fcntl = None

LOCK_NAME = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)  # what POSIX lets a refused lock say
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class FolderInUseError(ValueError):
    """Another process works in the folder; the message is one line that says what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder while the context is open.

    The folder is made if need be, and removed at the end if it is still empty. The lock belongs to
    the process, not to its children, and ends with it, however that ends. Where nothing can be
    written, or the system has no locks, there is none.

    Args:
        folder: to be worked in.

    Raises:
        FolderInUseError: if another process holds the lock.
        OSError: if the folder cannot be made.

    Example:
        >>> folder = getfixture("tmp_path") / "run"
        >>> with locked(folder):
        ...     [path.name for path in folder.iterdir()]
        ['.lock']
        >>> folder.exists()
        False
    """
    if fcntl is None:
        yield
        return
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _acquire(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            _release(folder / LOCK_NAME, descriptor)
        with contextlib.suppress(OSError):  # what was written into stays
            for path in absent:
                path.rmdir()


def _acquire(folder: Path) -> int | None:
    """The descriptor of the locked file; None if there can be no lock."""
    path = folder / LOCK_NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the last holder has just removed the folder
            continue
        except OSError as error:
            if error.errno in _READ_ONLY:
                return None
            raise
        if not _take(descriptor, folder):
            os.close(descriptor)
            return None
        if _is_named(path, descriptor):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> bool:
    """Lock an open file; False on a file system without locks."""
    assert fcntl is not None
    try:
        # of the process: a lock by flock would live on in the workers that read data
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return False
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise FolderInUseError(
            f"{folder} is in use by another dsonas, process {holder or 'unknown'}: wait for its "
            "end, or choose another --out"
        ) from None
    return True


def _sign(descriptor: int) -> None:
    """Say who holds the lock; on a full disk nobody does."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())


def _is_named(path: Path, descriptor: int) -> bool:
    """Whether the name still means the locked file, and not one made after its removal."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        if _is_named(path, descriptor):
            path.unlink()  # before the lock ends, so that nobody loses a lock that is his
    os.close(descriptor)
