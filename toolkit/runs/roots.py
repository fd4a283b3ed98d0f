"""Where runs live: the root of a project, the names of runs, and the index of all roots of this user."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

from toolkit.runs.fields import read_object
from toolkit.runs.files import locked, replace_json

MARKS = ("pyproject.toml", "environment.yml", ".git")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WORDS = (
    "amber apple ash aspen basil beech birch bloom breeze brook cedar clay cloud clover coral cove crane creek dawn "
    "delta dune elm ember fern finch fjord flint frost gale glade grove hazel heron hill holly iris ivy jade "
    "juniper kelp lake larch lark laurel leaf lily linden lotus maple marsh meadow mint moss oak olive opal orchid "
    "otter pearl pine plum pond poppy quartz quill rain reed ridge river robin rose rowan sage sand shore sky "
    "slate snow spruce star stone stream swan thyme tulip vale violet wave willow wren"
).split()


def root_of(start: str | Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: the working directory) that marks a project, else `start`."""
    here = Path(start or os.getcwd()).resolve()
    return next((folder for folder in (here, *here.parents) if any((folder / mark).exists() for mark in MARKS)), here)


def state_folder() -> Path:
    """The user's folder for what outlives a run: the index of roots, device locks. Made on first use, mode 0700."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(base).expanduser() / "scalebook"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def known_roots() -> list[Path]:
    """Every root on this machine under which this user has started a run and that is still there."""
    return [Path(text) for text in _indexed() if (Path(text) / "runs").is_dir()]


def _indexed() -> list[str]:
    return read_object(state_folder() / "roots.json", {"roots": "a list of text"}).get("roots", [])


def remember(root: Path) -> None:
    """Put `root` into the index."""
    index = state_folder() / "roots.json"
    if str(root) in _indexed():
        return
    with locked(state_folder() / "roots.lock"):
        replace_json(index, {"roots": [*map(str, known_roots()), str(root)]})


def checked_name(name: str) -> str:
    """`name` if it can be a run's id: letters, digits, dot, dash and underscore, at most 64. Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"run name {name!r}: use letters, digits, '.', '-' and '_' (at most 64), beginning with a letter or a digit"
        )
    return name


def make_folder(root: Path, name: str | None) -> tuple[Path, bool]:
    """The folder of a run called `name`, or of a new one `<date>-<time>-<word>`, and whether it was made just now."""
    home = root / "runs"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        folder = home / (checked_name(name) if name is not None else f"{time.strftime('%Y%m%d-%H%M%S')}-{random.choice(WORDS)}")
        try:
            folder.mkdir(mode=0o700)
            break
        except FileExistsError:
            if name is not None:
                return folder, False
    for part in ("series", "blobs", "calls", "code", "checkpoints"):
        (folder / part).mkdir(mode=0o700)
    return folder, True
