"""`runs tail`: the last lines that a rank printed, and with `--follow` what it prints from then on."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import BinaryIO

from toolkit.cli.answers import print_json, printable
from toolkit.runs import Run
from toolkit.runs.files import open_plain

KEYS = ("run", "rank", "lines")
MOST = 1 << 18
"""Bytes at the end of a log in which its last lines are looked for."""
POLL_SECONDS = 0.2


def fill(parser: argparse.ArgumentParser) -> None:
    """Which log, and how much of it."""
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="number of lines (default: 50)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what it prints from now on, until it ends")
    parser.add_argument("--rank", default="0", help='number of the rank, or "supervisor" (default: 0)')


def tail(run: Run, chosen: argparse.Namespace) -> int:
    """Print the end of a log, and follow it if asked to: every line once, and whole."""
    with os.fdopen(open_plain(_log(run, chosen)), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MOST))
        whole, rest = _split(file.read())
        if rest and not (chosen.follow and run.alive):
            whole, rest = [*whole, rest], b""
        _say(run, chosen, _text(whole)[-chosen.lines :] if chosen.lines else [], always=chosen.json)
        if chosen.follow:
            _follow(run, chosen, file, rest)
    return 0


def _log(run: Run, chosen: argparse.Namespace) -> Path:
    if chosen.rank != "supervisor" and not chosen.rank.isdecimal():
        raise ValueError(f'--rank: expected a number or "supervisor", got {chosen.rank}')
    if chosen.lines < 0:
        raise ValueError(f"--lines: expected a number of lines, got {chosen.lines}")
    log = run.folder / ("supervisor.log" if chosen.rank == "supervisor" else f"rank-{int(chosen.rank)}.log")
    if not log.is_file():
        there = sorted(path.stem.removeprefix("rank-") for path in run.folder.glob("*.log"))
        raise ValueError(f"--rank {chosen.rank}: run {run.id} has no such log; there are: {', '.join(there) or 'none'}")
    return log


def _follow(run: Run, chosen: argparse.Namespace, file: BinaryIO, rest: bytes) -> None:
    """Print what comes behind `rest`, the line that was not whole yet, until the run is over."""
    over = False
    while not over:
        over = not run.alive  # Before the last look: what it wrote until then is seen.
        whole, rest = _split(rest + file.read())
        _say(run, chosen, _text([*whole, rest] if over and rest else whole))
        time.sleep(0 if over else POLL_SECONDS)


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines, and what stands behind the last of them."""
    *whole, rest = data.split(b"\n")
    return whole, rest


def _text(lines: list[bytes]) -> list[str]:
    """As text; what a progress bar has written over counts as lines too."""
    return [part for line in lines for part in line.decode(errors="replace").splitlines() or [""]]


def _say(run: Run, chosen: argparse.Namespace, lines: list[str], *, always: bool = False) -> None:
    if chosen.json and (lines or always):
        print_json({"run": run.id, "rank": chosen.rank, "lines": lines})
    elif lines:
        print(printable("\n".join(lines)), flush=True)
