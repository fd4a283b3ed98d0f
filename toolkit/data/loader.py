"""Batches for training, in an order that depends on the seed and the global batch alone and can be taken up at any step.

Shapes: B rows of a micro-batch, T tokens a row, G rows of one optimizer step over all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from toolkit.data.endless import endless
from toolkit.data.mixing import Mixed
from toolkit.data.packing import IGNORED, Packed
from toolkit.data.streaming import Stream

Micro = dict[str, Tensor]


class StepLoader:
    """Yields whole optimizer steps: for this rank a list of micro-batches `tokens_BT`, `targets_BT`, `documents_BT` (int64).

    The rows of pass after pass over the data, each pass in an order of its own, form one endless stream; so do those of a
    mixture, part by part, and those of a `Stream`. Step k takes the rows k*G to (k+1)*G of it; rank r takes the r-th of equal
    contiguous parts of these. So nothing is left out at the end of a pass, and any number of ranks sees the same steps.

    `position` counts the steps handed over: while step k (from 0) trains, and after it, `state_dict()` says k + 1. Nothing is
    fetched ahead; a caller that does so must not ask for more than it trains (Lightning does not, as `len()` is known).
    Iterating again goes on where the last iteration stopped.

    >>> loader = StepLoader(packed, sequences_per_step=4, micro_sequences=2, rank=0, ranks=1, seed=0)
    >>> [micro["tokens_BT"].shape[0] for micro in next(iter(loader))]
    [2, 2]
    """

    def __init__(
        self, packed: Packed | Mixed | Stream, *, sequences_per_step: int, micro_sequences: int, rank: int, ranks: int, seed: int
    ) -> None:
        """Raises ValueError, with the numbers, when the rows of a step do not divide over ranks and micro-batches."""
        if min(sequences_per_step, micro_sequences, ranks) < 1 or not 0 <= rank < ranks:
            raise ValueError(
                f"StepLoader: sequences_per_step={sequences_per_step}, micro_sequences={micro_sequences} and ranks={ranks} "
                f"must be at least 1, and rank={rank} one of the ranks"
            )
        if sequences_per_step % (ranks * micro_sequences):
            raise ValueError(
                f"StepLoader: {sequences_per_step} sequences a step do not divide over {ranks} ranks x "
                f"{micro_sequences} a micro-batch = {ranks * micro_sequences}"
            )
        if not len(packed):
            raise ValueError("StepLoader: the packed data has no rows")
        self.rows = endless(packed, (seed,))
        self.sequences_per_step = sequences_per_step
        self.micro_sequences = micro_sequences
        self.rank = rank
        self.ranks = ranks
        self.seed = seed
        self.position = 0

    def __len__(self) -> int:
        """Steps of one pass over the data, the last of which may reach into the next pass; of a stream an estimate."""
        return -(-self.rows.rows_a_pass // self.sequences_per_step)

    def __iter__(self) -> Iterator[list[Micro]]:
        while True:
            self.position += 1
            yield self.step(self.position - 1)

    def step(self, number: int) -> list[Micro]:
        """This rank's micro-batches of one step, without moving the position."""
        share = self.sequences_per_step // self.ranks
        first = number * self.sequences_per_step + self.rank * share
        return [self.rows.batch(at, at + self.micro_sequences) for at in range(first, first + share, self.micro_sequences)]

    def state_dict(self) -> dict[str, Any]:
        """The position, what the order depends on, and for a stream where to go on; that of any rank serves every rank."""
        place = self.position * self.sequences_per_step
        return {"position": self.position, **self._identity(), "source": self.rows.state(place)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state["position"]` steps. Raises ValueError when the order would not be the same."""
        for name, here in self._identity().items():
            if state[name] != here:
                raise ValueError(f"StepLoader: the state was saved with {name}={state[name]}, not {here}")
        self.position = int(state["position"])
        self.rows.restore(state.get("source"))

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "sequences_per_step": self.sequences_per_step, "rows": self.rows.identity()}


def held_out_batches(packed: Packed | Mixed, micro_sequences: int, rank: int = 0, ranks: int = 1) -> Iterator[Micro]:
    """This rank's micro-batches of every row once. All ranks yield as many, of the same shape: rows without targets fill up.

    >>> [batch["tokens_BT"].shape for batch in held_out_batches(packed[:3], micro_sequences=2)]
    [torch.Size([2, 256]), torch.Size([2, 256])]
    """
    if micro_sequences < 1 or not 0 <= rank < ranks:
        raise ValueError(f"held_out_batches: micro_sequences={micro_sequences}, rank={rank} of {ranks}")
    packed = packed[:]
    together = micro_sequences * ranks
    for first in range(rank * micro_sequences, -(-len(packed) // together) * together, together):
        rows = np.arange(first, first + micro_sequences)
        batch = packed.batch(rows % len(packed))
        batch["targets_BT"][max(0, len(packed) - first) :] = IGNORED
        yield batch
