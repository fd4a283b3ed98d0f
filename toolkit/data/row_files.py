"""Rows of tokens written as they come and mapped into memory when they are read: three numpy files in a folder.

Shapes: N rows, T tokens a row (the context), M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int32

from toolkit.data.encoding import Encoded

IGNORED = -100
"""Target of a position that carries no loss."""
NAMES = ("tokens_NT", "targets_NT", "documents_NT")
"""The files, without their ending."""
_HEADER_BYTES = 128

Rows = tuple[Int32[np.ndarray, "N T"], Int32[np.ndarray, "N T"], Int32[np.ndarray, "N T"]]


def rows_of(chunks: Iterable[Encoded], *, context: int, end: int) -> Iterable[Rows]:
    """Cut the tokens of documents every `context` tokens: token ids, targets, and numbers of the documents in each row.

    The target of a token is the token after it in its document, also across a cut. The last row is filled up with `end`,
    as a document of its own without targets.
    """
    rest: tuple[Any, ...] = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32), np.empty(0, dtype=bool))
    for chunk in chunks:
        targets_M = np.full(len(chunk.tokens_M), IGNORED, dtype=np.int32)
        carries = np.flatnonzero(chunk.learned_M[1:] & ~chunk.starts_M[1:])  # a chunk ends where a document does
        targets_M[carries] = chunk.tokens_M[carries + 1]
        new = (chunk.tokens_M, targets_M, chunk.starts_M)
        tokens_M, targets_M, starts_M = (np.concatenate(pair) for pair in zip(rest, new, strict=True))
        whole = len(tokens_M) // context * context
        rest = (tokens_M[whole:], targets_M[whole:], starts_M[whole:])
        if whole:
            yield _cut(tokens_M[:whole], targets_M[:whole], starts_M[:whole], context)
    if missing := -len(rest[0]) % context:
        tokens_M = np.pad(rest[0], (0, missing), constant_values=end)
        targets_M = np.pad(rest[1], (0, missing), constant_values=IGNORED)
        starts_M = np.pad(rest[2], (0, missing))
        starts_M[-missing] = True
        yield _cut(tokens_M, targets_M, starts_M, context)


def _cut(tokens_M: Any, targets_M: Any, starts_M: Any, context: int) -> Rows:
    starts_NT = starts_M.reshape(-1, context).copy()
    starts_NT[:, 0] = False
    documents_NT = starts_NT.cumsum(axis=1, dtype=np.int32)
    return tokens_M.reshape(-1, context), targets_M.reshape(-1, context), documents_NT


def write_rows(folder: Path, blocks: Iterable[tuple[np.ndarray, ...]], context: int) -> int:
    """Write blocks of rows as numpy files, one after the other; returns the number of rows."""
    num_rows = 0
    files = [(folder / f"{name}.npy").open("wb") for name in NAMES]
    try:
        for file in files:
            _header(file, 0, context)
        for block in blocks:
            for file, array in zip(files, block, strict=True):
                file.write(np.ascontiguousarray(array, dtype=np.int32).data)
            num_rows += len(block[0])
        for file in files:
            file.seek(0)
            _header(file, num_rows, context)
    finally:
        for file in files:
            file.close()
    return num_rows


def _header(file: BinaryIO, num_rows: int, context: int) -> None:
    """numpy leaves room in it for the number of rows to grow, so it can be written again when that is known."""
    header = {"descr": "<i4", "fortran_order": False, "shape": (num_rows, context)}
    np.lib.format.write_array_header_1_0(file, header)


def read_rows(folder: Path) -> Rows:
    """The three arrays, mapped into memory."""
    arrays = []
    for name in NAMES:
        path = folder / f"{name}.npy"
        arrays.append(np.load(path, mmap_mode="r" if path.stat().st_size > _HEADER_BYTES else None))  # no map of nothing
    return arrays[0], arrays[1], arrays[2]
