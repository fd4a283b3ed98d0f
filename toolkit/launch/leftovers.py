"""Processes that a run has left behind: found by the mark they carry and by when they were started, and ended."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.launch.processes import PLACE, TOKEN, Watched, is_zombie
from toolkit.runs.files import is_locked
from toolkit.runs.state import holder, start_time

SUPERVISOR = (b"-m", b"toolkit.launch.supervisor")
"""What the command line of a supervisor holds just before the run folder."""
SETTLING = 0.5
"""Seconds that a process may take to end after its run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """One process that works for no run any more."""

    pid: int
    """Its number."""
    start: int
    """When it was started, in clock ticks since boot: with the number it names one process for good."""
    run: str
    """Id of the run that it was started for."""
    folder: Path
    """That run's folder; it may be gone."""
    command: str
    """Its command line, at most 200 characters."""
    memory: int
    """Resident bytes."""
    reason: str
    """Why it counts as left behind."""


def leftovers(root: str | Path | None = None) -> list[Leftover]:
    """Processes of this user that belong to runs under `root` (None: anywhere) and that no supervisor looks after.

    Such a process carries the environment token of a run (a supervisor: the folder in its command line), and that run's
    folder is gone, its lock is free, or the process was started before the supervisor that holds it. A live run's
    processes are never among them, nor is any process in a container of its own: its paths are not ours. Linux;
    elsewhere none is found.

    >>> for found in leftovers("."): print(found.pid, found.run, found.reason, end(found))
    """
    home = None if root is None else Path(root).resolve() / "runs"
    found = _found(home)
    if found:  # What ends with its run has a moment to do so.
        time.sleep(SETTLING)
        found = [each for each in _found(home) if each.pid in {before.pid for before in found}]
    return sorted(found, key=lambda each: (each.run, each.start, each.pid))


def _found(home: Path | None) -> list[Leftover]:
    found = []
    ours = mounts(os.getpid())
    for pid, run, folder in _marked():
        start = start_time(pid)
        if start is None or is_zombie(pid) or pid == os.getpid() or (home is not None and folder.parent != home):
            continue
        if ours is None or mounts(pid) != ours:
            continue
        if reason := _reason(folder, start):
            found.append(
                Leftover(
                    pid=pid, start=start, run=run, folder=folder, command=_command(pid), memory=_memory(pid), reason=reason
                )
            )
    return found


def end(leftover: Leftover, *, patience: float = 5.0) -> bool:
    """Ask the process to end, kill it after `patience` seconds, and say whether it is gone.

    Nothing is sent where another process has its number by now, or where its run has a supervisor again.
    """
    process = Watched(leftover.pid, leftover.start)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.gone():
            return True
        if _reason(leftover.folder, leftover.start) is None:
            return False
        process.send(number)
        until = time.monotonic() + patience
        while not process.gone() and time.monotonic() < until:
            select.select([], [], [], 0.02)
    return process.gone()


def _reason(folder: Path, start: int) -> str | None:
    """Why a process of the run in `folder`, started at `start`, is left over; None while it is looked after."""
    try:
        folder.stat()
    except FileNotFoundError:
        return "its run folder is gone"
    except OSError:  # A disk that does not answer now: nobody can tell.
        return None
    if not is_locked(folder / "lock"):
        return "its run is over" if (folder / "state.json").exists() else "its run never began"
    keeper = holder(folder)
    if keeper.get("start") is not None and start < keeper["start"]:
        return "it belongs to an earlier attempt"
    return None


def _marked() -> Iterator[tuple[int, str, Path]]:
    """Number, run and folder of every process of this user that carries the mark of a run."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid != os.geteuid():
                continue
            marks = dict(line.split(b"=", 1) for line in (entry / "environ").read_bytes().split(b"\0") if b"=" in line)
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        place = marks.get(PLACE.encode())
        if place and TOKEN.encode() in marks:
            yield int(entry.name), os.fsdecode(marks[TOKEN.encode()]), Path(os.fsdecode(place))
        elif SUPERVISOR in zip(words, words[1:], strict=False):
            folder = Path(os.fsdecode(words[words.index(SUPERVISOR[1]) + 1]))
            yield int(entry.name), folder.name, folder


def mounts(pid: int) -> str | None:
    """What names the mounted disks that a process sees: in a container the same path is another folder, or none."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return ""


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
