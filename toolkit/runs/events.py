"""Events of a run: one JSON object a line, written by one rank, read by anyone at any time.

A line is `{"seq", "time", "attempt", "rank", "step", "kind", "data"}` in that order. A file that reaches 64 MiB is renamed
to `events-<rank>.<number>.jsonl` and a new one begun. A reader passes over a torn line and, once a run was resumed, over
what older attempts did from the resumed step on.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.runs.fields import fits
from toolkit.runs.files import number as number_in
from toolkit.runs.files import open_plain, plain

KINDS = ("metrics", "state", "command", "sample", "text", "blob", "timeline")
STEP_KINDS = ("metrics", "sample", "text", "blob", "timeline")
"""Kinds that a later attempt does again; states and commands stay as history."""
NUMBERS = {"seq": "a whole number", "time": "a number", "attempt": "a whole number", "step": "a whole number or null"}
ROTATE = 64 << 20
LARGEST = 1 << 20
HEAD = re.compile(rb'\{"seq":(\d+),"time":[^,]+,"attempt":(\d+),"rank":\d+,"step":(null|-?\d+),"kind":"([a-z_]+)",')
_encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"), default=number_in).encode


def rotated_files(folder: Path, rank: int) -> list[tuple[int, Path]]:
    """Number and path of the full event files of `rank`, oldest first."""
    found = [(path.name.split(".")[1], path) for path in folder.glob(f"events-{rank}.*.jsonl")]
    return sorted((int(middle), path) for middle, path in found if middle.isdecimal())


def event_files(folder: Path, rank: int) -> list[Path]:
    """The event files of `rank`, oldest first; the last one may still grow, and may not be there yet."""
    return [path for _, path in rotated_files(folder, rank)] + [folder / f"events-{rank}.jsonl"]


class EventWriter:
    """Writes the events of one rank: each line by one system call, from any thread."""

    def __init__(self, folder: Path, rank: int, attempt: int, *, rotate: int = ROTATE) -> None:
        self._path = Path(folder) / f"events-{rank}.jsonl"
        self._folder, self._rank, self._attempt, self._rotate = Path(folder), rank, attempt, rotate
        self._middle = f',"attempt":{attempt},"rank":{rank},"step":'
        self._lock = threading.Lock()
        self._unwritten = b""
        self._seq = _last_number(self._folder, rank)
        self._descriptor, self._size = self._open()
        if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
            self._unwritten = b"\n"  # The last attempt died in the middle of a line.

    def write(self, kind: str, data: dict[str, Any], step: int | None = None) -> int:
        """Append one event and return its number. Non-finite floats are stored as the text "NaN", "Infinity".

        Raises TypeError for what JSON cannot hold, ValueError for an event that belongs into a blob.
        """
        if kind not in KINDS:
            raise ValueError(f"event kind {kind!r}: expected one of {', '.join(KINDS)}")
        try:
            text = _encode(data)
        except ValueError:
            text = _encode(plain(data))
        if len(text) > LARGEST:
            raise ValueError(
                f"event of kind {kind!r} has {len(text)} characters: store it as a file in blobs/ and name that file in the event"
            )
        head = "null" if step is None else int(step)
        with self._lock:
            self._seq += 1
            line = f'{{"seq":{self._seq},"time":{time.time():.3f}{self._middle}{head},"kind":"{kind}","data":{text}}}\n'
            self._append(line.encode())
            return self._seq

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> tuple[int, int]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        return descriptor, os.fstat(descriptor).st_size

    def _append(self, line: bytes) -> None:
        """Write `line`, or keep it for the next call while the disk is full."""
        line = self._unwritten + line
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            written = 0
            if not self._unwritten.strip():
                print(f"scalebook: {self._path.name}: {error.strerror}; events are kept in memory for now", file=sys.stderr)
            if len(line) > LARGEST:
                raise
        self._unwritten = line[written:] if written < len(line) else b""
        self._size += written
        if self._size >= self._rotate and not self._unwritten:
            self._turn()

    def _turn(self) -> None:
        number = max((number for number, _ in rotated_files(self._folder, self._rank)), default=0) + 1
        os.rename(self._path, self._path.with_name(f"events-{self._rank}.{number:04d}.jsonl"))
        os.close(self._descriptor)
        self._descriptor, self._size = self._open()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The event in `line`, or None when the line is torn or is not an event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict) or not isinstance(event.get("kind"), str):
        return None
    event.setdefault("step", None)
    return event if all(name in event and fits(event[name], kind) for name, kind in NUMBERS.items()) else None


def resumed_from(event: dict[str, Any]) -> int | None:
    """The first step that the attempt of this event does itself, if the event tells: older attempts lose it.

    A state event says it by `"resumed": <steps already done>`, else the first metrics do.
    """
    done = event["data"].get("resumed") if event["kind"] == "state" else None
    if isinstance(done, int):
        return done + 1
    return event.get("step") if event["kind"] == "metrics" else None


def read_events(folder: Path, *, rank: int = 0, since: int = 0, kinds: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Events of `rank` numbered above `since`, oldest first, without the steps that a later attempt did again.

    `read_events(run.folder, kinds=("sample",))`
    """
    found: list[dict[str, Any]] = []
    attempt, settled = 0, True
    for line in _lines_after(Path(folder), rank, since):
        head = HEAD.match(line)
        if head is None:
            continue
        seq, of, _, kind = int(head[1]), int(head[2]), head[3], head[4].decode()
        if of > attempt:
            attempt, settled = of, attempt == 0 and of == 1
        wanted = seq > since and (kinds is None or kind in kinds)
        if not wanted and (settled or kind not in ("metrics", "state")):
            continue
        event = parse_line(line)
        if event is None:
            continue
        first = None if settled else resumed_from(event)
        if first is not None:
            settled = True
            found = [old for old in found if not _superseded(old, attempt, first)]
        if wanted:
            found.append(event)
    return found


def _superseded(event: dict[str, Any], attempt: int, first: int) -> bool:
    step = event["step"]
    return event["kind"] in STEP_KINDS and event["attempt"] < attempt and step is not None and step >= first


def _lines_after(folder: Path, rank: int, since: int) -> Iterator[bytes]:
    """Whole lines with numbers above `since`, in order; it may begin a little earlier, at a block's edge."""
    blocks: list[list[bytes]] = []
    for lines in _blocks_backwards(folder, rank):
        blocks.append(lines)
        head = next(filter(None, map(HEAD.match, lines)), None)
        if head is not None and int(head[1]) <= since:
            break
    for lines in reversed(blocks):
        yield from lines


def _blocks_backwards(folder: Path, rank: int, block: int = 1 << 18) -> Iterator[list[bytes]]:
    """Groups of whole lines, the last group first."""
    for path in reversed(event_files(folder, rank)):
        try:
            descriptor = open_plain(path)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            end, carry = os.fstat(descriptor).st_size, b""
            while end > 0:
                start = max(0, end - block)
                data = os.pread(file.fileno(), end - start, start) + carry
                cut = data.find(b"\n") + 1 if start else 0
                carry, data = (data, b"") if start and not cut else (data[:cut], data[cut:])
                end = start
                yield data.split(b"\n")


def _last_number(folder: Path, rank: int) -> int:
    for lines in _blocks_backwards(folder, rank):
        for line in reversed(lines):
            if head := HEAD.match(line):
                return int(head[1])
    return 0
