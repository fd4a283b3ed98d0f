"""A disk that fails at a chosen operation: the process dies there, the call is refused, the disk is full, the power goes."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

Way = Literal["death", "refused", "full", "power"]


class Crash(BaseException):
    """The process died here: nothing that handles errors may run."""


class Disk:
    """Counts the operations that change the disk and lets the one numbered `fails` go wrong; `with Disk(3, "death"): ...`

    `death`: the process ends before the call, or in the middle of a write. `refused`: this call alone raises EIO. `full`:
    from here on whatever needs room raises ENOSPC. `power`: as death, and what was not forced to the disk is gone: the
    bytes of files, and renames whose folder was not synced.
    """

    def __init__(self, fails: int, way: Way) -> None:
        self.fails, self.way = fails, way
        self.count = 0
        self.trace: list[str] = []
        """What was done, an operation each."""
        self.unsynced: dict[Path, None] = {}
        self.renamed: list[tuple[Path, Path]] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "Disk":
        for name in ("mkdir", "rmdir", "unlink"):
            self._patch.setattr(os, name, self._counted(name, getattr(os, name)))
        for name in ("rename", "replace"):
            self._patch.setattr(os, name, self._renaming(getattr(os, name)))
        self._patch.setattr(os, "fsync", self._syncing(os.fsync))
        for module in (builtins, io):
            self._patch.setattr(module, "open", self._opening(io.open))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def step(self, what: str, name: object, *, needs_room: bool) -> None:
        """One operation is about to be done: go wrong here if it is the one."""
        self.count += 1
        self.trace.append(f"{what} {Path(str(name)).name}")
        if self.count == self.fails and self.way == "refused":
            raise OSError(errno.EIO, "Input/output error", str(name))
        if self.count >= self.fails and self.way == "full" and needs_room:
            raise OSError(errno.ENOSPC, "No space left on device", str(name))
        if self.count >= self.fails and self.way in ("death", "power"):
            raise Crash

    def lose_power(self) -> None:
        """After a crash: what was not forced to the disk is not there."""
        for path in self.unsynced:
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
        for source, target in reversed(self.renamed):
            if target.exists() and not source.exists():
                target.rename(source)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            self.step(name, path, needs_room=name == "mkdir")
            return function(path, *arguments, **named)

        return call

    def _renaming(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **named: Any) -> Any:
            self.step("rename", source, needs_room=False)
            function(source, target, **named)
            old, new = Path(source), Path(target)
            self.renamed.append((old, new))
            self.unsynced = {
                new / path.relative_to(old) if path.is_relative_to(old) else path: None for path in self.unsynced
            }

        return call

    def _syncing(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.step("fsync", path, needs_room=True)
            function(descriptor)
            self.unsynced.pop(path, None)
            self.renamed = [(old, new) for old, new in self.renamed if new.parent != path]

        return call

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wxa+") or isinstance(path, int):
                return function(path, mode, *arguments, **named)
            self.step("create", path, needs_room=True)
            self.unsynced[Path(path)] = None
            return _Writing(self, Path(path), function(path, mode, *arguments, **named))

        return call


class _Writing:
    """An open file whose writes count, and of which the one that fails is torn."""

    def __init__(self, disk: Disk, path: Path, file: Any) -> None:
        self._disk, self._path, self._file = disk, path, file

    def write(self, data: Any) -> int:
        """Write all of `data`, or half of it when this is the operation that goes wrong."""
        try:
            self._disk.step("write", self._path, needs_room=True)
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def __enter__(self) -> "_Writing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
