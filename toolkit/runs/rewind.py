"""Going back: which of a run's checkpoints a resume starts from, and what was set aside for it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["aside", "rewind"]

STEP = re.compile(r"step-(0|[1-9][0-9]*)(\.replaced)?")
"""Every checkpoint that a resume may take, as in `toolkit.checkpoint.files`: ".replaced" is the old one of a replacement
that was cut off."""
ASIDE = re.compile(r"step-(0|[1-9][0-9]*)\.aside(-[1-9][0-9]*)?")


def rewind(folder: Path, step: int) -> list[Path]:
    """Set aside every checkpoint of the run in `folder` after `step`, so that the next attempt goes on from there.

    Nothing is deleted: `checkpoints/step-80` becomes `checkpoints/step-80.aside`, a second one of that step
    `step-80.aside-2`. Returns the new places, oldest first. Raises ValueError, with what there is, when no checkpoint of
    `step` is whole. The caller holds the run's lock.
    """
    place = folder / "checkpoints"
    found = _numbered(place, STEP)
    whole = sorted({number for number, path in found if (path / "manifest.json").is_file()})
    if step not in whole:
        raise ValueError(f"run {folder.name} has no checkpoint of step {step}: it has {', '.join(map(str, whole)) or 'none'}")
    moved = []
    for number, path in reversed(found):  # the newest first: cut off here, the newest left is one that a resume may take
        if number > step:
            to = place / f"step-{number}.aside"
            again = 2
            while to.exists():
                to, again = place / f"step-{number}.aside-{again}", again + 1
            path.rename(to)
            moved.append(to)
    return moved[::-1]


def aside(folder: Path) -> list[Path]:
    """The checkpoints of the run in `folder` that `rewind` has set aside, by step. No resume takes them."""
    return [path for _, path in _numbered(folder / "checkpoints", ASIDE)]


def _numbered(place: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """Step and path of the folders, links left out, whose name is of this pattern, by step."""
    matches = [(pattern.fullmatch(path.name), path) for path in (place.iterdir() if place.is_dir() else ())]
    found = [(int(match[1]), path) for match, path in matches if match and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda entry: (entry[0], entry[1].name))
