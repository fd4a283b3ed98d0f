"""Rows of several sources in fixed proportions, exact over any beginning of the order.

Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980): for any shares w_p that add up to 1
there is an order in which, after every k places, part p had them at most 1 - 1/(2n - 2) times more or less than k w_p.
All rows hold equally many tokens, so shares of rows are shares of tokens.
Shapes: W places, after which the order of the parts repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from toolkit.data.packing import Packed
    from toolkit.data.streaming import Stream

_PERIOD = 1 << 16  # the longest period; shares that need a longer one are taken to five digits


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """Packed rows of the parts of a mixture."""

    parts: tuple[Packed | Stream, ...]
    """The rows of each part."""
    shares: tuple[int, ...]
    """How often each part comes in a period of the order."""
    names: tuple[str, ...] = ()
    """A name for each part."""

    @property
    def context(self) -> int:
        """Tokens a row."""
        return self.parts[0].context

    def __len__(self) -> int:
        """Rows of the order until every part was read once."""
        period = sum(self.shares)
        return max(-(-len(part) * period // share) for part, share in zip(self.parts, self.shares))

    def __getitem__(self, rows: slice) -> Packed:
        """Some of the rows of all parts, each once, in the proportions as long as they last; they are copied into memory."""
        from toolkit.data.packing import Packed

        order_P, places_P = once([len(part) for part in self.parts], self.shares)
        parts_B, places_B = order_P[rows], places_P[rows]
        arrays = []
        for name in ("tokens_NT", "targets_NT", "documents_NT"):
            out_BT = np.empty((len(parts_B), self.context), dtype=np.int32)
            for number, part in enumerate(self.parts):
                chosen = parts_B == number
                out_BT[chosen] = getattr(part, name)[places_B[chosen]]
            arrays.append(out_BT)
        return Packed(tokens_NT=arrays[0], targets_NT=arrays[1], documents_NT=arrays[2])

    def apart(self, rows: slice) -> dict[str, Packed]:
        """The same rows as `self[rows]`, those of each part by themselves under its name; parts without any are left out."""
        order_P, places_P = once([len(part) for part in self.parts], self.shares)
        found = {}
        for number, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            chosen_B = places_P[rows][order_P[rows] == number]
            if len(chosen_B):
                found[name] = _rows(part, chosen_B)
        return found


def _rows(part: Any, chosen_B: Int[np.ndarray, "B"]) -> Packed:
    from toolkit.data.packing import Packed

    return Packed(**{name: getattr(part, name)[chosen_B] for name in ("tokens_NT", "targets_NT", "documents_NT")})


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as the smallest whole numbers in the same proportion; to five digits where those were too large.

    Raises ValueError for a weight below a 65,536th of the sum.

    >>> whole_shares((0.7, 0.2, 0.1))
    (7, 2, 1)
    """
    exact = [Fraction(weight).limit_denominator(1_000_000) for weight in weights]
    common = lcm(*(one.denominator for one in exact))
    shares = [int(one * common) for one in exact]
    divisor = int(np.gcd.reduce(np.array(shares, dtype=object)))
    if divisor and sum(shares) // divisor <= _PERIOD and all(shares):
        return tuple(share // divisor for share in shares)
    rounded = [round(weight / sum(weights) * _PERIOD) for weight in weights]
    if not all(rounded):
        raise ValueError(f"Mixture: weight {min(weights)} is below a 65,536th of the sum; leave that part out")
    rounded[rounded.index(max(rounded))] += _PERIOD - sum(rounded)
    return tuple(rounded)


def order_of(shares: Sequence[int]) -> Int[np.ndarray, "W"]:
    """The part at each place of one period, in whole numbers alone.

    >>> order_of((2, 1)).tolist()
    [0, 1, 0]
    """
    period, num_parts = sum(shares), len(shares)
    if num_parts == 1:
        return np.zeros(period, dtype=np.int64)
    slack = 2 * num_parts - 2
    counts = [0] * num_parts
    order = np.empty(period, dtype=np.int64)
    for place in range(1, period + 1):
        # Lacking (times period and slack): a part may come once it lacks 1/slack of a row, and must before it lacks too much.
        lacking = [place * share - count * period for share, count in zip(shares, counts)]
        ready = [part for part in range(num_parts) if slack * lacking[part] >= period]
        part = min(ready, key=lambda one: Fraction((slack - 1) * period - slack * lacking[one], slack * shares[one]))
        order[place - 1] = part
        counts[part] += 1
    return order


def once(lengths: Sequence[int], shares: Sequence[int]) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """Every row of every part once: the part and the row at each place. A part that is read through is passed over."""
    order_W = order_of(shares)
    periods = max(-(-length // share) for length, share in zip(lengths, shares))
    keys, rows, parts = [], [], []
    for part, length in enumerate(lengths):
        places = np.flatnonzero(order_W == part)
        every = (np.arange(periods)[:, None] * len(order_W) + places).ravel()[:length]
        keys.append(every)
        rows.append(np.arange(length))
        parts.append(np.full(length, part))
    order = np.argsort(np.concatenate(keys))
    return np.concatenate(parts)[order], np.concatenate(rows)[order]
