"""Files of a run folder: atomic JSON, files that only their owner may have written, and the lock that means "alive"."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""JSON has no such numbers: files hold these strings in their place."""


class UntrustedFile(PermissionError):
    """A file or folder that another user owns or may change, or a link: it is not read as a command or as code."""


def plain(value: Any) -> Any:
    """`value` as JSON data: non-finite floats become strings, one-element arrays and tensors numbers, tuples lists.

    Raises TypeError naming the type that JSON cannot hold.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if value != value:
            return "NaN"
        return float(value) if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise TypeError(f"JSON keys are text, not {type(wrong).__name__} ({wrong!r})")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return plain(number(value))


def number(value: Any) -> bool | int | float:
    """The number in a one-element array or tensor. Raises TypeError for anything else."""
    item = getattr(value, "item", None)
    if item is None or getattr(value, "size", 1) == 0:
        raise TypeError(
            f"{type(value).__module__}.{type(value).__name__} is not JSON: give numbers, text, lists and dictionaries"
        )
    try:
        found = item()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{type(value).__name__} is not one number: {error}") from None
    if not isinstance(found, (bool, int, float)):
        raise TypeError(f"{type(value).__name__} holds no number")
    return found


def restore(value: Any) -> Any:
    """The reverse of `plain` for non-finite floats."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: restore(item) for key, item in value.items()}
    return [restore(item) for item in value] if isinstance(value, list) else value


def replace_json(path: Path, data: Any, *, sync: bool = True) -> None:
    """Write `data` beside `path`, then put it in its place: a reader sees the old file or the new one, whole."""
    replace_bytes(path, (json.dumps(data, allow_nan=False, indent=1) + "\n").encode(), sync=sync)


def replace_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """As `replace_json`, for bytes. With `sync` the data is on the disk before the name points to it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON in `path`, or `default` when there is no such file."""
    try:
        return json.loads(read_plain(path))
    except (FileNotFoundError, NotADirectoryError):
        return default
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def open_plain(path: Path) -> int:
    """Descriptor for reading `path`, which must be a plain file: no link leads elsewhere, and no pipe blocks the reader."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise UntrustedFile(f"{path}: a link, not a file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedFile(f"{path}: not a plain file")
    return descriptor


def read_plain(path: Path) -> bytes:
    """Content of `path` after the checks of `open_plain`."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()


def check_own(folder: Path) -> None:
    """Raise UntrustedFile unless `folder` is this user's and nobody else may write in it: only then is what it says run."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise UntrustedFile(f"{folder}: owned by user {found.st_uid}, not by {os.geteuid()}: it can only be looked at")
    if found.st_mode & 0o022:
        raise UntrustedFile(
            f"{folder}: others may write it (mode {found.st_mode & 0o777:o}); chmod 700 it if you trust what it holds"
        )


def open_owned(path: Path) -> int:
    """Descriptor for reading `path`, which must be a plain file of this user that nobody else may write."""
    descriptor = open_plain(path)
    found = os.fstat(descriptor)
    reason = None
    if found.st_uid != os.geteuid():
        reason = f"owned by user {found.st_uid}, not by {os.geteuid()}"
    elif found.st_mode & 0o022:
        reason = f"others may write it (mode {found.st_mode & 0o777:o}); chmod 600 it if you trust what it holds"
    if reason:
        os.close(descriptor)
        raise UntrustedFile(f"{path}: {reason}")
    return descriptor


def read_owned(path: Path) -> bytes:
    """Content of `path` after the checks of `open_owned`."""
    with os.fdopen(open_owned(path), "rb") as file:
        return file.read()


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on `path` (made when missing), waiting for it; gives the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(path: Path, *, patience: float = 0.5) -> int | None:
    """Descriptor that holds the exclusive lock on `path`, or None when another process has it.

    The lock lives as long as any copy of the descriptor, so it can be handed to a child process without a gap.
    `patience` in seconds: readers hold the lock for an instant to see whether it is free. Raises FileNotFoundError where
    whoever held it before has removed the file: the lock of a file without a name keeps nobody out.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:
                os.close(descriptor)
                raise FileNotFoundError(errno.ENOENT, "it was removed meanwhile", str(path))
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(0.01)


def is_locked(path: Path) -> bool:
    """Whether some process holds the exclusive lock on `path`."""
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
