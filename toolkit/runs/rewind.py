"""Going back: which of a run's checkpoints a resume starts from."""

from __future__ import annotations

from pathlib import Path

__all__ = ["rewind"]


def rewind(folder: Path, step: int) -> list[Path]:
    """Set aside every checkpoint of the run in `folder` after `step`, so that the next attempt goes on from there.

    Nothing is deleted: `checkpoints/step-80` becomes `checkpoints/step-80.aside`, a second one of that step
    `step-80.aside-2`. Returns the new places, oldest first. Raises ValueError, with what there is, when no checkpoint of
    `step` is whole. The caller holds the run's lock.
    """
    place = folder / "checkpoints"
    found = {int(path.name[5:]): path for path in place.glob("step-*") if path.name[5:].isdecimal()}
    whole = sorted(number for number, path in found.items() if (path / "manifest.json").is_file())
    if step not in whole:
        raise ValueError(f"run {folder.name} has no checkpoint of step {step}: it has {', '.join(map(str, whole)) or 'none'}")
    aside = []
    for number in sorted(found, reverse=True):  # the newest first: cut off here, the newest left is one that a resume may take
        if number > step:
            to = place / f"step-{number}.aside"
            again = 2
            while to.exists():
                to, again = place / f"step-{number}.aside-{again}", again + 1
            found[number].rename(to)
            aside.append(to)
    return aside[::-1]
