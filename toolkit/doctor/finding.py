"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("ok", "note", "problem")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found, and what helps."""

    group: str
    """software, machine, places, tools or workers."""
    name: str
    """What was looked at."""
    state: str
    """ok; note: something works less well or is not there; problem: it keeps this machine from training."""
    found: str
    """What is there, in a few words."""
    remedy: str = ""
    """What helps; empty where nothing has to."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"Finding.state {self.state!r}: expected one of {', '.join(STATES)}")
