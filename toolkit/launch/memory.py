"""Memory of this machine, or of the part of it that the container or the job may use; and who was killed for want of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHORT = 0.05
"""Share of the memory below which it counts as short."""
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """How much there was at one moment."""

    available: int
    """Bytes that could still be had."""
    total: int
    """Bytes in all."""

    @property
    def short(self) -> bool:
        """Whether hardly any was left."""
        return self.available < SHORT * self.total

    def __str__(self) -> str:
        return f"{self.available / 2**30:.1f} of {self.total / 2**30:.1f} GiB were free"


def memory(proc: Path = PROC, groups: Path = GROUPS) -> Memory | None:
    """What is free now: of the machine, or of the limit of this process' control group where that is less (Linux)."""
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        found = Memory(*(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal")))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for folder in _folders(proc, groups):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                most, now = (int((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):  # No such file, or "max".
                continue
            if most < found.total:
                cached = max(_number(folder / "memory.stat", name) for name in ("inactive_file", "total_inactive_file"))
                found = Memory(min(found.available, max(0, most - now + cached)), most)
    return found


def memory_kills(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """How often Linux's out-of-memory killer has struck in this process' control group, else on this machine."""
    for folder in _folders(proc, groups):
        for name in ("memory.events", "memory.oom_control"):
            if (folder / name).exists():
                return _number(folder / name, "oom_kill")
    return _number(proc / "vmstat", "oom_kill")


def _folders(proc: Path, groups: Path) -> list[Path]:
    """The folder of this process' control group for memory; inside a container it is mounted as the top one."""
    found = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            top = groups if number == "0" else groups / "memory"
            found += [top / path.lstrip("/"), top]
    return [folder for folder in found if folder.is_dir()]


def _number(path: Path, name: str) -> int:
    """The number behind `name` in lines of "name number"; 0 where it does not stand."""
    try:
        words = (line.split() for line in path.read_text().splitlines())
        return next((int(line[1]) for line in words if len(line) == 2 and line[0] == name), 0)
    except (OSError, ValueError):
        return 0
