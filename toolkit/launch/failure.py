"""Who failed first, why that may be, and what helps."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.launch.memory import Memory
from toolkit.launch.watch import in_collective, main_stack, place
from toolkit.runs.files import read_json
from toolkit.runs.report import tail

CONNECTION = re.compile(
    r"connection (closed|reset|refused|was closed)|broken pipe|gloo|nccl|socket|tcpstore|rendezvous|"
    r"peer|store->get|wait timeout",
    re.IGNORECASE,
)
CONNECTION_KINDS = {"ConnectionError", "DistBackendError", "DistNetworkError", "DistStoreError", "PeerFailed"}
TAIL_LINES = 20

LESS = 'Use fewer micro_rows, a smaller context, Plan(dp_shard=...) over more processes, or dtype="bfloat16"; then restart()'
ROOM = "Free space; then restart() goes on from the newest checkpoint"
SIGNALS = {
    "SIGKILL": ("out of memory, or killed from outside (kill -9, a limit of the job)", LESS),
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
    (re.compile("OutOfMemoryError|MemoryError|out of memory|(can't|Cannot) allocate memory"), "out of memory", LESS),
    (
        re.compile("ModuleNotFoundError|ImportError"),
        "a module is missing in the workers, or is found under another name there",
        "Install it into the environment of this kernel, or put its folder on sys.path before launch",
    ),
    (re.compile("No space left on device|Disk quota exceeded"), "the disk is full", ROOM),
    (re.compile("File too large"), "a file grew beyond the limit of this user or job (ulimit -f)", f"Raise the limit. {ROOM}"),
    (
        re.compile("Read-only file system"),
        "the disk can only be read: it was mounted so, or the system has found it damaged",
        "Make it writable, or copy the run folder elsewhere; then restart() goes on from the newest checkpoint",
    ),
    (
        re.compile("Input/output error|Stale file handle"),
        "the disk does not work as it should",
        "Look at the system's log, copy the run folder to another disk; then restart() goes on from the newest checkpoint",
    ),
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
    """Which worker."""
    code: int
    """Exit code, or minus the signal's number."""
    time: float
    """When it was seen, on the machine's monotonic clock, as the errors that the workers leave."""
    memory: Memory | None = None
    """What was free on the machine at most a second or two before."""


def report(
    folder: Path, failed: list[Ended], ranks: int, *, memory_kills: int, stacks: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """The report of state.json about the workers that failed by themselves.

    The first in this order is to blame: a signal, an error or exit of its own, a connection that broke because a peer
    was gone; among equals the earlier. `memory_kills`: how often the out-of-memory killer struck meanwhile. `stacks`: of
    ranks that still lived then, where they were.
    """
    errors = {ended.rank: read_json(folder / f"error-{ended.rank}.json") for ended in failed}
    first = min(failed, key=lambda ended: (_order(ended, errors[ended.rank]), _moment(ended, errors[ended.rank])))
    error = errors[first.rank]
    found: dict[str, Any] = {"rank": first.rank}
    if first.code < 0:
        name = signal_name(-first.code)
        likely, remedy = SIGNALS.get(name, ("the process was ended by a signal", "restart() goes on from the newest checkpoint"))
        if name == "SIGKILL" and memory_kills:
            likely = "out of memory: Linux's out-of-memory killer struck during this run"
        elif name == "SIGKILL" and first.memory is not None:
            likely = (
                f"out of memory: {first.memory} just before"
                if first.memory.short
                else f"killed from outside (kill -9, a limit of the job): memory was not short, {first.memory} just before"
            )
            if not first.memory.short:
                remedy = f"restart() goes on from the newest checkpoint. If it was memory after all: {LESS}"
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
    if stacks:
        found["stacks"] = {str(rank): main_stack(text) for rank, text in stacks.items()}
        if _order(first, error) == 2:
            where = "; ".join(f"rank {rank} {place(text)}" for rank, text in stacks.items())
            found["likely"] = f"{found['likely']}; when it broke, {where}"
    return found | {"tails": _tails(folder, ranks)}


def _tails(folder: Path, ranks: int) -> dict[str, str]:
    return {str(rank): tail(folder / f"rank-{rank}.log", TAIL_LINES) for rank in range(ranks)}


def consequence(folder: Path, ended: Ended) -> bool:
    """Whether a rank failed only because another one did."""
    return _order(ended, read_json(folder / f"error-{ended.rank}.json")) == 2


def hang(folder: Path, dumps: Mapping[int, str], stopped: Mapping[int, str], ranks: int, seconds: float) -> dict[str, Any]:
    """The report about a run in which a rank has waited for another one for `seconds`.

    `dumps`: the stacks of every rank that could be asked; `stopped`: the signals that stopped the others. To blame is a
    rank that is stopped, else one that does not answer, else one that is not waiting.
    """
    where = {rank: f"is stopped by {stopped[rank]}" if rank in stopped else place(dumps.get(rank, "")) for rank in range(ranks)}
    waiting = [rank for rank in where if rank not in stopped and in_collective(dumps.get(rank, ""))]
    others = sorted(set(where) - set(waiting), key=lambda rank: (rank not in stopped, bool(dumps.get(rank)), rank))
    blamed = others[0] if others else 0
    if not others:
        likely = "every rank waits, for different collectives or in a different order"
    elif blamed in stopped:
        likely = f"rank {blamed} was stopped from outside (kill -STOP, a debugger), and the others wait for it"
    else:
        likely = f"rank {blamed} does not take part in the collective that the others wait in"
    told = "; ".join(f"rank {rank} {text}" for rank, text in where.items())
    return {
        "rank": blamed,
        "error": f"hang: no rank has gone on for {seconds:.0f} s: {told}",
        "likely": likely,
        "remedy": "Look at the stacks: all ranks have to call the same collectives in the same order. "
        "Local(silence=...) allows longer waits; restart() goes on from the newest checkpoint",
        "stacks": {str(rank): main_stack(text) for rank, text in dumps.items()},
        "tails": _tails(folder, ranks),
    }


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
