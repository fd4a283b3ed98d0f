"""Which rank no longer moves, and what every rank waits in: seen from outside, without a word from the rank.

The kernel counts how long the main thread of a process has run and how often it was woken. Where neither grows for long,
the rank is asked for its stack by a signal that Python answers even inside native code. A rank that waits in a collective
then means a run that hangs; one that sleeps, reads or computes is left alone. (Linux; elsewhere the timeout of the
process groups ends such a run.)
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ASK = signal.SIGUSR2
"""Asks a rank for its stacks. Not SIGUSR1: Slurm and what listens to it use that one."""
LONGEST_LOOK = 2.0
"""Seconds that one look may add to a rank's silence: a machine that slept, or a supervisor that was stopped, adds no more."""
FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')
COLLECTIVE = "/torch/distributed/"
NATIVE = "/torch/autograd/"
"""Python file whose native code waits for other threads, of which one may wait in a collective."""
INNERMOST = 6
"""Frames in which the wait for a collective shows."""
LEAVES = "launch/meeting.py"
OURS = ("/launch/worker.py", "/launch/code.py", "<frozen runpy>")
"""Files of the outermost frames, which are the same in every rank."""


def answer(folder: Path, rank: int) -> None:
    """In a worker: write the stacks of all threads to `stacks-<rank>.txt` whenever ASK comes. It ignores ASK before."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / f"stacks-{rank}.txt", flags, 0o600)  # Open for the life of the process.
    faulthandler.register(ASK, file=descriptor, all_threads=True)


def stacks(folder: Path, pids: Mapping[int, int], *, patience: float = 2.0) -> dict[int, str]:
    """The newest stacks of each rank in `pids` (rank -> process), as faulthandler prints them; "" without an answer."""
    before = {rank: _size(folder, rank) for rank in pids}
    for pid in pids.values():
        try:
            os.kill(pid, ASK)
        except ProcessLookupError:
            continue
    until, sizes = time.monotonic() + patience, dict(before)
    while time.monotonic() < until:
        time.sleep(0.1)
        now = {rank: _size(folder, rank) for rank in pids}
        if now == sizes and all(now[rank] > before[rank] for rank in pids):
            break
        sizes = now
    return {rank: _text(folder, rank, before[rank]) for rank in pids}


def main_stack(dump: str) -> str:
    """Of the stacks of all threads that of the main one, which answers the signal; the innermost frame comes first."""
    lines = dump.rpartition("Current thread")[2].rstrip().splitlines()[1:]
    while lines and any(name in lines[-1] for name in OURS):
        lines.pop()
    return "\n".join(lines)


def in_collective(dump: str) -> bool:
    """Whether the main thread waits for other ranks."""
    innermost = main_stack(dump).splitlines()[:INNERMOST]
    if innermost and NATIVE in innermost[0]:
        blocks = re.split(r"^(?:Current t|T)hread .*$", dump, flags=re.MULTILINE)
        innermost = [line for block in blocks for line in block.strip("\n").splitlines()[:INNERMOST]]
    return any(COLLECTIVE in line for line in innermost) and not any(LEAVES in line for line in innermost)


def place(dump: str) -> str:
    """Where the main thread is: what it waits in, and the line of the run's own code that led there."""
    frames = [found for line in main_stack(dump).splitlines() if (found := FRAME.match(line))]
    if not frames:
        return "gives no answer"
    if any(LEAVES in found["file"] and found["name"] == "leave" for found in frames):
        return "has finished its work"
    own = next((found for found in frames if not re.search(r"/(site-packages|torch|lib/python[\d.]+)/", found["file"])), None)
    called = [found for found in frames[:INNERMOST] if COLLECTIVE in found["file"] and "logger" not in found["file"]]
    inner = called[-1] if called else frames[0]
    text = f"{'waits' if in_collective(dump) else 'is'} in {inner['name']}"
    return text + (f" ({Path(own['file']).name}:{own['line']} in {own['name']})" if own else "")


@dataclass(slots=True)
class Watch:
    """How long each rank has not moved."""

    silence: float | None
    """Seconds without a move after which a rank is asked what it does; None: never."""
    moves: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """What each rank had done at the last look, in figures that change when it moves."""
    still: dict[int, float] = field(default_factory=dict)
    """Seconds for which each rank has not moved."""
    looked: float = field(default_factory=time.monotonic)
    """When the last look was, on the machine's monotonic clock."""

    def look(self, pids: Mapping[int, int]) -> list[int]:
        """The ranks of `pids` (rank -> process) that have not moved for `silence` seconds; to be called every second or so."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, LONGEST_LOOK), now
        if self.silence is None:
            return []
        for rank, pid in pids.items():
            move = _move(pid)
            stays = move is not None and move == self.moves.get(rank)
            self.still[rank] = self.still.get(rank, 0.0) + passed if stays else 0.0
            self.moves[rank] = move or ()
        return [rank for rank in pids if self.still[rank] >= self.silence]

    def forget(self) -> None:
        """Count from now on."""
        self.still.clear()


def _move(pid: int) -> tuple[str, ...] | None:
    """What grows whenever the main thread runs or is woken; None where it cannot be told."""
    try:
        times = Path(f"/proc/{pid}/task/{pid}/stat").read_bytes().rpartition(b")")[2].split()[11:13]
        lines = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return (*map(bytes.decode, times), *(line for line in lines if "ctxt_switches" in line))


def _size(folder: Path, rank: int) -> int:
    try:
        return (folder / f"stacks-{rank}.txt").stat().st_size
    except OSError:
        return 0


def _text(folder: Path, rank: int, start: int) -> str:
    try:
        with open(folder / f"stacks-{rank}.txt", "rb") as file:
            file.seek(start)
            return file.read(1 << 18).decode(errors="replace")
    except OSError:
        return ""
