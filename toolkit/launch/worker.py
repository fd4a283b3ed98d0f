"""One rank of a run: `python -P -m toolkit.launch.worker FOLDER RANK`, started by the supervisor, never by hand."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from toolkit.launch.code import work_of
from toolkit.launch.failure import traceback_of
from toolkit.launch.processes import PARENT, die_with
from toolkit.launch.rank import join, keep
from toolkit.launch.watch import answer
from toolkit.runs.context import enter
from toolkit.runs.files import read_owned, replace_json
from toolkit.runs.reserve import written


class Terminated(BaseException):
    """The supervisor asked this rank to end: `finally` blocks run, `except Exception` does not catch it."""


def main(folder: Path, rank: int) -> None:
    """Be rank `rank` of the run in `folder` until its work is done."""
    die_with(int(os.environ[PARENT]))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable()
    answer(folder, rank)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _work(folder, rank)
    except Terminated:
        print("scalebook: ended, as the supervisor asked", file=sys.stderr)
        os._exit(1)
    except BaseException as error:
        _report(folder, rank, error)
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)  # Not sys.exit: a process group whose peers are gone can hang in its destructor.


def _work(folder: Path, rank: int) -> None:
    launched = json.loads(read_owned(folder / "launch.json"))
    sys.path += [place for place in launched["sys_path"] if place not in sys.path]
    context, leave = join(folder, launched, rank)
    enter(context)
    work = work_of(launched, folder)
    if launched["entry"] is None:
        context.events.write("state", {"state": "running"})
    returned = work(context)
    if rank == 0:
        keep(folder, returned)
    leave()
    context.events.close()
    gc.freeze()  # Else the interpreter goes through all of torch once more before it ends: half a second.


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated()


def _report(folder: Path, rank: int, error: BaseException) -> None:
    """Print the traceback, and store it for the supervisor. Either may fail on a full disk."""
    text = traceback_of(error)
    with suppress(OSError):
        print(text, file=sys.stderr)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    data = {
        "type": type(error).__name__,
        "kinds": kinds,
        "message": str(error)[:4000],
        "traceback": text[-20000:],
        "time": time.monotonic(),
    }
    try:
        written(folder, lambda: replace_json(folder / f"error-{rank}.json", data, sync=False))
    except OSError as cause:
        with suppress(OSError):
            print(f"scalebook: error-{rank}.json: {cause}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
