"""How the next token is chosen: the value that says it, and the pure functions that do it.

Source: nucleus sampling, The curious case of neural text degeneration, Holtzman et al., arXiv:1904.09751; repetition penalty,
CTRL, Keskar et al., arXiv:1909.05858, section 4.1; min-p, Turning up the heat, Nguyen et al., arXiv:2407.01082.
Shapes: R rows, V vocabulary.
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
    """Logits with minus infinity at every token that `top_k`, `top_p` or `min_p`, one after the other, rule out."""
    import math

    if 0 < sampling.top_k < logits_RV.shape[1]:
        least_R1 = logits_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, float("-inf"))
    if sampling.top_p < 1.0:
        sorted_RV, tokens_RV = logits_RV.sort(dim=-1, descending=True)
        chance_RV = sorted_RV.softmax(-1)
        out_RV = chance_RV.cumsum(-1) - chance_RV >= sampling.top_p  # what stands before a token is enough already
        out_RV[:, 0] = False
        logits_RV = logits_RV.masked_fill(out_RV.scatter(1, tokens_RV, out_RV), float("-inf"))
    if sampling.min_p > 0.0:
        least_R1 = logits_RV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, float("-inf"))
    return logits_RV


def choose(logits_RV: Tensor, uniform_R: Tensor | None) -> Tensor:
    """One token a row: the likeliest, or the one in whose part of the distribution the uniform number falls."""
    import torch

    if uniform_R is None:
        return logits_RV.argmax(-1)
    cumulative_RV = logits_RV.softmax(-1).double().cumsum(-1)
    at_R1 = uniform_R[:, None] * cumulative_RV[:, -1:]
    # right=True passes over tokens of probability zero; the last token of positive probability is the limit.
    limit_R1 = (cumulative_RV >= cumulative_RV[:, -1:]).double().argmax(-1, keepdim=True)
    return torch.searchsorted(cumulative_RV, at_R1, right=True).minimum(limit_R1)[:, 0]


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
