"""Starting runs: `launch(recipe, on=Local(processes=2))` returns at once with a Run.

`launch(function, *arguments)` runs any function in worker processes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.launch.code import describe, find, is_recipe
from toolkit.launch.devices import Held, release
from toolkit.launch.in_process import InProcess
from toolkit.launch.local import Local, processes_for
from toolkit.runs.control import begin_attempt
from toolkit.runs.files import check_own, read_owned, replace_json, take_lock
from toolkit.runs.listing import remind
from toolkit.runs.rewind import rewind
from toolkit.runs.roots import make_folder, remember, root_of
from toolkit.runs.run import Run, RunInactive
from toolkit.runs.state import read_state, start_time, write_holder
from toolkit.values import dump, load

__all__ = ["InProcess", "Local", "Run", "launch", "restart"]


def launch(
    work: Any,
    *arguments: Any,
    on: Local | InProcess = Local(),
    name: str | None = None,
    resume: bool = False,
    durable: bool = True,
    root: str | Path | None = None,
) -> Run:
    """Start `work`, a recipe or a function called with `arguments`, and return its Run.

    `name`: the run's id; one that exists is an error unless `resume`, which goes on in that folder. `durable`: whether
    the run outlives this kernel. `root`: the folder under which `runs/` lies (default: this project). Raises ValueError
    or TypeError before anything is started, PermissionError for a folder that others may write.
    `run = launch(FineTune(...), on=Local(processes=2)); result = await run`
    """
    processes_for(work, getattr(on, "processes", 1))
    if is_recipe(work) and hasattr(type(work), "checker"):
        find(type(work).checker)(work)
    remind()
    place = Path(root).resolve() if root else root_of()
    folder, made = make_folder(place, name)
    if not made and not resume:
        raise FileExistsError(f"run {name!r} exists in {place / 'runs'}: choose another name, or launch(..., resume=True)")
    check_own(folder)
    try:
        with _locked(folder) as locks:
            said, recipe = describe(work, arguments, folder, travels=isinstance(on, Local))
            settled, locks.held = on.settle(folder, processes_for(work, getattr(on, "processes", 1)))
            said |= settled | _here() | {"attempt": _attempt(folder, made), "on": dump(on), "durable": durable}
            replace_json(folder / "recipe.json", recipe)
            remember(place)
            _prepare(folder, said, locks)
        on.start(folder, locks.run, locks.held, work, arguments)
    except BaseException:
        if made and not (folder / "state.json").exists():  # Nobody has kept this run for a moment.
            shutil.rmtree(folder)
        raise
    return Run(folder)


def restart(run: Run, step: int | None = None) -> Run:
    """Start a run that is over again, in its folder, as its next attempt; training goes on from its newest checkpoint.

    `step`: go on from the checkpoint of that step instead; newer ones are set aside (`toolkit.runs.rewind`), and what
    was done after it is done again. Raises ValueError where there is no such checkpoint.
    """
    check_own(run.folder)
    said = json.loads(read_owned(run.folder / "launch.json"))
    on = load(said["on"], Local | InProcess)
    if isinstance(on, InProcess):
        raise ValueError(f"run {run.id} ran inside a kernel: launch it again with name={run.id!r}, resume=True")
    with _locked(run.folder) as locks:
        settled, locks.held = on.settle(run.folder, said["processes"])
        if step is not None:
            rewind(run.folder, step)
        said |= settled | {"attempt": _attempt(run.folder, False), "kernel": _here()["kernel"]}
        _prepare(run.folder, said, locks)
    on.start(run.folder, locks.run, locks.held)
    return run


@dataclass
class _Locks:
    """What the launcher holds until the supervisor takes it over."""

    run: int
    held: Held = Held()


@contextmanager
def _locked(folder: Path) -> Iterator[_Locks]:
    """Hold the run's lock; it and the devices are given back if the block raises, else the caller passes them on."""
    lock = take_lock(folder / "lock")
    if lock is None:
        raise RunInactive(
            f"run {folder.name} is {read_state(folder).name}: stop it first, or look at it with Run.attach({folder.name!r})"
        )
    locks = _Locks(lock)
    try:
        yield locks
    except BaseException:
        os.close(locks.run)
        release(locks.held)
        raise


def _prepare(folder: Path, said: dict[str, Any], locks: _Locks) -> None:
    begin_attempt(folder, said["attempt"])
    replace_json(folder / "launch.json", said)
    write_holder(locks.run, said["attempt"])  # Last: from here on what the attempts before came to is history.


def _attempt(folder: Path, made: bool) -> int:
    """Number of the attempt that begins now. The state knows of attempts whose supervisor never came up, too."""
    return 1 if made or not (folder / "launch.json").exists() else read_state(folder).attempt + 1


def _here() -> dict[str, Any]:
    """What the workers take over from this process."""
    return {
        "time": time.time(),
        "restart": "toolkit.launch:restart",
        "python": sys.executable,
        "directory": os.getcwd(),
        "sys_path": [os.path.abspath(place) for place in sys.path],
        "kernel": {"pid": os.getpid(), "start": start_time(os.getpid()), "host": platform.node()},
    }
