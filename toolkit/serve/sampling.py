"""How the next token is chosen: the value that says it, and the pure functions that do it.

Source: nucleus sampling, The curious case of neural text degeneration, Holtzman et al., arXiv:1904.09751; repetition penalty,
CTRL, Keskar et al., arXiv:1909.05858, section 4.1; min-p, Turning up the heat, Nguyen et al., arXiv:2407.01082.
Shapes: R rows, V vocabulary, N candidates; K blocks of B tokens of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from toolkit.values import Range, check

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to continue prompts; the defaults take the likeliest token each time."""

    max_tokens: Annotated[int, Range(1)] = 64
    """Longest continuation, in tokens."""
    temperature: Annotated[float, Range(0.0)] = 0.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Annotated[int, Range(0)] = 0
    """Sample among this many likeliest tokens; 0 for all."""
    top_p: Annotated[float, Range(0.0, 1.0, exclusive_low=True)] = 1.0
    """Sample among the fewest tokens that have this probability together."""
    min_p: Annotated[float, Range(0.0, 1.0)] = 0.0
    """Sample among tokens at least this likely, as a share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Range(0.0, exclusive_low=True)] = 1.0
    """Divides positive and multiplies negative logits of tokens that stand in the prompt or the continuation; 1 for none."""
    seed: Annotated[int, Range(0)] = 0
    """Same seed, prompt and sample number: same continuation, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    """Texts after which a continuation ends, besides the model's own end tokens; they are left out of the text."""
    group: Annotated[int, Range(1)] = 1
    """Samples of each prompt."""

    __post_init__ = check


def penalise(logits_RV: Tensor, seen_RV: Tensor, penalty: float) -> Tensor:
    """Logits with the tokens in `seen_RV` (bool) made less likely, for a penalty above 1."""
    import torch

    less_RV = torch.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
    return torch.where(seen_RV, less_RV, logits_RV)


def truncate(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """Logits with minus infinity at every token that `top_k`, `top_p` or `min_p`, one after the other, rule out.

    Tokens exactly as likely as the last one that is kept are kept too.
    """
    import math

    if 0 < sampling.top_k < logits_RV.shape[1]:
        logits_RV = _keep(logits_RV, logits_RV.topk(sampling.top_k, dim=-1).values[:, -1:])
    if sampling.top_p < 1.0:
        logits_RV = _keep(logits_RV, _nucleus(logits_RV, sampling))
    if sampling.min_p > 0.0:
        logits_RV = _keep(logits_RV, logits_RV.amax(-1, keepdim=True) + math.log(sampling.min_p))
    return logits_RV


def _keep(logits_RV: Tensor, least_R1: Tensor) -> Tensor:
    return logits_RV.masked_fill(logits_RV < least_R1, float("-inf"))


def _nucleus(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """The smallest logit of the likeliest tokens that reach `top_p` together, in each row.

    Sorting a whole vocabulary costs more than all else here, and nearly always the first thousand tokens are enough.
    """
    total_R1, vocabulary = logits_RV.logsumexp(-1, keepdim=True), logits_RV.shape[1]
    for size in (sampling.top_k or 1024, vocabulary):
        sorted_RN = logits_RV.topk(size, dim=-1).values if size < vocabulary else logits_RV.sort(-1, descending=True).values
        chance_RN = (sorted_RN - total_R1).exp()
        before_RN = chance_RN.cumsum(-1) - chance_RN
        kept_R = (before_RN < sampling.top_p).sum(-1).clamp(min=1)
        if size >= vocabulary or sampling.top_k or bool((kept_R < size).all()):
            break
    return sorted_RN.gather(1, kept_R[:, None] - 1)


def choose(logits_RV: Tensor, uniform_R: Tensor | None) -> Tensor:
    """One token a row: the likeliest, or the one in whose part of the distribution the uniform number falls."""
    if uniform_R is None:
        return logits_RV.argmax(-1)
    import torch

    chance_RV, share_R1 = logits_RV.softmax(-1), uniform_R[:, None]
    if logits_RV.shape[1] <= _BLOCK**2:
        return _fall(chance_RV, share_R1 * chance_RV.sum(-1, keepdim=True, dtype=torch.float64))[0][:, 0]
    # First a block of the vocabulary, then a token in it: running sums of every token in double would cost more than all else.
    chance_RKB = torch.nn.functional.pad(chance_RV, (0, -chance_RV.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    blocks_RK = chance_RKB.sum(-1, dtype=torch.float64)
    block_R1, rest_R1 = _fall(blocks_RK, share_R1 * blocks_RK.sum(-1, keepdim=True))
    inside_RB = chance_RKB.gather(1, block_R1[:, :, None].expand(-1, -1, _BLOCK))[:, 0]
    return (block_R1 * _BLOCK + _fall(inside_RB, rest_R1)[0])[:, 0]


def _fall(weights_RN: Tensor, at_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Into whose part of the running sum each number falls, and how far into that part; never one of weight zero."""
    import torch

    cumulative_RN = weights_RN.double().cumsum(-1)
    # right=True passes over those of weight zero; the last one of positive weight is the limit.
    limit_R1 = (cumulative_RN >= cumulative_RN[:, -1:]).double().argmax(-1, keepdim=True)
    place_R1 = torch.searchsorted(cumulative_RN, at_R1, right=True).minimum(limit_R1)
    return place_R1, at_R1 - (cumulative_RN.gather(1, place_R1) - weights_RN.double().gather(1, place_R1))


def next_tokens(
    logits_RV: Tensor, uniform_R: Tensor | None, seen_RV: Tensor | None, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """The chosen token of each row, and its log-probability in the model's own distribution at the sampling temperature.

    `uniform_R` are random numbers in [0, 1), None takes the likeliest; `seen_RV` says which tokens the penalty is for.
    """
    logits_RV = logits_RV.double() if logits_RV.element_size() == 8 else logits_RV.float()
    policy_RV = logits_RV / sampling.temperature if sampling.temperature not in (0.0, 1.0) else logits_RV
    chosen_RV = policy_RV
    if seen_RV is not None:
        chosen_RV = penalise(logits_RV, seen_RV, sampling.repetition_penalty) / (sampling.temperature or 1.0)
    tokens_R = choose(chosen_RV if uniform_R is None else truncate(chosen_RV, sampling), uniform_R)
    return tokens_R, policy_RV.gather(1, tokens_R[:, None])[:, 0] - policy_RV.logsumexp(-1)


def uniforms(prompts: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """The random numbers of every sample (prompts x group) and step, in [0, 1), float64.

    Each row is a stream of its own that depends on the seed, the prompt's tokens and how often this prompt came before.
    """
    import numpy as np
    import torch

    times: Counter[bytes] = Counter()
    rows = []
    for prompt in prompts:
        key = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
        for _ in range(sampling.group):
            entropy = (sampling.seed, times[key], *np.frombuffer(key, dtype="<u4").tolist())
            times[key] += 1
            rows.append(np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(sampling.max_tokens))
    return torch.from_numpy(np.stack(rows))
