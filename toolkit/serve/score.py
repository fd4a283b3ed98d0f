"""How likely given text is: log-probabilities of continuations, from plain forwards over whole rows.

Shapes: P rows, T tokens of the longest row, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LOGITS = 1 << 25
"""Logits that one forward may leave (128 MiB in float32)."""


@dataclass(kw_only=True, slots=True)
class Scores:
    """What `Engine.score` found; every list has one entry a continuation, and in it one a token."""

    token_ids: list[list[int]]
    """Tokens of each continuation."""
    log_probs: list[list[float]]
    """Log-probability of each token after all that stand before it."""
    alternatives: list[list[list[tuple[int, float]]]]
    """Likeliest tokens at each place with their log-probabilities, most likely first; empty where none were asked for."""


def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    alternatives: int = 0,
) -> Scores:
    """Log-probabilities of continuations after their prompts, both as token ids, by a model in evaluation mode.

    Raises ValueError for a temperature that is not above 0 and for more alternatives than the vocabulary has tokens.
    """
    if temperature <= 0:
        raise ValueError(f"score: temperature must be above 0, got {temperature}")
    vocabulary = model.config.vocab_size
    if not 0 <= alternatives <= vocabulary:
        raise ValueError(f"score: alternatives must be between 0 and the vocabulary's {vocabulary}, got {alternatives}")
    found = Scores(token_ids=[list(ids) for ids in continuations], log_probs=[], alternatives=[])
    for batch in _batches(continuations, max(1, _LOGITS // vocabulary)):
        after = [list(continuations[row]) for row in batch]
        logits_NV = _logits(model, [list(prompts[row]) for row in batch], after) / temperature
        log_probs_NV = logits_NV.log_softmax(-1)
        tokens_N1 = torch.tensor([token for ids in after for token in ids], dtype=torch.int64, device=logits_NV.device)[:, None]
        chosen = iter(log_probs_NV.gather(1, tokens_N1)[:, 0].tolist())
        best = log_probs_NV.topk(alternatives, -1)
        pairs = iter([list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
        found.log_probs += [[next(chosen) for _ in ids] for ids in after]
        found.alternatives += [[next(pairs) for _ in ids] for ids in after]
    return found


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows of one length, padded on the left with zeros, and their documents: the padding is one of its own."""
    longest = max(len(row) for row in rows)
    tokens_PT = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    lengths_P = torch.tensor([len(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return tokens_PT, None
    return tokens_PT, (torch.arange(longest, device=device) >= longest - lengths_P[:, None]).long()


def _logits(model: Any, before: list[list[int]], after: list[list[int]]) -> Tensor:
    """Logits from which each token of `after` comes, row after row."""
    device = next(model.parameters()).device
    tokens_PT, documents_PT = left_padded([[*p, *c] for p, c in zip(before, after, strict=True)], device)
    end = tokens_PT.shape[1] - 1
    where_PT = torch.zeros_like(tokens_PT, dtype=torch.bool)
    for row, ids in enumerate(after):
        where_PT[row, end - len(ids) : end] = True
    logits_NV = model(tokens_PT, documents_BT=documents_PT, where_BT=where_PT)
    return logits_NV.double() if logits_NV.dtype == torch.float64 else logits_NV.float()


def _batches(rows: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Numbers of neighbouring rows that have at most so many tokens together (or are one row)."""
    batch: list[int] = []
    held = 0
    for number, row in enumerate(rows):
        if batch and held + len(row) > tokens:
            yield batch
            batch, held = [], 0
        batch.append(number)
        held += len(row)
    if batch:
        yield batch
