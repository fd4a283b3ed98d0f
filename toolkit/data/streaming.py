"""Rows of a stream: each piece is tokenised and packed before its turn comes, and forgotten afterwards.

All processes of a machine share the files of a piece: one of them makes it, while the piece before is trained on, and only
the newest three are kept. What has to be remembered to go on exactly is one entry: the number of a piece, its first row's
place in the order, and where it begins in the source.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.encoding import in_chunks
from toolkit.data.packing import Packed, build_rows, pack_key
from toolkit.data.row_files import read_rows, write_rows
from toolkit.data.stream_reading import Mark, StreamedDocuments
from toolkit.models.storage import build_once, cache_folder, remove_unused
from toolkit.models.tokenizer import Tokenizer

_KEPT = 2  # pieces, also on disk
_BYTES_A_TOKEN = 4  # of English text, about
_UNKNOWN = 1_000_000  # rows of a pass when nobody knows
_EMPTY = 64  # pieces without a row, after which a hub set counts as empty
_STALE = 7 * 24 * 3600  # seconds, after which a piece that a killed run left is removed


def _remove_stale(cache: Path) -> None:
    """Whole pieces, half-written ones (`.stream-*.partial`) and locks, of runs that ended long ago."""
    for path in (*cache.glob("stream-*"), *cache.glob(".stream-*")):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                if path.suffix == ".lock":
                    remove_unused(path)
                else:
                    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Rows that are made while training goes on; `StepLoader` takes it as it takes a `Packed`."""

    documents: StreamedDocuments
    """Where they come from."""
    tokenizer: Tokenizer
    """What cuts texts into tokens."""
    context: int
    """Tokens a row."""
    seed: int
    """Shuffles the blocks of a pass and the documents of a piece."""

    def __len__(self) -> int:
        """Rows of a pass, estimated at 4 bytes a token; a million for a hub set."""
        size = self.documents.num_bytes
        return _UNKNOWN if size is None else max(1, size // _BYTES_A_TOKEN // self.context)

    @property
    def key(self) -> str:
        """A name for everything that the rows depend on."""
        return pack_key("stream", self.tokenizer, self.context, self.seed, self.documents.fingerprint)

    def folder(self, number: int) -> Path:
        """Where a piece is kept while it is needed."""
        return cache_folder("data") / f"stream-{self.key}-{number}"

    def make(self, folder: Path, number: int, mark: Mark) -> None:
        """Write a piece that begins at `mark` into its folder, unless it is there."""

        def build(folder: Path) -> None:
            texts, following = self.documents.piece(number, mark, self.seed)
            if not build_rows(folder, in_chunks(texts), len(texts), self.tokenizer, self.context):
                write_rows(folder, (), self.context)
            (folder / "next.json").write_text(json.dumps(following))

        build_once(folder, build, lock=folder.with_name(f".stream-{self.key}.lock"))

    def piece(self, number: int, mark: Mark) -> tuple[Packed, Mark]:
        """The rows of a piece that begins at `mark`, and where the next one begins."""
        folder = self.folder(number)
        while True:
            self.make(folder, number, mark)
            try:
                tokens_NT, targets_NT, documents_NT = read_rows(folder)
                following = json.loads((folder / "next.json").read_text())
            except FileNotFoundError:  # another run over the same data just went on and removed it
                continue
            return Packed(tokens_NT=tokens_NT, targets_NT=targets_NT, documents_NT=documents_NT), following

    def remove(self, number: int) -> None:
        """Remove the files of a piece; who has them mapped keeps them."""
        shutil.rmtree(self.folder(number), ignore_errors=True)


class Streaming:
    """The endless rows of a stream, from any place on that was saved."""

    def __init__(self, stream: Stream, seed: tuple[int, ...]) -> None:
        """`seed` shuffles the rows of each piece."""
        self.stream = stream
        self.seed = seed
        self.rows_a_pass = len(stream)
        self._known: list[dict[str, Any]] = [{"row": 0, "piece": 0, "mark": None}]
        self._open: dict[int, tuple[Packed, Any]] = {}
        self._ahead = ThreadPoolExecutor(max_workers=1)  # no daemon: the tokenizer must not outlive the interpreter
        _remove_stale(stream.folder(0).parent)

    def identity(self) -> str:
        """What the order depends on besides the seeds and the size of a step."""
        return self.stream.key

    def batch(self, first: int, last: int) -> dict[str, Tensor]:
        """The rows at places `first` to `last`."""
        found = []
        while first < last:
            entry, packed, order = self._at(first)
            rows = order[first - entry["row"] : last - entry["row"]]
            found.append(packed.batch(rows))
            first += len(rows)
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def state(self, place: int) -> dict[str, Any]:
        """What a loader that goes on at `place` must know; any process that went this far can tell."""
        return dict(self._entry(place))

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a saved state."""
        self._known = [dict(state or {"row": 0, "piece": 0, "mark": None})]
        self._open.clear()

    def _entry(self, place: int) -> dict[str, Any]:
        if place < self._known[0]["row"]:
            self.restore(None)
        return [entry for entry in self._known if entry["row"] <= place][-1]

    def _at(self, place: int) -> tuple[dict[str, Any], Packed, Any]:
        """The piece that holds a place, and the order of its rows; opens every piece up to it."""
        entry, empty = self._entry(place), 0
        while True:
            packed, order, following = self._opened(entry)
            if place < entry["row"] + len(packed):
                return entry, packed, order
            empty = 0 if len(packed) else empty + 1
            if empty > (self.stream.documents.pieces_a_pass or _EMPTY):
                raise ValueError("pack: nothing to learn: the stream holds no text besides what is held out")
            number = entry["piece"] + 1
            entry = {"row": entry["row"] + len(packed), "piece": number, "mark": following}
            if all(known["piece"] != number for known in self._known):
                self._known = [*self._known, entry][-2 * _KEPT :]

    def _opened(self, entry: Mapping[str, Any]) -> tuple[Packed, Any, Mark]:
        number = entry["piece"]
        if number not in self._open:
            packed, following = self.stream.piece(number, entry["mark"])
            order = np.random.default_rng((*self.seed, number)).permutation(len(packed))
            for old in [known for known in self._open if known <= number - _KEPT]:
                self._open.pop(old)
                self.stream.remove(old)
            self._open[number] = (packed, (order, following))
            self._ahead.submit(self._make, self.stream.folder(number + 1), number + 1, following)
        packed, (order, following) = self._open[number]
        return packed, order, following

    def _make(self, folder: Path, number: int, mark: Mark) -> None:
        with suppress(Exception):  # whoever needs this piece makes it anew, and raises what is wrong with it
            self.stream.make(folder, number, mark)
