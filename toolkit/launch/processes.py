"""Processes: who lives, who dies with whom, and who was left behind."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from toolkit.runs.state import start_time

TOKEN = "SCALEBOOK_RUN"
PLACE = "SCALEBOOK_FOLDER"
PARENT = "SCALEBOOK_PARENT"
VISIBLE = "CUDA_VISIBLE_DEVICES"
LAUNCHER_VISIBLE = "SCALEBOOK_CUDA_VISIBLE_DEVICES"
"""In a worker: what VISIBLE was where the run was launched; not set where it was not."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def become_reaper() -> None:
    """Let orphans of this process' descendants become its children, so that none is lost sight of (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """End this process as soon as process `parent`, which started it, is gone; at once if it is gone already."""
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=watch, name="scalebook-parent", daemon=True).start()


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Watched:
    """A process that is not a child, such as the kernel that launched the run."""

    def __init__(self, pid: int, started: int | None) -> None:
        self._pid, self._started = pid, started
        self._descriptor: int | None = None
        if hasattr(os, "pidfd_open"):
            try:
                self._descriptor = os.pidfd_open(pid)
            except OSError:
                self._descriptor = None
        if start_time(pid) != started:  # Asked after the descriptor is open: the number cannot change hands any more.
            self._pid = 0

    def gone(self) -> bool:
        """Whether it has ended, also as a zombie that nobody has reaped."""
        if self._pid == 0:
            return True
        if self._descriptor is not None:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        return start_time(self._pid) != self._started or is_zombie(self._pid)

    def send(self, number: int) -> None:
        """Send a signal to it, and to no other process that has its number by now."""
        if self.gone():
            return
        try:
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self._pid, number)
        except ProcessLookupError:
            return


def belonging(run: str, folder: Path) -> list[int]:
    """Processes of this user, save this one, whose environment says that they were started for this run (Linux)."""
    wanted = {f"{TOKEN}={run}".encode(), f"{PLACE}={folder}".encode()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid != os.geteuid() or int(entry.name) == os.getpid():
                continue
            if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def end_leftovers(run: str, folder: Path, *, patience: float = 5.0) -> int:
    """Kill every process of this run but this one, until none is left or `patience` seconds are over; how many."""
    killed: set[int] = set()
    until = time.monotonic() + patience
    while (left := [pid for pid in belonging(run, folder) if not is_zombie(pid)]) and time.monotonic() < until:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return len(killed)


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and waits to be reaped, or is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True
