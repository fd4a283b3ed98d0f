"""One rank inside the calling thread, for a debugger: no supervisor, no pause, and the cell blocks until it is over."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.launch.code import is_recipe, work_of
from toolkit.launch.devices import Held, allocate, gpus, release
from toolkit.launch.failure import traceback_of
from toolkit.launch.keeper import Keeper
from toolkit.launch.rank import join, keep, torchrun_variables
from toolkit.runs import control
from toolkit.runs.context import Context, current, enter
from toolkit.runs.files import read_json
from toolkit.values import check

MOMENT = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class InProcess:
    """Run in the calling thread: `launch(recipe, on=InProcess())` returns when it is over. Interrupting stops and keeps."""

    devices: Literal["auto", "cpu"] = "auto"
    """"auto": the first GPU that this process sees, else the CPU; "cpu"."""
    threads: int | None = None
    """Threads to compute with, 1 or more; None: as many as torch uses here now."""

    def __post_init__(self) -> None:
        check(self)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"InProcess.threads {self.threads}: expected 1 or more")

    def settle(self, folder: Path, processes: int) -> tuple[dict[str, Any], Held]:
        """What launch.json says about processes, threads and devices; the device, locked for `folder`."""
        if current() is not None:
            raise ValueError("InProcess inside a run: this process is a rank already")
        import torch

        found = gpus() if self.devices == "auto" else ()
        held = allocate(1, found[:1], str(folder)) if found else Held()
        settled = {
            "processes": processes,
            "threads": self.threads or torch.get_num_threads(),
            "queue": 0,
            "indices": [],
            "devices": [device.name for device in held.devices],
        }
        return settled, held

    def start(self, folder: Path, lock: int, held: Held, work: Any = None, arguments: tuple[Any, ...] = ()) -> None:
        """Do the work of a prepared folder here and now. What it raises is raised, after it was written down."""
        name, message, report = "failed", "", None
        try:
            launched = read_json(folder / "launch.json")
            function = work_of(launched, folder) if is_recipe(work) else lambda context: work(*arguments)
            keeper = Keeper(folder, lock, launched["attempt"], 1)
            keeper.show("starting", devices=launched["devices"])
        except BaseException:
            os.close(lock)
            release(held)
            raise
        try:
            with ExitStack() as inside:
                inside.enter_context(_kept(keeper))
                inside.enter_context(_interruptible(keeper))
                inside.enter_context(_variables(torchrun_variables(launched, folder, 0)))
                context = inside.enter_context(_joined(folder, launched))
                if launched["entry"] is None:
                    context.events.write("state", {"state": "running"})
                keep(folder, function(context))
            name = "finished"
        except KeyboardInterrupt:
            name, message = "stopped", "interrupted"
        except BaseException as error:
            message = f"rank 0: {type(error).__name__}: {error}"
            report = {
                "rank": 0,
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback_of(error),
                "tails": {},
                "likely": "the code of the run raised it",
                "remedy": "Correct the code or the recipe, and launch again",
            }
            raise
        finally:
            release(held)
            keeper.finish(name, message=message, report=report)


@contextmanager
def _kept(keeper: Keeper) -> Iterator[None]:
    """Heartbeat, events and commands, looked after by a thread."""
    over, here = threading.Event(), threading.get_ident()

    def look() -> None:
        seen = 0
        while not over.wait(MOMENT):
            keeper.tick()
            for command in keeper.commands(seen):
                seen = command["n"]
                if command["command"] == "kill" or (command["command"] == "stop" and not keeper.data["controls"]):
                    signal.pthread_kill(here, signal.SIGINT)  # Python raises it only where `here` is the main thread.
                keeper.expect(command["command"])

    thread = threading.Thread(target=look, name="scalebook-keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _interruptible(keeper: Keeper) -> Iterator[None]:
    """The first interrupt of a training that obeys commands asks it to stop and keep; any other one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[float] = []

    def interrupt(signum: int, frame: Any) -> None:
        if keeper.data["controls"] and not asked:
            asked.append(time.time())
            control.send(keeper.folder, "stop", save=True)
            print("stopping after this step, keeping a checkpoint; interrupt again to end at once", file=sys.stderr)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _variables(found: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them and the address that the meeting sets."""
    names = (*found, "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(found)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _joined(folder: Path, launched: dict[str, Any]) -> Iterator[Context]:
    """The context of the only rank; process groups are made here unless there are some, and taken down again."""
    import torch
    import torch.distributed as distributed

    if distributed.is_initialized():
        raise ValueError(
            "InProcess makes its own process group, but this process has one already: call "
            "torch.distributed.destroy_process_group() first"
        )
    threads = torch.get_num_threads()
    context, leave = join(folder, launched, 0)
    before = enter(context)
    try:
        yield context
    finally:
        enter(before)
        leave()
        context.events.close()
        torch.set_num_threads(threads)
