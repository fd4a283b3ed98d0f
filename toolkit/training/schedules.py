"""Learning-rate schedules: values that say which part of the base rate an optimizer step uses.

`schedule.factor(step, steps)` is a number from 0 to 1 for optimizer step `step`, counted from 0, of `steps`. It depends on
these two numbers alone, so that a resumed run, or one whose length was changed on the way, needs nothing remembered.
Every schedule begins with a linear warm-up: steps 0 to warmup - 1 use 1/warmup, 2/warmup, ..., 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from toolkit.values import Range, check

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Schedule"]

Steps = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """The same rate from the warm-up to the end."""

    warmup: Steps = 5
    """Steps over which the rate rises linearly, 0 or more."""

    __post_init__ = check

    def factor(self, step: int, steps: int) -> float:
        """Part of the base rate at `step` of `steps`.

        >>> Constant(warmup=2).factor(0, 10)
        0.5
        """
        return _rise(step, self.warmup)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A straight line from the warm-up down to a floor."""

    warmup: Steps = 5
    """Steps over which the rate rises linearly, 0 or more."""
    floor: Share = 0.0
    """Part of the base rate that is left after the last step, 0 to 1."""

    __post_init__ = check

    def factor(self, step: int, steps: int) -> float:
        """Part of the base rate at `step` of `steps`.

        >>> Linear(warmup=0).factor(5, 10)
        0.5
        """
        fallen = _progress(step, self.warmup, steps)
        return min(_rise(step, self.warmup), self.floor + (1.0 - self.floor) * (1.0 - fallen))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Half a wave of the cosine from the warm-up down to a floor (SGDR, Loshchilov and Hutter, arXiv:1608.03983, eq. 5)."""

    warmup: Steps = 5
    """Steps over which the rate rises linearly, 0 or more."""
    floor: Share = 0.0
    """Part of the base rate that is left after the last step, 0 to 1."""

    __post_init__ = check

    def factor(self, step: int, steps: int) -> float:
        """Part of the base rate at `step` of `steps`.

        >>> Cosine(warmup=0, floor=0.1).factor(10, 10)
        0.1
        """
        fallen = 0.5 * (1.0 - math.cos(math.pi * _progress(step, self.warmup, steps)))
        return min(_rise(step, self.warmup), self.floor + (1.0 - self.floor) * (1.0 - fallen))


@dataclass(frozen=True, kw_only=True, slots=True)
class WSD:
    """Warm-up, a stable rate, and a short decay at the end (MiniCPM, Hu et al., arXiv:2404.06395, section 4.2).

    The stable part can be stopped, and gone on with, at any step; only the decay needs to know the end. Its shapes are those
    that Hägele et al., arXiv:2405.18392, compare: a straight line, and one minus the square root.
    """

    warmup: Steps = 5
    """Steps over which the rate rises linearly, 0 or more."""
    decay: Share = 0.2
    """Share of all steps that the decay at the end takes, 0 to 1."""
    shape: Literal["linear", "sqrt"] = "sqrt"
    """linear: a straight line; sqrt: 1 - sqrt(x), which falls fast first and slowly later."""
    floor: Share = 0.0
    """Part of the base rate that is left after the last step, 0 to 1."""

    __post_init__ = check

    def factor(self, step: int, steps: int) -> float:
        """Part of the base rate at `step` of `steps`.

        >>> WSD(warmup=0, decay=0.5, shape="linear").factor(75, 100)
        0.5
        """
        fallen = _progress(step, steps - round(self.decay * steps), steps)
        if self.shape == "sqrt":
            fallen = math.sqrt(fallen)
        return min(_rise(step, self.warmup), self.floor + (1.0 - self.floor) * (1.0 - fallen))


Schedule = Constant | Linear | Cosine | WSD
"""The closed union of the learning-rate schedules."""


def _rise(step: int, warmup: int) -> float:
    """What the warm-up allows, 1 after it."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _progress(step: int, start: int, steps: int) -> float:
    """How much of the way from step `start` to `steps` is done, 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, steps - start)))
