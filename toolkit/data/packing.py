"""Documents as rows of equal length, with nothing lost and no document seeing another.

The tokens of all documents stand one after the other, each document ended by the end token, and are cut every `context`
tokens. The target of a token is the token after it in its document, also across a cut.
Shapes: N rows, T tokens a row (the context).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toolkit.data.encoding import Encoded, encode_chunks, in_chunks
from toolkit.data.reading import Documents, MixedDocuments
from toolkit.data.row_files import IGNORED, read_rows, rows_of, write_rows
from toolkit.data.sources import Text
from toolkit.data.stream_reading import StreamedDocuments
from toolkit.models.storage import build_once, cache_folder
from toolkit.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from toolkit.data.mixing import Mixed
    from toolkit.data.streaming import Stream

__all__ = ["IGNORED", "Packed", "pack"]

_PACKER = 2  # part of the cache key: raise it when pack() writes something else
_TOGETHER = 64  # documents read at once


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


@overload
def pack(documents: MixedDocuments, tokenizer: Tokenizer, context: int, seed: int = 0) -> Mixed: ...
@overload
def pack(documents: StreamedDocuments, tokenizer: Tokenizer, context: int, seed: int = 0) -> Stream: ...
@overload
def pack(documents: Sequence[Text], tokenizer: Tokenizer, context: int, seed: int = 0) -> Packed: ...
def pack(documents: Any, tokenizer: Tokenizer, context: int, seed: int = 0) -> Packed | Mixed | Stream:
    """Tokenise and pack, once: the result is kept in the user's cache under a hash of everything that it depends on.

    `seed` shuffles the documents. The last row is filled up with end tokens that carry no loss. Documents are read, tokenised
    and written in chunks, and rows are mapped from the files, so neither has to fit into memory. A stream is packed while it
    is read, later. Raises ValueError, in one line, for no documents, nothing to learn in any of them, a conversation that the
    chat template refuses, a context below 2, or a full disk.

    >>> packed = pack(documents(Manual())[0], load_tokenizer("smollm2-135m"), context=256)
    >>> packed.context
    256
    """
    if context < 2:
        raise ValueError(f"pack: context={context} must be at least 2 tokens")
    if isinstance(documents, MixedDocuments):
        from toolkit.data.mixing import Mixed, whole_shares

        parts = tuple(pack(part, tokenizer, context, seed) for part in documents.parts)
        shares = whole_shares(documents.weights or [len(part) for part in parts])
        return Mixed(parts=parts, shares=shares, names=documents.names)
    if isinstance(documents, StreamedDocuments):
        from toolkit.data.streaming import Stream

        return Stream(documents=documents, tokenizer=tokenizer, context=context, seed=seed)
    texts = Documents.of(documents)
    if not texts:
        raise ValueError("pack: there are no documents")
    key = pack_key(tokenizer, context, seed, texts.fingerprint)

    def build(folder: Path) -> None:
        order = np.random.default_rng(seed).permutation(len(texts))
        if not build_rows(folder, in_chunks(_in_order(texts, order)), len(texts), tokenizer, context):
            raise ValueError(f"pack: nothing to learn: the texts or answers of all {len(texts)} documents are empty")

    folder = build_once(cache_folder("data") / f"packed-{key}", build)
    tokens_NT, targets_NT, documents_NT = read_rows(folder)
    return Packed(tokens_NT=tokens_NT, targets_NT=targets_NT, documents_NT=documents_NT)


def pack_key(*parts: object) -> str:
    """Name of what is packed, from everything that it depends on; a tokenizer counts with its chat template."""
    digest = hashlib.sha256(str(_PACKER).encode())
    for part in parts:
        if isinstance(part, Tokenizer):
            part = f"{part.fingerprint} {part.settings.get('chat_template')}"
        digest.update(f" {part}".encode())
    return digest.hexdigest()[:16]


def build_rows(
    folder: Path, chunks: Iterator[list[Text]], num_documents: int, tokenizer: Tokenizer, context: int
) -> int:
    """Write the packed rows of some documents; returns how many tokens there are to learn, end tokens left out."""
    said = 0

    def counted() -> Iterator[Encoded]:
        nonlocal said
        for chunk in encode_chunks(chunks, num_documents, tokenizer):
            said += chunk.num_said
            yield chunk

    write_rows(folder, rows_of(counted(), context=context, end=tokenizer.eos_id), context)
    return said


def _in_order(texts: Documents, order_D: Int[np.ndarray, "D"]) -> Iterator[Text]:
    for first in range(0, len(order_D), _TOGETHER):
        yield from texts.take(order_D[first : first + _TOGETHER])
