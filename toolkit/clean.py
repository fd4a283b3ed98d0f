"""Cleaning up under one root: runs that nobody needs, and checkpoints that were set aside in those that stay.

Looking comes first and changes nothing; what is then removed is looked at once more, under its own lock. A run folder is
first renamed to `.removing-...`, so that a reader sees it whole or not at all; what an interrupted removal left is found
by that name. Links are never followed.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs.fields import DAMAGED
from toolkit.runs.files import is_locked, take_lock
from toolkit.runs.rewind import aside
from toolkit.runs.roots import root_of
from toolkit.runs.state import ACTIVE, FINAL, boot, holder, read_state

REMAINS = ".removing-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which runs may go: those that are over and fit everything that is asked."""

    older: float | None = None
    """Seconds since the run ended, at least."""
    larger: int | None = None
    """Bytes of its folder, at least."""
    keep: int = 0
    """This many of the newest runs stay, whatever else is asked."""
    states: tuple[str, ...] = ()
    """finished, stopped, failed, lost; empty: any of them."""

    def __post_init__(self) -> None:
        wrong = [name for name in self.states if name not in FINAL]
        if wrong:
            raise ValueError(f"Choice.states: {wrong[0]!r} is no state of a run that is over: {', '.join(FINAL)}")
        for name in ("older", "larger", "keep"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"Choice.{name}: expected 0 or more, got {getattr(self, name)}")

    @property
    def chooses(self) -> bool:
        """Whether it asks for anything at all; without, no run goes."""
        return bool(self.older is not None or self.larger is not None or self.keep or self.states)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A run folder as the survey saw it."""

    folder: Path
    """The folder."""
    state: str
    """State of the run; "damaged" where its files cannot be read, "remains" for what an interrupted removal left, "aside"
    for a checkpoint that `restart(step)` has set aside."""
    attempt: int
    """Attempt that the state is of."""
    age: float
    """Seconds since it ended; since it last lived, if it is lost; since it was set aside."""
    bytes: int
    """Size of the folder on the disk, without what links in it point to."""
    kept: str = ""
    """Why it stays; empty: it may go."""


def survey(root: str | Path | None = None, choice: Choice = Choice()) -> list[Candidate]:
    """Every run under `root` (default: this project), newest first, with why it stays or that it may go.

    Changes nothing. Raises ValueError where `runs` itself is a link: its target is another place.
    `[found.folder.name for found in survey(choice=Choice(older=30 * 86400)) if not found.kept]`
    """
    home = _home(root)
    if home is None:
        return []
    found = [(entry.stat(follow_symlinks=False), entry) for entry in os.scandir(home) if _is_ours(entry)]
    found.sort(key=lambda pair: (_launched(Path(pair[1].path)), pair[1].name), reverse=True)
    candidates, newer = [], 0
    for status, entry in found:
        folder = Path(entry.path)
        if entry.name.startswith(REMAINS):
            candidates.append(Candidate(folder=folder, state="remains", attempt=0, age=0.0, bytes=folder_size(folder)))
            continue
        candidates.append(_candidate(folder, status, choice, newer))
        newer += 1
    return candidates


def asides(surveyed: list[Candidate], wanted: bool) -> list[Candidate]:
    """The checkpoints that were set aside in those of the surveyed runs that stay; they may go where they are `wanted`.

    Changes nothing. No resume takes such a checkpoint; who wants it back renames it.
    """
    found = []
    for run in surveyed:
        if not run.kept or (run.folder / "checkpoints").is_symlink():
            continue
        for path in aside(run.folder):
            with suppress(FileNotFoundError):  # It was removed meanwhile.
                age = max(0.0, time.time() - path.stat().st_ctime)
                status = run.folder.stat(follow_symlinks=False)
                kept = _untouchable(run.folder, status, run.state) or ("" if wanted else "not asked for")
                size = folder_size(path)
                found.append(Candidate(folder=path, state="aside", attempt=run.attempt, age=age, bytes=size, kept=kept))
    return found


def remove(candidate: Candidate) -> str | None:
    """Remove the folder of a candidate; None, or why it was left alone: it lives (again), or is not what it was.

    Its lock is held from the last look until it is gone: whoever wants to start it meanwhile is refused.
    """
    if candidate.state == "aside":
        return _remove_aside(candidate.folder)
    home, name = candidate.folder.parent, candidate.folder.name
    directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    lock: int | None = None
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return "it is no folder of this user any more"
        if not name.startswith(REMAINS):
            lock = take_lock(candidate.folder / "lock", patience=0.1)
            if lock is None:
                return "it is live"
            if holder(candidate.folder).get("attempt", 0) > candidate.attempt:
                return "it was started again meanwhile"
            aside = f"{REMAINS}{name}-{os.getpid()}"
            os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
            name = aside
        shutil.rmtree(name, dir_fd=directory)
    except FileNotFoundError:
        return "it is gone already"
    finally:
        if lock is not None:
            os.close(lock)
        os.close(directory)
    return None


def _remove_aside(path: Path) -> str | None:
    """Remove a checkpoint that was set aside; cut off, the rest of it is still aside."""
    lock = directory = None
    try:
        lock = take_lock(path.parents[1] / "lock", patience=0.1)
        if lock is None:
            return "it is live"
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return "it is no folder of this user any more"
        shutil.rmtree(path.name, dir_fd=directory)
    except FileNotFoundError:
        return "it is gone already"
    finally:
        for descriptor in (lock, directory):
            if descriptor is not None:
                os.close(descriptor)
    return None


def folder_size(folder: Path) -> int:
    """Bytes that a folder takes on the disk; a file with several names counts once, a link as itself."""
    seen: set[tuple[int, int]] = set()
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        total += status.st_blocks * 512
        except OSError:
            continue  # It went away meanwhile, or may not be read.
    return total


def _home(root: str | Path | None) -> Path | None:
    home = (Path(root).resolve() if root else root_of()) / "runs"
    if home.is_symlink():
        raise ValueError(f"{home} is a link, and cleaning follows none: name the folder above the real runs/ as root")
    return home if home.is_dir() else None


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of `runs/` is a run folder, or what a removal left of one, and no link."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    return entry.name.startswith(REMAINS) or os.path.isfile(os.path.join(entry.path, "launch.json"))


def _launched(folder: Path) -> float:
    try:
        return (folder / "launch.json").stat().st_mtime
    except OSError:
        return 0.0


def _candidate(folder: Path, status: os.stat_result, choice: Choice, newer: int) -> Candidate:
    name, attempt, since = _state(folder)
    age, size = max(0.0, time.time() - since), folder_size(folder)
    kept = _kept(folder, status, name, age, size, choice, newer)
    return Candidate(folder=folder, state=name, attempt=attempt, age=age, bytes=size, kept=kept)


def _state(folder: Path) -> tuple[str, int, float]:
    """State, attempt, and since when; "damaged" where its files cannot be read, unless someone holds its lock."""
    try:
        state = read_state(folder)
        return state.name, state.attempt, state.since or _launched(folder)
    except DAMAGED:
        attempt = holder(folder).get("attempt", 0)
        return ACTIVE[0] if is_locked(folder / "lock") else "damaged", attempt, _launched(folder)


def _untouchable(folder: Path, status: os.stat_result, state: str) -> str:
    """Why nothing in a run folder may be touched, whatever is asked; empty: it may."""
    if state in ACTIVE:
        return "it is live"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if status.st_dev != folder.parent.stat().st_dev:
        return "another disk is mounted there"
    if state == "lost" and (elsewhere := _elsewhere(holder(folder))):
        return f"it was lost on {elsewhere}, which alone can tell whether it lives"
    return ""


def _kept(folder: Path, status: os.stat_result, state: str, age: float, size: int, choice: Choice, newer: int) -> str:
    if why := _untouchable(folder, status, state):
        return why
    if not choice.chooses:
        return "not asked for"
    if newer < choice.keep:
        return f"among the {choice.keep} newest"
    if choice.states and state not in choice.states:
        return f"it is {state}"
    if choice.older is not None and age < choice.older:
        return "too young"
    if choice.larger is not None and size < choice.larger:
        return "too small"
    return ""


def _elsewhere(holder: dict[str, Any]) -> str | None:
    """The machine that held a lock, if it is another one."""
    same = holder.get("boot", "") in ("", boot()) or holder.get("host") == platform.node()
    return None if same else str(holder.get("host"))
