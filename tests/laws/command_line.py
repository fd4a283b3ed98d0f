"""What the tests of the command line share: calling it in this process, and a run that can be looked at."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import main
from toolkit.runs import EventWriter, current
from toolkit.runs.files import replace_json, take_lock
from toolkit.runs.roots import make_folder
from toolkit.runs.series import ensure
from toolkit.runs.state import write_holder

Json = dict[str, Any]


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, output and error output of one command."""
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    told = capsys.readouterr()
    return status, told.out, told.err


def command_json(*arguments: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command that succeeds prints as JSON."""
    status, out, err = command(*arguments, capsys=capsys)
    assert (status, err) == (0, "")
    return json.loads(out)


def work(loss: float) -> Json:
    """Three steps of a training that only tells."""
    context = current()
    context.events.write("state", {"state": "running", "controls": False, "total_steps": 3}, step=0)
    for step in (1, 2, 3):
        context.events.write("metrics", {"loss": loss / step, "tokens_per_second": 1000.0}, step=step)
    context.events.write("sample", {"prompt": "Once", "text": "[upon] a time"}, step=3)
    if loss < 0:
        raise ArithmeticError(f"loss {loss} is below zero")
    return {"loss": loss}


def write_run(root: Path, name: str, *, state: str = "finished", losses: tuple[float, ...] = (), ago: float = 0.0,
              recipe: Json | None = None) -> Path:  # fmt: skip
    """The folder of a run that is over, as a supervisor leaves it; `ago` in seconds since it ended."""
    folder, _ = make_folder(root, name)
    ended = time.time() - ago
    said = {"title": "FineTune", "entry": "x", "processes": 1, "time": ended, "attempt": 1}
    replace_json(folder / "launch.json", said)
    replace_json(folder / "recipe.json", recipe or {})
    lock = take_lock(folder / "lock")
    assert lock is not None
    write_holder(lock, 1)
    os.close(lock)
    events = EventWriter(folder, 0, 1)
    for step, loss in enumerate(losses, 1):
        events.write("metrics", {"loss": loss}, step=step)
    events.close()
    replace_json(folder / "state.json", {"name": state, "attempt": 1, "since": ended, "started": ended, "step": len(losses)})
    ensure(folder)
    os.utime(folder / "launch.json", (ended, ended))
    return folder


@contextmanager
def living(folder: Path, *, state: str = "running") -> Iterator[Path]:
    """Make a run live while the block runs: its lock is held by this process, as by a supervisor."""
    lock = take_lock(folder / "lock")
    assert lock is not None
    before = json.loads((folder / "state.json").read_text())
    write_holder(lock, before["attempt"])
    replace_json(folder / "state.json", {**before, "name": state, "controls": True})
    try:
        yield folder
    finally:
        replace_json(folder / "state.json", before)
        os.close(lock)
