"""What a claim and a row of a comparison hold."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What one run of the experiment for one published system came to."""

    key: str
    """The system's key, as in toolkit/systems.json."""
    paper: str
    """What the paper states, in one line."""
    measured: float | None
    """The method's number; None when the experiment crashed."""
    baseline: float | None
    """The same number without the method."""
    control_holds: bool
    """Whether the rule also holds for a control in which the mechanism is off or shuffled: it must not."""
    holds: bool
    """Whether the rule in the file's docstring holds."""
    seconds: float
    """Wall time, at most 180."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison; smaller is better in every number."""

    what: str
    """What is measured, and why a number is missing."""
    ours: float
    """Median of this toolkit."""
    peer: float | None
    """Median of what one would pick instead."""
    limit: float | None
    """What the machine allows."""
    target: float | None
    """What was aimed at."""
    spread: float
    """Largest minus smallest of our repeats."""
    unit: str
    """Unit of all these numbers."""
