"""Documents as token ids: on all cores, chunk by chunk, with the time left.

While the tokenizer's threads work on one chunk, the one before is turned into arrays, so memory holds two chunks.
Shapes: M tokens of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from typing import cast

import numpy as np
from jaxtyping import Bool, Int32

from toolkit.data.sources import Conversation, Document, Text
from toolkit.models.storage import say
from toolkit.models.tokenizer import Tokenizer

_LETTERS = 4 << 20  # of a chunk, about
_DOCUMENTS = 4096  # of a chunk, about
_Ids = tuple[list[list[int]], list[list[int]], int]  # pieces of all tokens; per document its runs; tokens said


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The tokens of some documents, one after the other."""

    tokens_M: Int32[np.ndarray, "M"]
    """Token ids."""
    starts_M: Bool[np.ndarray, "M"]
    """Whether a document begins here."""
    learned_M: Bool[np.ndarray, "M"]
    """Whether the token is to be learned: it belongs to a text or to an answer, not to a prompt."""
    num_said: int
    """Tokens to be learned besides the end tokens."""


def encode(texts: Sequence[Text], tokenizer: Tokenizer) -> Encoded:
    """All tokens of a few documents.

    A document starts as the tokenizer starts one (with a start token, where it has one) and ends with its end token. A
    conversation is what the model's chat template makes of it.

    >>> encode([Document("a", "bc")], byte_tokenizer()).learned_M
    array([False,  True,  True,  True])
    """
    return _arrays(_ids(texts, tokenizer))


def encode_chunks(chunks: Iterable[list[Text]], num_documents: int, tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode chunk after chunk, one ahead of what is asked for; after 2 s it says how far it is."""
    began = spoke = time.monotonic()
    source, done = iter(chunks), 0

    def ahead() -> tuple[int, _Ids] | None:
        chunk = next(source, None)
        return None if chunk is None else (len(chunk), _ids(chunk, tokenizer))

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = thread.submit(ahead)
        while (found := waiting.result()) is not None:
            waiting = thread.submit(ahead)
            yield _arrays(found[1])
            done += found[0]
            if time.monotonic() - spoke > 2.0 and done < num_documents:
                spoke = time.monotonic()
                left = (spoke - began) * (num_documents - done) / done
                say(f"tokenised {done} of {num_documents} documents, about {left:.0f} s left")


def in_chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Texts in lists that are large enough to keep all cores busy and small enough for memory."""
    chunk: list[Text] = []
    letters = 0
    for text in texts:
        chunk.append(text)
        letters += sum(map(len, text))
        if letters >= _LETTERS or len(chunk) >= _DOCUMENTS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _ids(texts: Sequence[Text], tokenizer: Tokenizer) -> _Ids:
    """Ids in pieces. The runs of a document are the lengths of what is not learned and what is, in turn."""
    if any(isinstance(text, Conversation) for text in texts):
        return _mixed_ids(texts, tokenizer)
    prompts, answers = zip(*cast("Sequence[Document]", texts), strict=True)
    if any(prompts):
        heads = tokenizer.encode_batch(prompts, special=True)
    else:  # encoding nothing thousands of times takes time too
        heads = [tokenizer.encode("", special=True)] * len(prompts)
    bodies, end = tokenizer.encode_batch(answers), [tokenizer.eos_id]
    pieces = list(chain.from_iterable((head, body, end) for head, body in zip(heads, bodies, strict=True)))
    runs = [[len(head), len(body) + 1] for head, body in zip(heads, bodies, strict=True)]
    return pieces, runs, sum(map(len, bodies))


def _mixed_ids(texts: Sequence[Text], tokenizer: Tokenizer) -> _Ids:
    """The same for a chunk with conversations in it; neighbours of one kind go together."""
    pieces, runs, said = [], [], 0
    for is_chat, group in groupby(texts, lambda text: isinstance(text, Conversation)):
        some = list(group)
        if is_chat:
            found = tokenizer.encode_answers([cast("Conversation", text).turns for text in some])
            for ids, learned in found:
                pieces.append(ids)
                lengths = [(value, len(list(run))) for value, run in groupby(learned)]
                runs.append(([0] if lengths[0][0] else []) + [length for _, length in lengths])
                runs[-1] += [0] * (len(runs[-1]) % 2)
                said += max(0, sum(learned) - 1)
        else:
            more = _ids(some, tokenizer)
            pieces, runs, said = pieces + more[0], runs + more[1], said + more[2]
    return pieces, runs, said


def _arrays(ids: _Ids) -> Encoded:
    pieces, runs, said = ids
    lengths = np.fromiter(map(sum, runs), dtype=np.int64, count=len(runs))
    total = int(lengths.sum())
    starts_M = np.zeros(total, dtype=bool)
    starts_M[lengths.cumsum() - lengths] = True
    flat = np.fromiter(chain.from_iterable(runs), dtype=np.int64)
    return Encoded(
        tokens_M=np.fromiter(chain.from_iterable(pieces), dtype=np.int32, count=total),
        starts_M=starts_M,
        learned_M=np.repeat(np.arange(len(flat)) % 2 == 1, flat),
        num_said=said,
    )
