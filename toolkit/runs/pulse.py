"""The heartbeat of a run: once a second its supervisor says that it lives, in a way that no jump of a clock disturbs.

The file holds the monotonic clock of the machine, which readers on the same machine compare with their own. Readers on
another machine have only the file's time: they trust it until they have seen it move themselves.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

NAME = "heartbeat"
STALE = 15.0
"""Seconds without a heartbeat after which a supervisor counts as silent, and on another machine as gone."""

_seen: dict[Path, tuple[float, float, bool]] = {}
"""Run folder -> time of its heartbeat, when this process first saw that time (monotonic), whether it has seen it move."""


def beat(folder: Path) -> None:
    """Say that the supervisor of `folder` lives. On a full disk the file's time still moves."""
    descriptor = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.utime(descriptor)
        os.pwrite(descriptor, f"{time.monotonic():20.3f}\n".encode(), 0)
    finally:
        os.close(descriptor)


def last_beat(folder: Path) -> float:
    """When the last heartbeat was, in seconds since 1970 by the clock of the disk; 0 without one."""
    try:
        return (folder / NAME).stat().st_mtime
    except OSError:
        return 0.0


def silent_here(folder: Path, begun: float | None) -> float:
    """Seconds since the last heartbeat, or since the holder came at `begun` (monotonic), of a run on this machine."""
    try:
        beaten = float((folder / NAME).read_bytes())
    except (OSError, ValueError):
        beaten = None
    known = [moment for moment in (beaten, begun) if moment is not None]
    return max(0.0, time.monotonic() - max(known)) if known else 0.0


def silent_elsewhere(folder: Path) -> float:
    """Seconds since the last heartbeat of a run on another machine, whose clock may differ from ours."""
    beaten, now = last_beat(folder), time.monotonic()
    before, since, moved = _seen.get(folder, (beaten, now, False))
    if beaten > before:
        since, moved = now, True
    elif beaten < before:  # Its clock was set back, or this is another attempt's: believe the file again.
        since, moved = now, False
    _seen[folder] = (beaten, since, moved)
    return now - since if moved else max(time.time() - beaten, now - since)
