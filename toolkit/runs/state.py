"""The state of a run as a reader sees it: what the supervisor wrote, corrected by whether the supervisor still lives."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.runs import pulse
from toolkit.runs.fields import HOLDER, REPORT, STATE, checked, fits
from toolkit.runs.files import is_locked, read_json

ACTIVE = ("queued", "starting", "running", "pausing", "paused", "stopping")
FINAL = ("finished", "stopped", "failed", "lost")
GONE = "its folder is gone, and all that was in it"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """One moment of a run."""

    name: str
    """queued, starting, running, pausing, paused, stopping; final: finished, stopped, failed, lost."""
    attempt: int = 1
    """1, and one more at each resume."""
    step: int | None = None
    """Last optimizer step that was reported."""
    total_steps: int | None = None
    """Steps that the run will make, where it is known."""
    message: str = ""
    """One line for the person who looks."""
    report: dict[str, Any] | None = None
    """Of a failed run: rank, signal or exit or error, traceback, likely, remedy, tails."""
    since: float = 0.0
    """When this state began, in seconds since 1970."""
    started: float = 0.0
    """When this attempt began, in seconds since 1970."""
    controls: bool | None = None
    """Whether the work obeys pause, set and checkpoint; None: not known yet."""
    devices: tuple[str, ...] = ()
    """Devices that the run holds; empty: the CPU."""
    processes: tuple[int, ...] = ()
    """Process ids: the supervisor's, then the workers' by rank."""
    host: str = ""
    """Machine on which it runs."""
    silent: float | None = None
    """Seconds since the supervisor gave a sign, where it holds the run but has given none for 15 s; else None."""

    @property
    def final(self) -> bool:
        """Whether nothing will change any more, unless the run is resumed."""
        return self.name in FINAL

    @property
    def progress(self) -> float | None:
        """Part done, 0 to 1, where the number of steps is known."""
        return None if not self.total_steps else min(1.0, (self.step or 0) / self.total_steps)

    def __str__(self) -> str:
        steps = "" if self.step is None else f" · step {self.step}" + (f" of {self.total_steps}" if self.total_steps else "")
        again = f" · attempt {self.attempt}" if self.attempt > 1 else ""
        return self.name + steps + again + (f" · {self.message}" if self.message else "")


@cache
def boot() -> str:
    """What tells this machine, since it was started, from any other; one container from another it does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else platform.node()


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot: with its number it names one process for good (Linux)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def read_state(folder: Path) -> State:
    """State of the run in `folder`; "lost" when it is not final and its supervisor is gone.

    Raises ValueError, which names the file and the field, where what the folder says cannot be.
    """
    found, expected = _read(folder)
    if found.final and found.attempt >= expected["attempt"]:
        return found
    here = _is_here(expected)
    if not _holder_lives(folder, expected):
        found, _ = _read(folder)  # The final state is written before the lock is released: look once more.
        if found.final and found.attempt >= expected["attempt"]:
            return found
        there = folder.is_dir()
        return _changed(
            found,
            name="lost",
            message="its supervisor is gone; restart() resumes it" if there else GONE,
            attempt=expected["attempt"],
            since=pulse.last_beat(folder),
        )
    if found.attempt < expected["attempt"]:
        found = State(
            name="starting", attempt=expected["attempt"], since=expected["time"], started=expected["time"], host=expected["host"]
        )
    silent = pulse.silent_here(folder, expected.get("monotonic")) if here else 0.0
    return found if silent < pulse.STALE else _changed(found, silent=silent, message=_silence(silent, expected))


def supervised(folder: Path) -> bool:
    """Whether a living process keeps this folder: it holds the lock (here) or touches the heartbeat (elsewhere)."""
    return _holder_lives(folder, _lock_content(folder / "lock"))


def _read(folder: Path) -> tuple[State, dict[str, Any]]:
    expected = {"attempt": 1, "host": "", "boot": "", "time": 0.0, **_lock_content(folder / "lock")}
    data = read_json(folder / "state.json")
    if data is None:
        return State(name="starting", attempt=0), expected
    path = str(folder / "state.json")
    known = {name: value for name, value in checked(data, STATE, path).items() if name in STATE}
    if known.get("name") not in (*ACTIVE, *FINAL):
        raise ValueError(f"{path}: name: expected one of {', '.join((*ACTIVE, *FINAL))}, got {known.get('name')!r}")
    if known.get("report"):
        checked({"rank": None, **known["report"]}, REPORT, f"{path}: report")
    for name in ("devices", "processes"):
        known[name] = tuple(known.get(name, ()))
    return State(**known), expected


def _lock_content(path: Path) -> dict[str, Any]:
    for _ in range(3):
        try:
            return {name: value for name, value in read_json(path, {}).items() if name in HOLDER and fits(value, HOLDER[name])}
        except (ValueError, AttributeError):
            time.sleep(0.002)  # Its holder was writing it.
    return {}


def holder(folder: Path) -> dict[str, Any]:
    """Who keeps the run in `folder`, or kept it last: `attempt, host, boot, time`, and `pid, start` of a supervisor."""
    return _lock_content(folder / "lock")


def write_holder(lock: int, attempt: int, *, keeper: bool = False) -> None:
    """Write into the `lock` file, whose lock the descriptor `lock` holds, who holds it for which attempt.

    `keeper`: this process keeps the run, rather than passing the lock on.
    """
    found: dict[str, Any] = {"attempt": attempt, "host": platform.node(), "boot": boot()}
    found |= {"time": time.time(), "monotonic": time.monotonic()}
    if keeper:
        found |= {"pid": os.getpid(), "start": start_time(os.getpid())}
    text = json.dumps(found).encode()
    os.pwrite(lock, text.ljust(256), 0)
    os.ftruncate(lock, max(256, len(text)))


def _changed(state: State, **changes: Any) -> State:
    return State(**{name: changes.get(name, getattr(state, name)) for name in State.__dataclass_fields__})


def _is_here(expected: dict[str, Any]) -> bool:
    """Whether the run is kept on this machine."""
    return expected.get("boot", "") in ("", boot())


def _holder_lives(folder: Path, expected: dict[str, Any]) -> bool:
    return is_locked(folder / "lock") if _is_here(expected) else pulse.silent_elsewhere(folder) < pulse.STALE


def _silence(seconds: float, expected: dict[str, Any]) -> str:
    process = f" (process {expected['pid']})" if "pid" in expected else ""
    return (
        f"its supervisor{process} has given no sign for {seconds:.0f} s: what is shown may be old; "
        "kill -CONT lets a stopped one go on, kill() ends the run"
    )


def end_silent(folder: Path) -> bool:
    """Kill the supervisor of `folder`, which gives no sign: the workers end with it. Whether there was one to kill."""
    expected = holder(folder)
    pid = expected.get("pid")
    if pid is None or not _is_here(expected) or start_time(pid) != expected.get("start"):
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
