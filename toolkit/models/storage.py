"""Where converted models and packed data lie, and how a folder or file comes into being there at once or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The user's cache for `kind` ("models", "data"), below XDG_CACHE_HOME or ~/.cache; made if missing."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "scalebook" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `target`, calling `build(empty_folder)` first if it does not exist or lost files.

    Processes that ask at the same time wait for one of them. A build that fails or is killed leaves no `target`. The size
    and sha256 of every file are recorded in `files.json`; each call compares the sizes.
    """
    if _complete(target):
        return target
    with _locked(target.with_name(f".{target.name}.lock")):
        if _complete(target):
            return target
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            build(partial)
            _record(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def verify(folder: Path) -> None:
    """Compare every file of a built folder with its recorded sha256. Raises ValueError naming the first that differs."""
    for name, known in json.loads((folder / "files.json").read_text())["files"].items():
        if sha256(folder / name) != known["sha256"]:
            raise ValueError(f"{folder / name} differs from the sha256 recorded when it was written; remove {folder}")


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


def _record(folder: Path) -> None:
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / "files.json").write_text(json.dumps({"files": files}, indent=1))


def _complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / "files.json").read_text())["files"]
        return all((folder / name).stat().st_size == known["size"] for name, known in files.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
