"""Where runs, converted weights and state lie: whether they can be written, locked and hold more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.doctor.finding import Finding
from toolkit.runs.amounts import size
from toolkit.runs.files import is_locked, take_lock
from toolkit.runs.roots import root_of, state_folder

LITTLE_DISK = 5 << 30
LITTLE_SHM = 512 << 20


def about_places(root: str | Path | None = None) -> Iterator[Finding]:
    """The folders that Scalebook writes, and whether the first model was converted already."""
    home = Path(root).resolve() if root else root_of()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalebook"
    yield writable("runs", home / "runs", f"choose another place: --root DIR, or make {home} yours")
    yield writable("cache", cache, "set XDG_CACHE_HOME to a folder that is yours")
    yield writable("state", state_folder(), "set XDG_STATE_HOME to a folder that is yours")
    yield model(cache / "models")


def writable(name: str, folder: Path, remedy: str) -> Finding:
    """Whether files can be made and locked in `folder`, which need not exist yet, and how much room there is."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".scalebook-doctor-", dir=there) as inside:
            lock = take_lock(Path(inside) / "lock")
            holds = lock is not None and is_locked(Path(inside) / "lock")
            if lock is not None:
                os.close(lock)
    except OSError as error:
        text = f"{folder}: {error.strerror or error}"
        return Finding(group="places", name=name, state="problem", found=text, remedy=remedy)
    if not holds:
        text = f"{folder}: its file system does not keep locks"
        remedy = "use a local disk, or mount it with locks: without them two supervisors may take one run"
        return Finding(group="places", name=name, state="problem", found=text, remedy=remedy)
    free, _ = room(there)
    little = free < LITTLE_DISK
    remedy = "runs clean --older 30d removes old runs; a checkpoint of a small model takes about 1 GiB" if little else ""
    text = f"{folder}, {size(free)} free"
    return Finding(group="places", name=name, state="note" if little else "ok", found=text, remedy=remedy)


def room(place: Path) -> tuple[int, int]:
    """Bytes that this user may still write on the disk of `place`, and its size."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def model(cache: Path) -> Finding:
    """Whether the weights that come with the installation were converted; their first use takes that long once."""
    made = [path for path in cache.glob("smollm2-135m-*") if (path / "files.json").is_file()]
    found = "smollm2-135m is ready" if made else "smollm2-135m is converted at its first use (20 s, once)"
    return Finding(group="places", name="model", state="ok", found=found)
