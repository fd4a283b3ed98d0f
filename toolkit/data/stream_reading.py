"""Sources that are read piece by piece while training: nothing but the piece at hand is in memory.

Files are divided into blocks of about 1 MiB (a line belongs to the block in which it begins); each pass takes the blocks in
an order of its own, 16 of them a piece. A hub set is read in its own order, in pieces of about as much text. A document is
held out when its hash falls below the threshold, as everywhere; the held-out documents are those of the first 16 MiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.data.reading import Documents, digest, held_out_rows, shares
from toolkit.data.rows import converter
from toolkit.data.sources import Document, Hub, JsonLines, Text, TextFiles
from toolkit.data.tables import decoded, files_of, hub_rows, line_number, line_text, lines_of

BLOCK = 1 << 20  # bytes
BLOCKS = 16  # of a piece
_ROWS = 1 << 14  # of a piece of a hub set, at most

Mark = dict[str, Any] | None
"""Where a piece begins: None for files, whose pieces are known beforehand."""


class Block(NamedTuple):
    """The lines of a file that begin between two offsets."""

    path: Path
    begin: int
    end: int


class StreamedDocuments:
    """The documents to learn from in a stream. Iterating reads them once, in order; training takes them piece by piece."""

    def __init__(self, data: JsonLines | TextFiles | Hub) -> None:
        """Raises ValueError, in one line, for a file or column that is missing, or a bad row at the beginning."""
        self.data = data
        self.paths = [] if isinstance(data, Hub) else files_of(data)
        self.blocks = [block for path in self.paths for block in _blocks(path)]
        self.fingerprint = hashlib.sha256(f"{data!r} {BLOCK} {BLOCKS} {[_name(p) for p in self.paths]}".encode()).hexdigest()
        self.threshold = -1.0
        begin = self._beginning()
        if not begin:
            where = f"the hub data set {data.name!r}" if isinstance(data, Hub) else self.paths[0]
            raise ValueError(f"{where} is empty")
        self.held_out: list[Text] = []
        if data.held_out and len(begin) == 1:
            raise ValueError("one document cannot be divided while it streams: give more text, or held_out=0")
        if data.held_out:
            shares_D = _shares(begin)
            out_D = held_out_rows(shares_D, data.held_out)
            self.threshold = float(shares_D[out_D].max(initial=-1.0))
            self.held_out = [text for text, out in zip(begin, out_D, strict=True) if out]

    @property
    def num_bytes(self) -> int | None:
        """Bytes of the files; None for a hub set."""
        return sum(path.stat().st_size for path in self.paths) if self.paths else None

    def __iter__(self) -> Iterator[Text]:
        if isinstance(self.data, Hub):
            mark: Mark = None
            while not mark or not mark["pass"]:
                texts, mark = _hub_piece(self.data, mark)
                yield from self._learned(texts)
        for block in self.blocks:
            yield from self._learned(list(_texts_of(block, self.data)))

    def piece(self, number: int, mark: Mark, seed: int) -> tuple[list[Text], Mark]:
        """The documents of a piece, shuffled, and where the next piece begins. Pieces of all passes are counted through."""
        if isinstance(self.data, Hub):
            texts, mark = _hub_piece(self.data, mark)
        else:
            pass_, at = divmod(number, self.pieces_a_pass or 1)
            order = np.random.default_rng((seed, pass_)).permutation(len(self.blocks))
            chosen = [self.blocks[i] for i in order[at * BLOCKS : (at + 1) * BLOCKS]]
            texts = [text for block in chosen for text in _texts_of(block, self.data)]
        learned = self._learned(texts)
        order = np.random.default_rng((seed, number, 1)).permutation(len(learned))
        return [learned[i] for i in order], mark

    @property
    def pieces_a_pass(self) -> int | None:
        """Pieces of one pass over the files; None for a hub set, which tells only in passing."""
        return -(-len(self.blocks) // BLOCKS) if self.paths else None

    def _learned(self, texts: Sequence[Text]) -> list[Text]:
        if self.threshold < 0 or not texts:
            return list(texts)
        return [text for text, share in zip(texts, _shares(texts).tolist(), strict=True) if share > self.threshold]

    def _beginning(self) -> list[Text]:
        if isinstance(self.data, Hub):
            return _hub_piece(self.data, None)[0]
        return [text for block in self.blocks[:BLOCKS] for text in _texts_of(block, self.data)]


def stream_documents(data: JsonLines | TextFiles | Hub) -> tuple[StreamedDocuments, Documents]:
    """The documents of a stream, and those held out of its beginning, which are in memory."""
    streamed = StreamedDocuments(data)
    return streamed, Documents.of(streamed.held_out)


def _shares(texts: Sequence[Text]) -> Any:
    return shares(np.frombuffer(b"".join(map(digest, texts)), dtype=np.uint8).reshape(-1, 32))


def _blocks(path: Path) -> list[Block]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return [Block(path, begin, min(begin + BLOCK, size)) for begin in range(0, size, BLOCK)]


def _name(path: Path) -> tuple[str, int, str]:
    """What a file is recognised by when a run goes on: its name, its size, its beginning and end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        return path.name, size, hashlib.sha256(ends + file.read()).hexdigest()


def _texts_of(block: Block, data: TextFiles | JsonLines | Hub) -> Iterator[Text]:
    if isinstance(data, TextFiles):
        text = b"".join(line for _, line in _lines_of(block))
        if text and not text.isspace():
            line = 1 if text.isascii() else line_number(block.path, block.begin)
            yield Document("", decoded(text, block.path, line))
        return
    assert isinstance(data, JsonLines)
    convert = converter(data)
    for offset, line in _lines_of(block):
        if not line.isspace():
            yield line_text(line, lambda at=offset: f"{block.path}, line {line_number(block.path, at)}", convert)


def _lines_of(block: Block) -> Iterator[tuple[int, bytes]]:
    with block.path.open("rb") as file:
        if block.begin:  # the line that reaches into this block belongs to the one before
            file.seek(block.begin - 1)
            while (part := file.readline(1 << 16)) and not part.endswith(b"\n"):
                pass
        yield from lines_of(file, block.path, block.end)


def _hub_piece(data: Hub, mark: Mark) -> tuple[list[Text], Mark]:
    """The next rows of a hub set, and where the rows after them begin: pass and the state that `datasets` gives."""
    rows, convert = hub_rows(data, stream=True), converter(data)
    if mark and mark["source"] is not None:
        rows.load_state_dict(mark["source"])
    pass_, found, letters = mark["pass"] if mark else 0, [], 0
    for row in rows:
        found.append(convert(row, f"the hub data set {data.name!r}, row {len(found)} of a piece"))
        letters += sum(map(len, found[-1]))
        if letters >= BLOCK * BLOCKS or len(found) == _ROWS:
            return found, {"pass": pass_, "source": rows.state_dict()}
    return found, {"pass": pass_ + 1, "source": None}
