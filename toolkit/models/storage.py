"""Where converted models and packed data lie, and how a folder or file comes into being there at once or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECORD = "files.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder(kind: str) -> Path:
    """The user's cache for `kind` ("models", "data"), below XDG_CACHE_HOME or ~/.cache; made if missing."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "scalebook" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_once(target: Path, build: Callable[[Path], None], *, lock: Path | None = None) -> Path:
    """Return the folder `target`, calling `build(empty_folder)` first if it does not exist or lost files.

    Processes that ask at the same time wait for one of them, by the file `lock`, else by a hidden one beside `target`; it stays.
    A build that fails or is killed leaves no `target`. The size and sha256 of every file are recorded in `files.json`; each call
    compares the sizes. A disk that fills up is a ValueError of one line, nothing half-written stays, and the next call starts
    anew.
    """
    if _complete(target):
        return target
    with _locked(lock or target.with_name(f".{target.name}.lock")):
        if _complete(target):
            return target
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            build(partial)
            record(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except OSError as error:
            if full(error):
                raise ValueError(no_space(target.parent, "set XDG_CACHE_HOME")) from None
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def verify(folder: Path) -> None:
    """Compare every file of a built folder with its recorded sha256. Raises ValueError naming the first that differs."""
    _verify(folder, trusting_times=False)


def verify_changed(folder: Path) -> None:
    """The same for those files whose size or time of change is not the recorded one; a folder without a record passes.

    Where a copied folder proves whole its new times are noted, so that it is read through once only.
    """
    if (folder / RECORD).is_file():
        _verify(folder, trusting_times=True)


def _verify(folder: Path, *, trusting_times: bool) -> None:
    path = folder / RECORD
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text())["files"]
        known = {_beside(name): (one["size"], one["sha256"], one.get("changed_ns")) for name, one in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a record of files; remove it, or fetch the folder again") from None
    renewed = False
    for name, (size, digest, changed_ns) in known.items():
        file = folder / name
        if not file.is_file():
            continue
        stat = file.stat()
        if trusting_times and (stat.st_size, stat.st_mtime_ns) == (size, changed_ns):
            continue
        if stat.st_size != size or sha256(file) != digest:
            raise ValueError(
                f"{file} differs from the sha256 recorded when it was written: fetch or save it again, "
                f"or remove {path} if it was changed on purpose"
            )
        files[name]["changed_ns"] = stat.st_mtime_ns
        renewed = True
    if renewed:
        with contextlib.suppress(OSError):  # a folder that cannot be written to is read through each time
            replace_file(path, lambda aside: aside.write_text(json.dumps({"files": files}, indent=1)))


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file aside and put it in the place of `path` at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def say(text: str) -> None:
    """One line of progress to the person who waits."""
    print(text, file=sys.stderr, flush=True)


def record(folder: Path, pattern: str = "*") -> None:
    """Write size, sha256 and time of change of a folder's files (those that match `pattern`) into its `files.json`."""
    files = {
        path.name: {
            "size": path.stat().st_size,
            "sha256": sha256(path),
            "changed_ns": path.stat().st_mtime_ns,
        }
        for path in sorted(folder.glob(pattern))
        if path.is_file() and path.name != RECORD
    }
    replace_file(folder / RECORD, lambda aside: aside.write_text(json.dumps({"files": files}, indent=1)))


def full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a file's largest size is reached.

    >>> full(OSError(errno.ENOSPC, "No space left on device"))
    True
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(f"os error {number}" in str(error) for number in _FULL)  # how libraries in Rust report it


def no_space(folder: Path, otherwise: str) -> str:
    """The message for it."""
    return f"no space left in {folder} (nothing half-written stays there): make room, or {otherwise}, and try again"


def _complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
        return all((folder / _beside(name)).stat().st_size == known["size"] for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _beside(name: str) -> str:
    """The name, which a record from outside may not use to reach other folders."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file in the folder")
    return name


def remove_unused(lock: Path) -> None:
    """Remove the lock file of `build_once`, unless somebody holds it."""
    with contextlib.suppress(OSError), lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
                os.utime(path)  # so that its age tells since when it is not used
            except FileNotFoundError:  # removed as unused while this process waited
                continue
            yield
            return
