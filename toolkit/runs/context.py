"""What the code inside a run may know about it: set by the worker before it calls the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs.events import EventWriter


@dataclass(slots=True)
class Context:
    """The run that this process is a rank of."""

    folder: Path
    """The run folder."""
    id: str
    """The run's name."""
    rank: int
    """This process, 0 to world_size - 1."""
    world_size: int
    """Number of processes."""
    local_rank: int
    """This process among those of this machine."""
    attempt: int
    """1, and one more at each resume."""
    device: str
    """"cpu" or "cuda:<local_rank>"."""
    threads: int
    """Threads that this process computes with."""
    events: EventWriter
    """Writes events-<rank>.jsonl."""
    control_group: Any = None
    """A gloo process group beside the default one, for commands."""


_current: Context | None = None


def current() -> Context | None:
    """The run that this process works for, or None outside of one.

    `context = current(); context.events.write("metrics", {"loss": 1.0}, step=1)`
    """
    return _current


def enter(context: Context | None) -> Context | None:
    """Set what `current` returns, and give back what it returned before."""
    global _current
    _current, before = context, _current
    return before
