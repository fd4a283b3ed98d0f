"""The documents that a source names, in two parts: to learn from and held out.

Part of the documents is held out for evaluation: those whose hash falls below the share, so that the same document is always
on the same side, whatever else is added.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Float, Int, UInt8

from toolkit.data.sources import Data, Document, Hub, JsonLines, Mixture, Text, TextFiles, part_names
from toolkit.data.tables import Numbers, Table, table
from toolkit.models.storage import say

if TYPE_CHECKING:
    from toolkit.data.stream_reading import StreamedDocuments

_CHUNK = 4096  # rows read at once
_KEPT_BYTES = 64 << 20  # a set of fewer bytes stays in memory once it was read
_FEW = 2  # fewer documents than this cannot be divided by their hashes


class Documents(Sequence[Text]):
    """Texts that are read when asked for, in a fixed order; a slice is a `Documents` again.

    >>> documents(Manual())[0][0].prompt
    ''
    """

    def __init__(self, read: Callable[[Numbers], list[Text]], numbers_D: Numbers, fingerprint: str) -> None:
        """`read` gives the texts of some numbers; `fingerprint` is a hash of all the texts."""
        self.read = read
        self.numbers_D = numbers_D
        self.fingerprint = fingerprint

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Documents:
        """Documents that are in memory."""
        if isinstance(texts, Documents):
            return texts
        name = hashlib.sha256(b"".join(map(digest, texts))).hexdigest()
        return cls(lambda numbers: [texts[i] for i in numbers.tolist()], np.arange(len(texts)), name)

    def __len__(self) -> int:
        return len(self.numbers_D)

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> Text | Documents:
        if isinstance(index, slice):
            name = f"{self.fingerprint} {index.indices(len(self))}"
            return Documents(self.read, self.numbers_D[index], hashlib.sha256(name.encode()).hexdigest())
        return self.read(self.numbers_D[[index]])[0]

    def __iter__(self) -> Any:
        for first in range(0, len(self), _CHUNK):
            yield from self.read(self.numbers_D[first : first + _CHUNK])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"<{len(self)} documents>"

    def take(self, places_D: Int[np.ndarray, "D"]) -> list[Text]:
        """The documents at these places."""
        return self.read(self.numbers_D[places_D])


class MixedDocuments(Sequence[Text]):
    """The documents of a mixture: one part after the other when they are read, in proportion when they are packed."""

    def __init__(
        self, parts: Sequence[Documents | StreamedDocuments], weights: Sequence[float] | None, names: Sequence[str]
    ) -> None:
        """One weight a part, or None for the parts' sizes; and a name a part."""
        self.parts = tuple(parts)
        self.names = tuple(names)
        self.weights = None if weights is None else tuple(weights)
        names = " ".join(part.fingerprint for part in self.parts)
        self.fingerprint = hashlib.sha256(f"{names} {self.weights}".encode()).hexdigest()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)  # pyright: ignore[reportArgumentType]  (of a stream a TypeError)

    def __getitem__(self, index: Any) -> Any:
        return Documents.of([text for part in self.parts for text in part])[index]

    def __iter__(self) -> Any:
        return chain.from_iterable(self.parts)

    def __repr__(self) -> str:
        return f"<documents of {len(self.parts)} sources>"


def documents(data: Data) -> tuple[Any, Documents | MixedDocuments]:
    """The documents to learn from and those held out, both in a fixed order.

    Every row is read and checked once; they are kept in memory only where they are few. At least one document is held out
    unless `held_out` is 0; a single document is cut in two at the end of a line. Of a stream only the beginning is read here.
    ValueError, in one line, names the file, the line or the column that is missing, empty or unreadable.

    >>> train, held_out = documents(Manual())
    >>> len(train) + len(held_out) >= 70
    True
    """
    if isinstance(data, Mixture):
        return _mixture(data)
    if isinstance(data, JsonLines | TextFiles | Hub) and data.stream:
        from toolkit.data.stream_reading import stream_documents

        return stream_documents(data)
    texts = table(data)
    digests_D32, kept = _survey(texts)
    if texts.rows < _FEW and data.held_out:
        first, second = _cut(texts.read(np.arange(1))[0], data.held_out, texts.where(0))
        return Documents.of([first]), Documents.of([second])
    out_D = held_out_rows(shares(digests_D32), data.held_out)
    read = texts.read if kept is None else lambda numbers: [kept[i] for i in numbers.tolist()]
    sides = [np.flatnonzero(~out_D), np.flatnonzero(out_D)]
    both = [Documents(read, side, hashlib.sha256(digests_D32[side].tobytes()).hexdigest()) for side in sides]
    return both[0], both[1]


