"""Batched generation, and the log-probability of given text.

Prompts are padded on the left to one length; the padding is a document of its own, so that no token of a prompt sees it and
positions start at the prompt. A prompt is run through the model once for all its samples. Every further token is a step of
`fused.py`, or one of `decoders.py` for another model than the plain reference transformer. Rows that have ended are dropped
from the batch as soon as half of it has.
Left out: a queue of requests that join while others run, paged memory, adapters by row.
Shapes: P prompts, R rows that still run, T prompt length, V vocabulary, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.models.cache import KVCache
from toolkit.models.tokenizer import Tokenizer
from toolkit.serve.decoders import Cached, Uncached, keeps_cache
from toolkit.serve.fused import FusedDecoder, can_fuse
from toolkit.serve.sampling import Sampling, next_tokens, uniforms
from toolkit.serve.score import Scores, left_padded, score
from toolkit.serve.stream import Reason, Stream

OnToken = Callable[[int, int, str], object]


class StopGeneration(Exception):
    """Raised by `on_token` to end a whole generation, which returns what it has."""


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
    finish_reasons: list[Reason]
    """stop: an end token or a stop text came; length: max_tokens were reached; cancelled: `on_token` ended it."""
    prompt_ids: list[list[int]]
    """Tokens of each prompt (not repeated for its samples)."""
    version: int = 0
    """Version of the weights that produced them."""


class Engine:
    """Continues prompts with `model`: a `Transformer`, with or without adapters attached, or any other that can be trained.

    A model of `transformers`, or what a builder returns, has no cache here and runs whole rows at every step: slower, the more
    tokens the more so. The model's weights are read anew at every call. While one runs, the projections that are computed as
    one product are held twice (`toolkit/serve/fused.py`), and keys and values of all rows take the memory of the longest.

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
        character is unfinished). When it returns True, that continuation ends there; when it raises `StopGeneration`, all
        do, and what they have is returned. Raises ValueError for an empty prompt and for more tokens than the model's
        context.

        >>> engine.generate(["Once"], Sampling(max_tokens=9), on_token=lambda number, token, text: "." in text)
        """
        sampling = sampling or Sampling()
        if adapters is not None:
            raise ValueError("adapters by row are not served here: attach one to the model with toolkit.adapters.adapt")
        ids = [self._ids(prompt, f"prompt {number}", sampling.max_tokens) for number, prompt in enumerate(prompts)]
        streams = [Stream(self.tokenizer, sampling.stop) for _ in range(len(ids) * sampling.group)]
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

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        continuations: Sequence[str] | Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        alternatives: int = 0,
    ) -> Scores:
        """Log-probability of every token of each continuation after its prompt, without sampling anything.

        With `alternatives` also that many likeliest tokens at each place, most likely first. A text is encoded apart from
        its prompt; give token ids where the border matters. Raises ValueError for an empty prompt, more tokens than the
        model's context, and lists of different lengths.

        >>> engine.score(["The capital of France is"], [" Paris"], alternatives=3).log_probs
        """
        if len(prompts) != len(continuations):
            raise ValueError(f"score: {len(prompts)} prompts and {len(continuations)} continuations; give one for each")
        after = [list(self.tokenizer.encode(one) if isinstance(one, str) else one) for one in continuations]
        before = [self._ids(one, f"prompt {n}", len(ids)) for (n, one), ids in zip(enumerate(prompts), after, strict=True)]
        with _evaluating(self.model):
            return score(self.model, before, after, temperature=temperature, alternatives=alternatives)

    def _ids(self, prompt: str | Sequence[int], name: str, more: int) -> list[int]:
        ids = self.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ValueError(f"{name} is empty: give at least one token")
        longest = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        if longest is not None and len(ids) + more > longest:
            raise ValueError(f"{name} has {len(ids)} tokens, with {more} to follow more than the model's context of {longest}")
        return ids

    def _run(self, ids: list[list[int]], sampling: Sampling, streams: list[Stream], on_token: OnToken | None) -> None:
        device = next(self.model.parameters()).device
        rows_R = torch.arange(len(ids), device=device).repeat_interleave(sampling.group)
        numbers = list(range(len(streams)))
        uniform_RS = uniforms(ids, sampling).to(device) if sampling.temperature > 0 else None
        logits_PV, decoder = self._prefill(ids, rows_R, sampling)
        logits_RV = logits_PV[rows_R]
        lengths_R = torch.tensor([len(prompt) for prompt in ids], device=device)[rows_R]
        seen_RV = _seen(ids, logits_PV)[rows_R] if sampling.repetition_penalty != 1.0 else None
        for step in range(sampling.max_tokens):
            uniform_R = None if uniform_RS is None else uniform_RS[:, step]
            tokens_R, log_probs_R = next_tokens(logits_RV, uniform_R, seen_RV, sampling)
            full = step + 1 == sampling.max_tokens
            try:
                running = self._hear(tokens_R.tolist(), log_probs_R.tolist(), numbers, streams, on_token, full=full)
            except StopGeneration:
                for stream in (stream for stream in streams if stream.reason == "length" and not full):
                    stream.reason = "cancelled"
                return
            if not running or full:
                return
            if 2 * len(running) <= len(numbers):
                keep_R = torch.tensor(running, device=device)
                numbers = [numbers[place] for place in running]
                tokens_R, lengths_R = tokens_R[keep_R], lengths_R[keep_R]
                uniform_RS = None if uniform_RS is None else uniform_RS[keep_R]
                seen_RV = None if seen_RV is None else seen_RV[keep_R]
                decoder.keep(keep_R)
            if seen_RV is not None:
                seen_RV.scatter_(1, tokens_R[:, None], True)
            logits_RV = decoder.step(tokens_R, lengths_R)
            lengths_R = lengths_R + 1

    def _hear(
        self,
        tokens: list[int],
        log_probs: list[float],
        numbers: list[int],
        streams: list[Stream],
        on_token: OnToken | None,
        *,
        full: bool,
    ) -> list[int]:
        """Give every row that still runs its token; returns the places of those that go on."""
        stops, running = self.tokenizer.stop_ids, []
        for place, (number, token, log_prob) in enumerate(zip(numbers, tokens, log_probs, strict=True)):
            stream = streams[number]
            if stream.reason != "length":
                continue
            piece = stream.push(token, log_prob, ended=token in stops, full=full, speak=on_token is not None)
            if on_token is not None and on_token(number, token, piece) is True and stream.reason == "length" and not full:
                stream.reason = "cancelled"
            if stream.reason == "length":
                running.append(place)
        return running

    def _prefill(
        self, ids: list[list[int]], rows_R: Tensor, sampling: Sampling
    ) -> tuple[Tensor, FusedDecoder | Cached | Uncached]:
        """Logits after each prompt, and what goes on from there with the rows of all samples."""
        if not keeps_cache(self.model):
            uncached = Uncached(self.model, ids, rows_R.device)
            logits_PV = uncached.logits()
            uncached.keep(rows_R)
            return logits_PV, uncached
        tokens_PT, documents_PT = left_padded(ids, rows_R.device)
        last_PT = torch.zeros_like(tokens_PT, dtype=torch.bool)
        last_PT[:, -1] = True
        cache = KVCache(tokens_PT.shape[1])
        logits_PV = self.model(tokens_PT, documents_BT=documents_PT, cache=cache, where_BT=last_PT)
        room = sampling.max_tokens - 1
        if room and can_fuse(self.model):
            return logits_PV, FusedDecoder(self.model, cache, group=sampling.group, room=room)
        return logits_PV, Cached(self.model, cache, rows_R, room=room)


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
