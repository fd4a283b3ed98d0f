"""The endless order of rows that training reads: pass after pass over packed rows, a mixture of them, or a stream.

Each has `rows_a_pass`, `batch(first, last)` for the rows at these places of the order, `identity()` for what the order depends
on, and `state(place)` and `restore(state)` for what must be known to go on from a place.
Shapes: B rows, T tokens a row, W places after which a mixture's order of parts repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toolkit.data.mixing import Mixed, order_of
from toolkit.data.packing import Packed
from toolkit.data.streaming import Stream, Streaming


class Endless(Protocol):
    """An endless order of rows."""

    rows_a_pass: int

    def batch(self, first: int, last: int) -> dict[str, Tensor]:
        """The rows at places `first` to `last` as int64 tensors `tokens_BT`, `targets_BT`, `documents_BT`."""
        ...

    def identity(self) -> Any:
        """What the order depends on besides the seeds and the size of a step; plain JSON."""
        ...

    def state(self, place: int) -> Any:
        """What a loader that goes on at `place` must know; plain JSON, None for nothing."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from a saved state."""
        ...


def endless(rows: Packed | Mixed | Stream, seed: tuple[int, ...]) -> Endless:
    """The order in which training reads these rows."""
    if isinstance(rows, Mixed):
        return Blended(rows, seed)
    return Streaming(rows, seed) if isinstance(rows, Stream) else Shuffled(rows, seed)


class Shuffled:
    """Pass after pass over packed rows, each in an order of its own."""

    def __init__(self, packed: Packed, seed: tuple[int, ...]) -> None:
        self.packed = packed
        self.seed = seed
        self.rows_a_pass = len(packed)
        self._order: tuple[int, Int[np.ndarray, "N"]] | None = None

    def batch(self, first: int, last: int) -> dict[str, Tensor]:
        """The rows at these places; see `Endless`."""
        parts = []
        while first < last:
            pass_, at = divmod(first, self.rows_a_pass)
            if self._order is None or self._order[0] != pass_:
                self._order = (pass_, np.random.default_rng((*self.seed, pass_)).permutation(self.rows_a_pass))
            parts.append(self._order[1][at : at + last - first])
            first += len(parts[-1])
        return self.packed.batch(np.concatenate(parts))

    def identity(self) -> int:
        """The number of rows."""
        return self.rows_a_pass

    def state(self, place: int) -> None:
        """A place is enough."""

    def restore(self, state: None) -> None:
        """A place is enough."""


class Blended:
    """The endless orders of several parts, in fixed proportions; see `toolkit.data.mixing`."""

    def __init__(self, mixed: Mixed, seed: tuple[int, ...]) -> None:
        self.shares = mixed.shares
        self.rows_a_pass = len(mixed)
        self.parts = [endless(part, (*seed, number)) for number, part in enumerate(mixed.parts)]
        self.order_W = order_of(mixed.shares)
        self.before_W = [np.cumsum(self.order_W == part) - (self.order_W == part) for part in range(len(self.parts))]

    def batch(self, first: int, last: int) -> dict[str, Tensor]:
        """The rows at these places; see `Endless`."""
        parts_B = self.order_W[np.arange(first, last) % len(self.order_W)]
        out: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            chosen = torch.from_numpy(np.flatnonzero(parts_B == number))
            if not len(chosen):
                continue
            begin = self._place(number, first)
            for name, rows in part.batch(begin, begin + len(chosen)).items():
                out.setdefault(name, rows.new_empty((last - first, rows.shape[1])))[chosen] = rows
        return out

    def identity(self) -> list[Any]:
        """Those of the parts, and the shares."""
        return [list(self.shares), *(part.identity() for part in self.parts)]

    def state(self, place: int) -> list[Any] | None:
        """Those of the parts, if one has any."""
        states = [part.state(self._place(number, place)) for number, part in enumerate(self.parts)]
        return states if any(state is not None for state in states) else None

    def restore(self, state: Sequence[Any] | None) -> None:
        """Go on from the states of the parts."""
        for part, one in zip(self.parts, state or ()):
            if one is not None:
                part.restore(one)

    def _place(self, part: int, place: int) -> int:
        """How many of the first `place` rows are of a part."""
        periods, rest = divmod(place, len(self.order_W))
        return periods * self.shares[part] + int(self.before_W[part][rest])
