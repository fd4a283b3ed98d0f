"""Worker processes on this machine, kept by a supervisor that outlives the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import toolkit
from toolkit.launch.devices import DevicesBusy, Held, allocate, gpus, release
from toolkit.launch.processes import PLACE, TOKEN
from toolkit.values import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Run in fresh processes on this machine: `launch(recipe, on=Local(processes=2))`."""

    processes: int | None = None
    """Number of worker processes, 1 or more; None: as many as the recipe's plan asks for, else 1."""
    devices: Literal["auto", "cpu"] | tuple[int, ...] = "auto"
    """"auto": GPUs, one a process, the CPU where the machine has fewer; "cpu"; or the numbers of GPUs to take."""
    threads: int | None = None
    """Threads that each process computes with, 1 or more; None: cores divided by processes."""
    wait: bool = False
    """Whether to queue when too few GPUs are free, instead of an error."""
    silence: float | None = 600.0
    """Seconds that a rank may wait for another one, above 0, before the run is ended as hung; None: for ever."""

    def __post_init__(self) -> None:
        check(self)
        if self.silence is not None and not self.silence > 0:
            raise ValueError(f"Local.silence {self.silence}: expected more than 0 seconds, or None")
        for name in ("processes", "threads"):
            found = getattr(self, name)
            if found is not None and found < 1:
                raise ValueError(f"Local.{name} {found}: expected 1 or more")

    def settle(self, folder: Path, processes: int) -> tuple[dict[str, Any], Held]:
        """What launch.json says about processes, threads and devices; the devices, locked for `folder`.

        Raises DevicesBusy where too few are free, unless `wait`.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settled: dict[str, Any] = {
            "processes": processes,
            "threads": self.threads or max(1, cores // processes),
            "silence": self.silence,
            "queue": 0,
            "indices": [],
            "devices": [],
            "message": "",
        }
        if self.devices == "cpu":
            return settled, Held()
        found = gpus()
        if self.devices == "auto":
            if len(found) < processes:
                few = f"on the CPU: {processes} processes, but this machine shows {len(found)} GPU{'s' * (len(found) > 1)}"
                return settled | {"message": few if found else ""}, Held()
        else:
            settled["indices"] = list(self.devices)
            found = _chosen(self.devices, found, processes)
        try:
            held = allocate(processes, found, str(folder))
        except DevicesBusy:
            if not self.wait:
                raise
            return settled | {"queue": processes}, Held()
        return settled | {"devices": [device.name for device in held.devices]}, held

    def start(self, folder: Path, lock: int, held: Held, work: Any = None, arguments: tuple[Any, ...] = ()) -> None:
        """Start the supervisor of a prepared folder, which says all; `lock` and the device locks pass to it without a gap.

        They are closed here, whether that succeeds or not.
        """
        command = [sys.executable, "-P", "-m", "toolkit.launch.supervisor", str(folder), str(lock), *map(str, held.locks)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(folder / "supervisor.log", flags, 0o600), "wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=(lock, *held.locks),
                    env=environment(),
                )
        finally:
            os.close(lock)
            release(held)
        threading.Thread(target=process.wait, name=f"scalebook-{folder.name}", daemon=True).start()  # No zombie is left.


def processes_for(work: Any, processes: int | None) -> int:
    """Number of processes, from the plan of `work` where it has one. Raises ValueError where the two disagree."""
    world = getattr(getattr(work, "plan", None), "world_size", None)
    if world is not None and processes is not None and world != processes:
        raise ValueError(
            f"the plan {work.plan!r} needs {world} processes, but Local(processes={processes}) was given: "
            "leave processes out, or change the plan"
        )
    return processes or world or 1


def environment() -> dict[str, str]:
    """The environment of the supervisor: this one, without marks of a run, and with the way to this toolkit."""
    found = {name: value for name, value in os.environ.items() if name not in (TOKEN, PLACE)}
    home = str(Path(toolkit.__file__).resolve().parents[1])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (found.get("PYTHONPATH"), home)))
    return found


def _chosen(indices: tuple[int, ...], found: tuple[Any, ...], processes: int) -> tuple[Any, ...]:
    by_index = {device.index: device for device in found}
    missing = [index for index in indices if index not in by_index]
    if missing:
        raise ValueError(
            f"Local.devices: this machine shows no GPU {missing[0]}; there are: {', '.join(map(str, by_index)) or 'none'}"
        )
    if len(indices) != processes:
        raise ValueError(f"Local.devices names {len(indices)} GPUs for {processes} processes: name one a process")
    return tuple(by_index[index] for index in indices)
