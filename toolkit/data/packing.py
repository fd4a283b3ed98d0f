"""Documents as rows of equal length, with nothing lost and no document seeing another.

The tokens of all documents stand one after the other, each document ended by the end token, and are cut every `context`
tokens. The target of a token is the token after it in its document, also across a cut.
Shapes: N rows, T tokens a row (the context), M tokens in all.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toolkit.data.sources import Document
from toolkit.models.storage import build_once, cache_folder, say
from toolkit.models.tokenizer import Tokenizer

IGNORED = -100
"""Target of a position that carries no loss."""
_PACKER = 1  # part of the cache key: raise it when pack() writes something else
_CHUNK = 2048  # documents encoded at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Rows of tokens; a slice of it is a `Packed` again."""

    tokens_NT: Int[np.ndarray, "N T"]
    """Token ids."""
    targets_NT: Int[np.ndarray, "N T"]
    """The next token where there is a loss, IGNORED elsewhere."""
    documents_NT: Int[np.ndarray, "N T"]
    """Number of each token's document in its row, from 0."""

    def __len__(self) -> int:
        return self.tokens_NT.shape[0]

    def __getitem__(self, rows: slice) -> Packed:
        return Packed(tokens_NT=self.tokens_NT[rows], targets_NT=self.targets_NT[rows], documents_NT=self.documents_NT[rows])

    @property
    def context(self) -> int:
        """Tokens a row."""
        return self.tokens_NT.shape[1]

    @property
    def num_targets(self) -> int:
        """Positions that carry a loss."""
        return int((self.targets_NT != IGNORED).sum())

    def batch(self, rows_B: Int[np.ndarray, "B"]) -> dict[str, Tensor]:
        """The chosen rows as int64 tensors `tokens_BT`, `targets_BT`, `documents_BT`."""
        return {
            "tokens_BT": torch.from_numpy(self.tokens_NT[rows_B].astype(np.int64)),
            "targets_BT": torch.from_numpy(self.targets_NT[rows_B].astype(np.int64)),
            "documents_BT": torch.from_numpy(self.documents_NT[rows_B].astype(np.int64)),
        }


def pack(documents: Sequence[Document], tokenizer: Tokenizer, context: int, seed: int = 0) -> Packed:
    """Tokenise and pack, once: the result is kept in the user's cache under a hash of everything that it depends on.

    `seed` shuffles the documents. The last row is filled up with end tokens that carry no loss. Raises ValueError for no
    documents, or a context below 2.

    >>> packed = pack(documents(Manual())[0], load_tokenizer("smollm2-135m"), context=256)
    >>> packed.context
    256
    """
    if context < 2:
        raise ValueError(f"pack: context={context} must be at least 2 tokens")
    if not documents:
        raise ValueError("pack: there are no documents")
    digest = hashlib.sha256(f"{_PACKER} {tokenizer.fingerprint} {context} {seed}".encode())
    for part in (part for document in documents for part in document):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)

    def build(folder: Path) -> None:
        order = np.random.default_rng(seed).permutation(len(documents))
        tokens_M, starts_M, learned_M = encode([documents[i] for i in order], tokenizer)
        packed = cut(tokens_M, starts_M, learned_M, context=context, end=tokenizer.eos_id)
        for name in ("tokens_NT", "targets_NT", "documents_NT"):
            np.save(folder / f"{name}.npy", getattr(packed, name))

    folder = build_once(cache_folder("data") / f"packed-{digest.hexdigest()[:16]}", build)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens_NT", "targets_NT", "documents_NT")}
    return Packed(**arrays)


def encode(
    documents: Sequence[Document], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """All tokens; 1 where a document starts; 1 where a token is to be learned (not in a prompt).

    A document starts as the tokenizer starts one (with a start token, where it has one) and ends with its end token.
    """
    parts: list[list[int]] = []
    lengths: list[tuple[int, int]] = []
    began = spoke = time.monotonic()
    for first in range(0, len(documents), _CHUNK):
        chunk = documents[first : first + _CHUNK]
        prompts = tokenizer.encode_batch([document.prompt for document in chunk], special=True)
        texts = tokenizer.encode_batch([document.text for document in chunk])
        for prompt, text in zip(prompts, texts, strict=True):
            parts += (prompt, text)
            lengths.append((len(prompt), len(text) + 1))
        if time.monotonic() - spoke > 2.0:
            spoke = time.monotonic()
            say(f"tokenised {first + len(chunk)} of {len(documents)} documents in {spoke - began:.0f} s")
    sizes_D2 = np.array(lengths)
    ends_D = sizes_D2.sum(1).cumsum()
    tokens_M = np.full(ends_D[-1], tokenizer.eos_id, dtype=np.int32)
    inside_M = np.ones(len(tokens_M), dtype=bool)
    inside_M[ends_D - 1] = False
    tokens_M[inside_M] = np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
    starts_M = np.zeros(len(tokens_M), dtype=np.int32)
    starts_M[0] = 1
    starts_M[ends_D[:-1]] = 1
    learned_M = np.repeat(np.tile([0, 1], len(lengths)), sizes_D2.ravel())
    return tokens_M, starts_M, learned_M


def cut(
    tokens_M: Int[np.ndarray, "M"],
    starts_M: Int[np.ndarray, "M"],
    learned_M: Int[np.ndarray, "M"],
    *,
    context: int,
    end: int,
) -> Packed:
    """Rows of `context` tokens, in int32; the last is filled up with `end`, as a document of its own."""
    targets_M = np.full(len(tokens_M), IGNORED, dtype=np.int32)
    carries = (starts_M[1:] == 0) & (learned_M[1:] == 1)
    targets_M[:-1][carries] = tokens_M[1:][carries]
    missing = -len(tokens_M) % context
    padding = np.zeros(missing, dtype=np.int32)
    padding[:1] = 1
    documents_NT = np.concatenate([starts_M, padding]).cumsum().reshape(-1, context)
    return Packed(
        tokens_NT=np.pad(tokens_M, (0, missing), constant_values=end).reshape(-1, context).astype(np.int32),
        targets_NT=np.pad(targets_M, (0, missing), constant_values=IGNORED).reshape(-1, context),
        documents_NT=(documents_NT - documents_NT[:, :1]).astype(np.int32),
    )
