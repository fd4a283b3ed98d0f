"""GPUs: which there are, which are free, and who holds the others.

A lock file a device, in the user's state folder, held for the life of the run by its supervisor.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs.files import take_lock
from toolkit.runs.roots import state_folder


class DevicesBusy(RuntimeError):
    """Too few free devices; the message names the runs that hold them."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of this machine."""

    index: int
    """Its number as the driver counts."""
    name: str
    """Its unique name; also what CUDA_VISIBLE_DEVICES gets."""


@dataclass(frozen=True, slots=True)
class Held:
    """Devices that a run may use, and the descriptors whose locks say so."""

    devices: tuple[Device, ...] = ()
    locks: tuple[int, ...] = ()


def gpus(environment: Mapping[str, str] | None = None) -> tuple[Device, ...]:
    """The GPUs that this process may see, in its order, asked of the driver's own tool; none without that tool."""
    environment = os.environ if environment is None else environment
    tool = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if tool is None or environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ()
    command = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return visible(answer.stdout if answer.returncode == 0 else "", environment.get("CUDA_VISIBLE_DEVICES"))


def visible(listing: str, chosen: str | None) -> tuple[Device, ...]:
    """Devices in the lines `<index>, <uuid>`, narrowed to what CUDA_VISIBLE_DEVICES (`chosen`) names, in its order."""
    rows = [line.split(",") for line in listing.splitlines() if line.count(",") == 1]
    found = [Device(int(index), name.strip()) for index, name in rows if index.strip().isdecimal()]
    if chosen is None:
        return tuple(found)
    picked = []
    for word in filter(None, (word.strip() for word in chosen.split(","))):
        fits = [
            device
            for device in found
            if (word.isdecimal() and device.index == int(word)) or (not word.isdecimal() and device.name.startswith(word))
        ]
        if not fits:
            break  # As the driver does: what follows an unknown device is not seen either.
        picked.append(fits[0])
    return tuple(picked)


def allocate(wanted: int, candidates: tuple[Device, ...], holder: str, *, folder: Path | None = None) -> Held:
    """Lock `wanted` of `candidates`, first come first served, for the run folder `holder`.

    Raises DevicesBusy, holding none, with the runs that hold the others. `allocate(2, gpus(), str(run.folder))`
    """
    if wanted > len(candidates):
        raise DevicesBusy(
            f'{wanted} GPUs asked for, but this machine shows {len(candidates)}: use fewer processes, or devices="cpu"'
        )
    folder = folder or state_folder() / "devices"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    devices: list[Device] = []
    locks: list[int] = []
    busy: list[str] = []
    for device in candidates:
        if len(devices) == wanted:
            break
        path = folder / f"{_file_name(device)}.lock"
        lock = take_lock(path, patience=0.0)
        if lock is None:
            busy.append(f"GPU {device.index}: {_holder(path)}")
            continue
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps({"run": holder}).encode(), 0)
        devices.append(device)
        locks.append(lock)
    if len(devices) < wanted:
        release(Held(tuple(devices), tuple(locks)))
        raise DevicesBusy(
            f"{wanted} GPUs asked for, {len(devices)} free; {'; '.join(busy)}. Stop one of these runs, or "
            "Local(wait=True) queues until they end"
        )
    return Held(tuple(devices), tuple(locks))


def release(held: Held) -> None:
    """Give the devices back."""
    for lock in held.locks:
        os.close(lock)


def _file_name(device: Device) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in device.name)


def _holder(path: Path) -> str:
    try:
        return f"held by run {Path(json.loads(path.read_text())['run']).name}"
    except (OSError, ValueError, KeyError, TypeError):
        return "held by a run that is just starting"
