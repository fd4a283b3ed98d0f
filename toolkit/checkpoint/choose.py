"""Which checkpoint of a folder is meant: the last, the best, or the one of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from toolkit.checkpoint.check import newest, steps, verify
from toolkit.checkpoint.load import read_state
from toolkit.checkpoint.manifest import CheckpointError


def best(folder: str | Path, metric: str = "eval_loss") -> int | None:
    """Step of the checkpoint whose state says the lowest `metrics[metric]`; None where it was never measured."""
    found: dict[int, float] = {}
    for step, path in steps(Path(folder)):
        try:
            value = read_state(path).get("metrics", {}).get(metric)
        except CheckpointError:
            continue
        if isinstance(value, (int, float)):  # one that is not finite is stored as text
            found[step] = value
    return min(found, key=lambda step: (found[step], step), default=None)


def choose(folder: str | Path, step: int | Literal["last", "best"] = "last") -> Path:
    """The verified checkpoint that `step` names: "last" (the newest that is whole), "best", or a number.

    Raises CheckpointError, with what there is, when the folder has no such checkpoint or it is damaged.

    >>> choose("runs/20260102-030405-amber/checkpoints", "best").name
    'step-40'
    """
    folder = Path(folder)
    if step == "last":
        path, skipped = newest(folder)
        if path is None:
            raise CheckpointError(f"{folder} holds no whole checkpoint" + "".join(f"; {p.name}: {why}" for p, why in skipped))
        return path
    number = best(folder) if step == "best" else step
    if number is None:
        raise CheckpointError(f"{folder}: no checkpoint has a held-out loss; choose 'last' or a step")
    found = dict(steps(folder))
    if number not in found:
        raise CheckpointError(f"{folder} has no checkpoint of step {number!r}; it has {sorted(found)}, or say 'last' or 'best'")
    verify(found[number])
    return found[number]
