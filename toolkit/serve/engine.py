"""Batched generation from the reference transformer.

Prompts are padded on the left to one length; the padding is a document of its own, so that no token of a prompt sees it and
positions start at the prompt. A prompt is run through the model once for all its samples. Rows that have ended are dropped
from the batch as soon as half of it has.
Left out: a queue of requests that join while others run, paged memory, adapters by row.
Shapes: P prompts, R rows that still run, T prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolkit.models.cache import KVCache
from toolkit.models.tokenizer import Tokenizer
from toolkit.serve.sampling import Sampling, choose, penalise, truncate, uniforms

OnToken = Callable[[int, int, str], None]


@dataclass(kw_only=True, slots=True)
class Generations:
    """Continuations, the samples of a prompt next to each other: sample g of prompt p has the number p * group + g."""

    texts: list[str]
    """Text of each continuation, without the end token or stop text."""
    token_ids: list[list[int]]
    """Its tokens, the end token included."""
    log_probs: list[list[float]]
    """Log-probability of each token in the model's distribution at the sampling temperature (1 when that is 0), before any
    penalty or truncation."""
    finish_reasons: list[Literal["stop", "length"]]
    """stop: an end token or a stop text came; length: max_tokens were reached."""
    prompt_ids: list[list[int]]
    """Tokens of each prompt (not repeated for its samples)."""
    version: int = 0
    """Version of the weights that produced them."""


class Engine:
    """Continues prompts with `model` (a `Transformer`, with or without adapters attached).

    >>> engine = Engine(load_model("smollm2-135m"), load_tokenizer("smollm2-135m"))
    >>> engine.generate(["The capital of France is"], Sampling(max_tokens=1)).texts
    [' Paris']
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.version = 0
        """Version of the weights, as `load_weights` was told."""

    def load_weights(self, version: int, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Go over to weights of another version: copied from `tensors`, by name, into the model.

        Without `tensors` the model is shared with a trainer, has them already, and only the number is noted. Raises
        ValueError for a name or shape that the model does not have.
        """
        own = self.model.state_dict()
        for name, tensor in (tensors or {}).items():
            if name not in own or own[name].shape != tensor.shape:
                shape = tuple(own[name].shape) if name in own else "no such tensor"
                raise ValueError(f"load_weights: {name} is {tuple(tensor.shape)}, the model has {shape}")
        with torch.no_grad():
            for name, tensor in (tensors or {}).items():
                own[name].copy_(tensor)
        self.version = version

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        adapters: None = None,
        on_token: OnToken | None = None,
    ) -> Generations:
        """Continue each prompt, text or token ids, `sampling.group` times.

        `on_token(number, token, text)` is called for every token as it comes, with the text that it completes (empty while a
        character is unfinished). Raises ValueError for an empty prompt and for more tokens than the model's context.
        """
        sampling = sampling or Sampling()
        if adapters is not None:
            raise ValueError("adapters by row are not served here: attach one to the model with toolkit.adapters.adapt")
        ids = [self._ids(prompt, number, sampling) for number, prompt in enumerate(prompts)]
        streams = [_Stream(self.tokenizer, sampling.stop) for _ in range(len(ids) * sampling.group)]
        if ids:
            with _evaluating(self.model):
                self._run(ids, sampling, streams, on_token)
        return Generations(
            texts=[stream.text for stream in streams],
            token_ids=[stream.tokens for stream in streams],
            log_probs=[stream.log_probs for stream in streams],
            finish_reasons=[stream.reason for stream in streams],
            prompt_ids=ids,
            version=self.version,
        )

    def _ids(self, prompt: str | Sequence[int], number: int, sampling: Sampling) -> list[int]:
        ids = self.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        longest = self.model.config.max_position_embeddings
        if len(ids) + sampling.max_tokens > longest:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens, with max_tokens={sampling.max_tokens} more than the model's {longest}"
            )
        return ids

    def _run(self, ids: list[list[int]], sampling: Sampling, streams: list[_Stream], on_token: OnToken | None) -> None:
        device = self.model.model.norm.weight.device
        rows_R = torch.arange(len(ids), device=device).repeat_interleave(sampling.group)
        numbers = list(range(len(streams)))
        uniform_RS = uniforms(ids, sampling).to(device) if sampling.temperature > 0 else None
        logits_PV, cache, lengths_P = self._prefill(ids, device)
        cache = cache.select(rows_R, capacity=cache.length + sampling.max_tokens - 1)
        logits_RV, lengths_R = logits_PV[rows_R], lengths_P[rows_R]
        seen_RV = _seen(ids, logits_PV)[rows_R] if sampling.repetition_penalty != 1.0 else None
        stops = self.tokenizer.stop_ids
        for step in range(sampling.max_tokens):
            uniform_R = None if uniform_RS is None else uniform_RS[:, step]
            tokens_R, log_probs_R = _next(logits_RV, uniform_R, seen_RV, sampling)
            full = step + 1 == sampling.max_tokens
            running = []
            for place, (token, log_prob) in enumerate(zip(tokens_R.tolist(), log_probs_R.tolist(), strict=True)):
                stream = streams[numbers[place]]
                if stream.reason == "stop":
                    continue
                piece = stream.push(token, log_prob, ended=token in stops, full=full, speak=on_token is not None)
                if on_token is not None:
                    on_token(numbers[place], token, piece)
                if stream.reason != "stop":
                    running.append(place)
            if not running or full:
                return
            if 2 * len(running) <= len(numbers):
                keep_R = torch.tensor(running, device=device)
                numbers = [numbers[place] for place in running]
                cache, tokens_R, lengths_R = cache.select(keep_R), tokens_R[keep_R], lengths_R[keep_R]
                uniform_RS = None if uniform_RS is None else uniform_RS[keep_R]
                seen_RV = None if seen_RV is None else seen_RV[keep_R]
            if seen_RV is not None:
                seen_RV.scatter_(1, tokens_R[:, None], True)
            logits_RV = self.model(tokens_R[:, None], positions_BT=lengths_R[:, None], cache=cache)[:, 0]
            lengths_R = lengths_R + 1

    def _prefill(self, ids: list[list[int]], device: torch.device) -> tuple[Tensor, KVCache, Tensor]:
        """Logits after each prompt, the cache that holds them, and their lengths."""
        longest = max(len(prompt) for prompt in ids)
        tokens_PT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in ids], device=device)
        lengths_P = torch.tensor([len(prompt) for prompt in ids], device=device)
        documents_PT = None
        if any(len(prompt) < longest for prompt in ids):
            documents_PT = (torch.arange(longest, device=device) >= longest - lengths_P[:, None]).long()
        last_PT = torch.zeros_like(tokens_PT, dtype=torch.bool)
        last_PT[:, -1] = True
        cache = KVCache(longest)
        logits_PV = self.model(tokens_PT, documents_BT=documents_PT, cache=cache, where_BT=last_PT)
        return logits_PV, cache, lengths_P


@dataclass(slots=True)
class _Stream:
    """One continuation as it grows."""

    tokenizer: Tokenizer
    stop: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    reason: Literal["stop", "length"] = "length"
    spoken: int = 0
    cut: int | None = None

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.tokens)[: self.cut]

    def push(self, token: int, log_prob: float, *, ended: bool, full: bool, speak: bool) -> str:
        """Add a token, an end token or the last allowed one; returns the text that can be shown now and was not before."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        if ended:
            self.reason = "stop"
        if not (self.stop or speak):
            return ""
        text = self.tokenizer.decode(self.tokens)
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.reason, self.cut = "stop", min(found)
        whole = text[: self.cut] if self.reason == "stop" or full else text[: _shown(text, self.stop)]
        piece, self.spoken = whole[self.spoken :], max(self.spoken, len(whole))
        return piece


def _shown(text: str, stop: tuple[str, ...]) -> int:
    """Length of the part that is certain: no unfinished character, no beginning of a stop text at its end."""
    end = len(text.rstrip("\ufffd"))
    held = [size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])]
    return min(end, len(text) - max(held, default=0))


def _next(logits_RV: Tensor, uniform_R: Tensor | None, seen_RV: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The chosen tokens and their log-probabilities."""
    logits_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    policy_RV = logits_RV / sampling.temperature if sampling.temperature > 0 else logits_RV
    if seen_RV is not None:
        logits_RV = penalise(logits_RV, seen_RV, sampling.repetition_penalty)
    if uniform_R is not None:
        logits_RV = truncate(logits_RV / sampling.temperature, sampling)
    tokens_R = choose(logits_RV, uniform_R)
    return tokens_R, policy_RV.gather(1, tokens_R[:, None])[:, 0] - policy_RV.logsumexp(-1)


def _seen(ids: list[list[int]], like_PV: Tensor) -> Tensor:
    seen_PV = torch.zeros_like(like_PV, dtype=torch.bool)
    for row, prompt in enumerate(ids):
        seen_PV[row, prompt] = True
    return seen_PV


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
