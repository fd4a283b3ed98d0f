"""What the command line answers with: an exit status, one line about what is wrong, a table, or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OK, FAILED, BAD_INPUT, NO_RUN, INTERRUPTED = 0, 1, 2, 3, 130
STATUSES = f"""\
exit status:
  {OK}    done
  {FAILED}    the run or the job failed, or doctor found something that keeps this machine from training
  {BAD_INPUT}    the arguments cannot be used; one line says which and what to do, nothing was started
  {NO_RUN}    there is no such run, or it is over and obeys no command any more
  {INTERRUPTED}  interrupted; a run that was only watched goes on"""


class BadInput(ValueError):
    """Arguments that cannot be used; the message is what the user reads."""

    status = BAD_INPUT


class NoRun(BadInput):
    """A run that does not exist, or that obeys no command any more."""

    status = NO_RUN


def program() -> str:
    """What the user typed to get here, for texts that say what to type next."""
    return "scalebook" if Path(sys.argv[0]).name == "scalebook" else "python -m toolkit"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(data: Any) -> None:
    """Print one line of JSON; a float that JSON has no word for is a string."""
    from toolkit.runs.files import plain

    print(json.dumps(plain(data), ensure_ascii=False, allow_nan=False), flush=True)


def json_help(keys: Sequence[str], what: str = "one object") -> str:
    """The line under a command's help that says what `--json` prints."""
    return f"--json prints {what} with: {', '.join(keys)}"


def duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> duration(95)
    '1 min 35 s'
    """
    whole = math.ceil(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {part}"
    return f"{whole} s"


def printable(text: str) -> str:
    """`text` from a run without what would steer a terminal: control characters are shown as escapes.

    >>> printable("red\\x1b[31m")
    'red\\\\x1b[31m'
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
