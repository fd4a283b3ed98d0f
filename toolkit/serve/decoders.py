"""One more token for every row, for models that `fused.py` does not take: with a cache of keys and values, or without any.

`Cached` is the reference transformer's own forward, also where its blocks are sharded, wrapped or changed. `Uncached` runs
whole rows again at every step, so it needs no more of a model than training does: any model of `transformers` in the place of
ours, and what a builder returns. Its work grows with the square of the length; it is meant for the samples of a run.
Shapes: P prompts, R rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toolkit.models.cache import KVCache
from toolkit.models.transformer import Transformer
from toolkit.serve.score import left_padded


def keeps_cache(model: nn.Module) -> bool:
    """Whether the model puts keys and values into a `KVCache`: the reference transformer does, sharded and compiled too."""
    return isinstance(getattr(model, "_orig_mod", model), Transformer)


class Cached:
    """Goes on from a cache that holds the prompts, with the prompts that `rows_R` names, by at most `room` tokens.

    >>> decoder = Cached(model, cache, rows_R, room=63)
    >>> logits_RV = decoder.step(tokens_R, lengths_R)
    """

    def __init__(self, model: nn.Module, prompts: KVCache, rows_R: Int[Tensor, "R"], *, room: int) -> None:
        self.model = model
        self._cache = prompts.select(rows_R, capacity=prompts.length + room)

    def keep(self, rows_R: Int[Tensor, "R"]) -> None:
        """Go on with these rows alone."""
        self._cache = self._cache.select(rows_R)

    def step(self, tokens_R: Int[Tensor, "R"], positions_R: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to every row, at these positions; returns the logits of the next."""
        return self.model(tokens_R[:, None], positions_BT=positions_R[:, None], cache=self._cache)[:, 0]


class Uncached:
    """Goes on from token ids alone; shorter prompts are padded on the left, and the padding is a document of its own.

    >>> decoder = Uncached(model, [[5, 3], [7]], torch.device("cpu"))
    >>> logits_PV = decoder.logits()
    >>> logits_PV = decoder.step(logits_PV.argmax(-1), torch.tensor([2, 1]))
    """

    def __init__(self, model: Any, ids: Sequence[Sequence[int]], device: torch.device) -> None:
        self.model = model
        self._tokens_RT, self._documents_RT = left_padded(ids, device)

    def keep(self, rows_R: Int[Tensor, "R"]) -> None:
        """Go on with these rows alone; a row may be named several times."""
        self._tokens_RT = self._tokens_RT[rows_R]
        self._documents_RT = None if self._documents_RT is None else self._documents_RT[rows_R]

    def step(self, tokens_R: Int[Tensor, "R"], positions_R: Int[Tensor, "R"]) -> Float[Tensor, "R V"]:
        """Append one token to every row; returns the logits of the next. Positions follow from the rows themselves."""
        self._tokens_RT = torch.cat([self._tokens_RT, tokens_R[:, None]], 1)
        if self._documents_RT is not None:
            self._documents_RT = torch.cat([self._documents_RT, self._documents_RT[:, -1:]], 1)
        return self.logits()

    def logits(self) -> Float[Tensor, "R V"]:
        """Logits after the last token of every row."""
        last_RT = torch.zeros_like(self._tokens_RT, dtype=torch.bool)
        last_RT[:, -1] = True
        return self.model(self._tokens_RT, documents_BT=self._documents_RT, where_BT=last_RT)
