"""Who failed first, why that may be, and what helps."""

from __future__ import annotations

import re
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs.files import read_json
from toolkit.runs.report import tail

CONNECTION = re.compile(
    r"connection (closed|reset|refused|was closed)|broken pipe|gloo|nccl|socket|tcpstore|rendezvous|"
    r"peer|store->get|wait timeout",
    re.IGNORECASE,
)
CONNECTION_KINDS = {"ConnectionError", "DistBackendError", "DistNetworkError", "DistStoreError"}
TAIL_LINES = 20

SIGNALS = {
    "SIGKILL": (
        "out of memory, or killed from outside (kill -9, a limit of the job)",
        "Use a smaller batch or context, more processes with dp_shard, or a machine with more memory; then restart()",
    ),
    "SIGBUS": ("shared memory or the disk is full", "Free space in /dev/shm or on the disk; then restart()"),
    "SIGSEGV": (
        "native code crashed; the last lines show where Python was",
        "Restart(); if it comes back, look at the extension named there",
    ),
    "SIGABRT": ("native code gave up; its message is in the last lines", "Read the last lines; then restart()"),
    "SIGTERM": ("something outside asked the process to end", "restart() goes on from the newest checkpoint"),
    "SIGINT": ("the process was interrupted from outside", "restart() goes on from the newest checkpoint"),
}
ERRORS = (
    (
        re.compile("OutOfMemoryError|MemoryError|out of memory|can't allocate memory"),
        "out of memory",
        "Use a smaller batch or context, or more processes with dp_shard; then restart()",
    ),
    (
        re.compile("ModuleNotFoundError|ImportError"),
        "a module is missing in the workers, or is found under another name there",
        "Install it into the environment of this kernel, or put its folder on sys.path before launch",
    ),
    (re.compile("No space left on device|Disk quota exceeded"), "the disk is full", "Free space; then restart()"),
    (
        re.compile("result.json"),
        "the work returned something that is not JSON",
        "Return numbers, text, lists or dictionaries; save tensors to a file",
    ),
)


@dataclass(slots=True)
class Ended:
    """How one worker ended."""

    rank: int
    code: int
    """Exit code, or minus the signal's number."""
    time: float
    """When it was seen, in seconds since 1970."""


def report(folder: Path, failed: list[Ended], ranks: int, *, memory_kills: int) -> dict[str, Any]:
    """The report of state.json about the workers that failed by themselves.

    The first in this order is to blame: a signal, an error or exit of its own, a connection that broke because a peer
    was gone; among equals the earlier. `memory_kills`: how often the out-of-memory killer struck meanwhile.
    """
    errors = {ended.rank: read_json(folder / f"error-{ended.rank}.json") for ended in failed}
    first = min(failed, key=lambda ended: (_order(ended, errors[ended.rank]), _moment(ended, errors[ended.rank])))
    error = errors[first.rank]
    found: dict[str, Any] = {"rank": first.rank}
    if first.code < 0:
        name = signal_name(-first.code)
        likely, remedy = SIGNALS.get(name, ("the process was ended by a signal", "restart() goes on from the newest checkpoint"))
        if name == "SIGKILL" and memory_kills:
            likely = "out of memory: Linux's out-of-memory killer struck on this machine during this run"
        found |= {"signal": name, "likely": likely, "remedy": remedy}
    elif error:
        text = f"{error['type']}: {error['message']}"
        likely, remedy = (
            "the code of the run raised it",
            "Correct the code or the recipe, and launch again; restart() runs the same again",
        )
        if _order(first, error) == 2:
            likely, remedy = (
                "the connection to another rank broke, and no rank says why",
                "Look at the last lines of every rank; then restart()",
            )
        likely, remedy = next(((a, b) for pattern, a, b in ERRORS if pattern.search(text)), (likely, remedy))
        found |= {"error": text, "traceback": error["traceback"], "likely": likely, "remedy": remedy}
    else:
        found |= {
            "exit": first.code,
            "likely": "the process ended itself, or could not start; its last lines say more",
            "remedy": "Correct what the last lines name; then launch again",
        }
    found["tails"] = {str(rank): tail(folder / f"rank-{rank}.log", TAIL_LINES) for rank in range(ranks)}
    return found


def traceback_of(error: BaseException) -> str:
    """The traceback as text, without the launcher's own frames at its top."""
    here, frames = str(Path(__file__).parent), error.__traceback__
    while frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename.startswith(here):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def signal_name(number: int) -> str:
    """SIGKILL for 9; "signal 64" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _order(ended: Ended, error: dict[str, Any] | None) -> int:
    if ended.code < 0 and signal_name(-ended.code) != "SIGABRT":
        return 0
    if error and (
        CONNECTION_KINDS & set(error["kinds"]) or ("RuntimeError" in error["kinds"] and CONNECTION.search(error["message"]))
    ):
        return 2
    return 1


def _moment(ended: Ended, error: dict[str, Any] | None) -> float:
    return error["time"] if error else ended.time
