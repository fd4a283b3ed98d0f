"""Pages of a run's logs: the last lines of a rank, or the lines in which a word stands. Text only, bounded in every way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from toolkit.runs.files import open_plain
from widgets.view import harmless

__all__ = ["Page", "log_path", "read_page"]

MOST_LINES = 400
LONGEST_LINE = 2000
MOST_TEXT = 60_000
BLOCK = 1 << 18
SEARCHED = 64 << 20
"""Bytes from the end of a log that a search looks through."""
SHOWN = 1 << 21
"""Bytes from the end of a log in which the last lines are looked for."""

Page = dict[str, object]
"""{"text", "lines", "cut"}: `cut` says in words what is left out."""


def log_path(folder: Path, rank: int | str) -> Path:
    """The log of a rank, or of the "supervisor"."""
    return folder / ("supervisor.log" if rank == "supervisor" else f"rank-{int(rank)}.log")


def read_page(path: Path, words: str = "") -> Page:
    """The last lines of a log, or with `words` the last lines that hold them (upper and lower case alike).

    A progress bar that draws over itself counts as the line that it came to. A log that is not there is empty.

    Example:
        read_page(log_path(run.folder, 0), "loss")["text"]
    """
    wanted = words.casefold().encode()
    found: list[str] = []
    length, cut = 0, ""
    limit = SEARCHED if wanted else SHOWN
    for line in _backwards(path, limit):
        if wanted and wanted not in (line.lower() if line.isascii() else line.decode(errors="replace").casefold().encode()):
            continue
        text = _clean(line)
        if not text and not found:
            continue  # what follows the last line's end
        if len(found) == MOST_LINES or length + len(text) > MOST_TEXT:
            cut = "older lines are left out"
            break
        found.append(text)
        length += len(text) + 1
    else:
        if path.is_file() and path.stat().st_size > limit:
            cut = f"only the last {limit >> 20} MiB were read"
    return {"text": "\n".join(reversed(found)), "lines": len(found), "cut": cut}


def _clean(line: bytes) -> str:
    """The line as text: after its last carriage return, without control characters, cut in the middle where it is long."""
    line = line.rstrip(b"\r").rpartition(b"\r")[2]
    if len(line) > 4 * LONGEST_LINE:
        line = line[: 2 * LONGEST_LINE] + " … ".encode() + line[-LONGEST_LINE:]
    text = harmless(line.decode(errors="replace"), 8 * LONGEST_LINE)
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 4 :]}"
    return text


def _backwards(path: Path, limit: int) -> Iterator[bytes]:
    """Lines from the last to the first, of the last `limit` bytes.

    Of a line longer than 8 blocks only the ends are kept, so that memory stays bounded.
    """
    try:
        descriptor = open_plain(path)
    except OSError:
        return
    try:
        end = os.fstat(descriptor).st_size
        stop, carry = max(0, end - limit), b""
        while end > stop:
            start = max(0, end - BLOCK)
            data = os.pread(descriptor, end - start, start) + carry
            end = start
            carry, *lines = data.split(b"\n")
            if len(carry) >= 8 * BLOCK:
                carry = carry[:BLOCK] + carry[-BLOCK:]
            yield from reversed(lines)
        yield carry
    finally:
        os.close(descriptor)
