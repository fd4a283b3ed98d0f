"""A little room on the disk that a run sets aside, so that on a full disk it can still say what happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAME = "reserve"
SIZE = 256 << 10
"""Bytes: the state, and the error of every rank."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def set_aside(folder: Path) -> bool:
    """Take the room, if there is any; whether the run has it."""
    path = folder / NAME
    if path.exists():
        return True
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(SIZE))
        return True
    except OSError:
        give_up(folder)
        return False


def give_up(folder: Path) -> None:
    """Give the room back to the disk."""
    with suppress(OSError):
        (folder / NAME).unlink()


def written(folder: Path, write: Callable[[], None]) -> None:
    """Call `write`; where the disk is full, give up the room that was set aside and call it once more.

    `written(folder, lambda: replace_json(folder / "state.json", data))`. Raises what `write` raises.
    """
    try:
        write()
    except OSError as error:
        if error.errno not in FULL:
            raise
        give_up(folder)
        write()
