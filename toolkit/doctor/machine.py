"""Cores, memory, devices, limits and ports."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor.finding import Finding
from toolkit.doctor.places import LITTLE_SHM, room
from toolkit.launch.memory import memory as memory_now
from toolkit.runs.amounts import size

LITTLE_MEMORY = 2 << 30
FEW_FILES = 1024
QUERY = "index,name,memory.total,memory.used,driver_version"


def about_machine() -> Iterator[Finding]:
    """What this machine has."""
    yield cores()
    yield memory()
    yield from gpus()
    yield shared_memory()
    yield files()
    yield ports()


def cores() -> Finding:
    """Cores that this process may use, and the share of them that a container allows."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share()
    found = f"{usable} of {os.cpu_count()}, {platform.machine()}"
    if share is not None and share < usable:
        return Finding(group="machine", name="cores", state="note", found=f"{found}, but time of {share:.1f} only",
                       remedy="Local(threads=...) sets fewer threads a process")  # fmt: skip
    return Finding(group="machine", name="cores", state="ok", found=found)


def memory() -> Finding:
    """Memory that is free for a training now, under the limit of a container too."""
    found = memory_now()
    if found is None:
        return Finding(group="machine", name="memory", state="ok", found="this system does not say how much is free")
    text = f"{size(found.available)} free of {size(found.total)}"
    enough = found.available >= LITTLE_MEMORY
    remedy = "" if enough else "end other programs: two workers take about 1 GiB before they hold a model"
    return Finding(group="machine", name="memory", state="ok" if enough else "note", found=text, remedy=remedy)


def gpus() -> Iterator[Finding]:
    """One finding a GPU that the driver shows, or one that there is none."""
    tool = shutil.which("nvidia-smi")
    listing = "" if tool is None else _asked([tool, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    if tool is not None and not listing:
        yield Finding(group="machine", name="GPUs", state="problem", found="nvidia-smi is there, but answers nothing",
                      remedy="run nvidia-smi by itself: its message says what the driver lacks")  # fmt: skip
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    for index, name, total, used, driver in (row for row in rows if len(row) == 5):
        text = f"{name}, {used} of {total} MiB used, driver {driver}"
        yield Finding(group="machine", name=f"GPU {index}", state="ok", found=text)
    if not rows:
        text = "no NVIDIA GPU is shown (no nvidia-smi); runs go to the CPU"
        yield Finding(group="machine", name="GPUs", state="ok", found=text)


def shared_memory() -> Finding:
    """/dev/shm, through which NCCL and data loaders pass tensors."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(group="machine", name="/dev/shm", state="note", found="is missing", remedy="mount a tmpfs there")
    free, total = room(place)
    few = total < LITTLE_SHM
    remedy = "start the container with --shm-size=1g or more" if few else ""
    return Finding(group="machine", name="/dev/shm", state="note" if few else "ok",
                   found=f"{size(free)} free of {size(total)}", remedy=remedy)  # fmt: skip


def files() -> Finding:
    """How many files a process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < FEW_FILES
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    return Finding(group="machine", name="open files", state="note" if few else "ok", found=f"{found} a process",
                   remedy="ulimit -n 4096" if few else "")  # fmt: skip


def ports() -> Finding:
    """Whether processes can meet on the loopback address, at ports that the system chooses."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                accepted, _ = server.accept()
                accepted.close()
    except OSError as error:
        text, remedy = f"127.0.0.1 cannot be used: {error.strerror or error}", "ip link set lo up, or allow it in the sandbox"
        return Finding(group="machine", name="loopback", state="problem", found=text, remedy=remedy)
    return Finding(group="machine", name="loopback", state="ok", found="127.0.0.1 accepts connections on free ports")


def _share() -> float | None:
    """Cores whose time a container gets, where it is limited."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _asked(command: list[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