def _mixture(data: Mixture) -> tuple[MixedDocuments, MixedDocuments | Documents]:
    sides = [documents(part) for part in data.parts]
    names = part_names(data)
    learned = MixedDocuments([learned for learned, _ in sides], data.weights, names)
    weights = data.weights or [None] * len(sides)
    kept = [one for one in zip((held_out for _, held_out in sides), weights, names, strict=True) if one[0]]
    if not kept:
        return learned, Documents.of([])
    parts, weights, names = zip(*kept, strict=True)
    return learned, MixedDocuments(parts, None if data.weights is None else weights, names)  # pyright: ignore


def split(found: Sequence[Text], held_out: float) -> tuple[list[Text], list[Text]]:
    """Divide texts by their hashes; see `documents`."""
    if held_out and len(found) < _FEW:
        first, second = _cut(found[0], held_out, "the text")
        return [first], [second]
    digests_D32 = np.frombuffer(b"".join(map(digest, found)), dtype=np.uint8).reshape(-1, 32)
    out_D = held_out_rows(shares(digests_D32), held_out)
    pairs = list(zip(found, out_D.tolist(), strict=True))
    return [text for text, out in pairs if not out], [text for text, out in pairs if out]


def shares(digests_D32: UInt8[np.ndarray, "D 32"]) -> Float[np.ndarray, "D"]:
    """A number from 0 to 1 for each document, that depends on the document alone."""
    return np.ascontiguousarray(digests_D32[:, :8]).view(">u8")[:, 0] / 2.0**64


def held_out_rows(shares_D: Float[np.ndarray, "D"], held_out: float) -> Any:
    """Which documents are held out (bool); at least one, and never all."""
    if not held_out:
        return np.zeros(len(shares_D), dtype=bool)
    chosen = shares_D <= max(held_out, shares_D.min())
    if chosen.all():
        chosen[shares_D.argmax()] = False
    return chosen


def _survey(texts: Table) -> tuple[UInt8[np.ndarray, "D 32"], list[Text] | None]:
    """A hash of every row, and the rows themselves unless they are too many."""
    digests: list[bytes] = []
    kept: list[Text] | None = []
    size = 0
    began = spoke = time.monotonic()
    for first in range(0, texts.rows, _CHUNK):
        chunk = texts.read(np.arange(first, min(first + _CHUNK, texts.rows)))
        for row, text in enumerate(chunk, first):
            try:
                digests.append(digest(text))
            except UnicodeEncodeError:
                raise ValueError(f"{texts.where(row)}: half of a surrogate pair, which is no text") from None
        if kept is not None:
            kept += chunk
            size += sum(len(part) for text in chunk for part in text)
            kept = kept if size < _KEPT_BYTES else None
        done = first + len(chunk)
        if time.monotonic() - spoke > 2.0 and done < texts.rows:
            spoke = time.monotonic()
            say(f"read {done} of {texts.rows} rows, about {(spoke - began) * (texts.rows - done) / done:.0f} s left")
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32), kept


def digest(text: Text) -> bytes:
    """A hash that depends on the text alone."""
    prompt, tail = text if isinstance(text, Document) else ("chat", *text)
    return hashlib.sha256(f"{len(prompt)}:{prompt}{tail}".encode()).digest()


def _cut(text: Text, held_out: float, where: str) -> tuple[Document, Document]:
    if not isinstance(text, Document):
        raise ValueError(f"{where}: one conversation cannot be divided; give more, or held_out=0")
    middle = max(1, int(len(text.text) * (1.0 - held_out)))
    at = text.text.find("\n", middle) + 1 or middle
    if not text.text[at:]:
        at = text.text.rfind("\n", 0, -1) + 1
    if not text.text[:at]:
        raise ValueError("one document of one line cannot be divided: give more text, or held_out=0")
    return Document(text.prompt, text.text[:at]), Document(text.prompt, text.text[at:])
