"""Step time and memory over all ranks of a run: lowest, middle and highest at each step, read as the series files grow."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from toolkit.runs.files import open_plain
from toolkit.runs.series import PAIR, series_path

__all__ = ["ACROSS_RANKS", "RankSeries"]

ACROSS_RANKS = ("step_seconds", "memory_bytes")
RECENT = 50
"""Steps over which the slowest rank is looked for."""
ALIKE = 1.02
"""A slowest rank that takes less than this times the middle one is not named."""

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Steps, lowest, middle and highest value over the ranks; each [N]."""


class RankSeries:
    """One metric of every rank of one run. `new()` reads on; `band` is all there is so far.

    Shapes: R ranks, N steps that every rank has written.
    """

    def __init__(self, folder: Path, metric: str, ranks: int) -> None:
        paths = [series_path(folder, metric, rank) for rank in range(ranks)]
        self._paths = [path for path in paths if path is not None]
        self._forget()

    def _forget(self) -> None:
        self._offsets = [0] * len(self._paths)
        self._waiting = [b""] * len(self._paths)
        self._parts: list[Band] = []
        self.recent_RN = np.empty((len(self._paths), 0))
        """Values of the last steps."""
        self.step = -1
        """Last step that every rank has written."""

    def new(self) -> tuple[Band | None, bool]:
        """What came since the last call, None if nothing did, and whether all before it is void (a resume cut the files)."""
        void = False
        if not self._read():
            self._forget()
            void = True
            self._read()
        steps, values_RN = self._aligned()
        if not len(steps):
            return None, void
        part = (steps, values_RN.min(axis=0), np.median(values_RN, axis=0), values_RN.max(axis=0))
        self._parts.append(part)
        if len(self._parts) > 64:
            self._parts = [self.band]
        self.recent_RN = np.concatenate([self.recent_RN, values_RN[:, -RECENT:]], axis=1)[:, -RECENT:]
        self.step = int(steps[-1])
        return part, void

    def __bool__(self) -> bool:
        """Whether there is a step that every rank has written."""
        return bool(self._parts)

    @property
    def band(self) -> Band:
        """Everything so far."""
        if not self._parts:
            return np.empty(0), np.empty(0), np.empty(0), np.empty(0)
        columns = [np.concatenate([part[index] for part in self._parts]) for index in range(4)]
        return columns[0], columns[1], columns[2], columns[3]

    def slowest(self) -> tuple[int, int, float] | None:
        """(rank, in how many of the last steps it was the highest, its middle value over that of all), if one stands out."""
        if self.recent_RN.shape[1] < 2:
            return None
        rank, times = Counter(self.recent_RN.argmax(axis=0).tolist()).most_common(1)[0]
        ratio = float(np.median(self.recent_RN[rank]) / max(np.median(self.recent_RN), 1e-12))
        return (rank, times, ratio) if ratio > ALIKE else None

    def _read(self) -> bool:
        """Read what was appended; False where a file has become shorter."""
        for rank, path in enumerate(self._paths):
            try:
                descriptor = open_plain(path)
            except OSError:  # this rank has not written yet, no such rank ever will, or it is no file
                continue
            try:
                size = os.fstat(descriptor).st_size // PAIR * PAIR
                if size < self._offsets[rank]:
                    return False
                if size > self._offsets[rank]:
                    self._waiting[rank] += os.pread(descriptor, size - self._offsets[rank], self._offsets[rank])
                    self._offsets[rank] = size
            finally:
                os.close(descriptor)
        return True

    def _aligned(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps [N] and values [R, N] of the new steps that every rank has; what one alone has waits, or is passed over."""
        count = min(map(len, self._waiting), default=0) // PAIR
        if not count:
            return np.empty(0), np.empty((len(self._paths), 0))
        tables = [np.frombuffer(data, dtype="<f8").reshape(-1, 2) for data in self._waiting]
        steps = tables[0][:count, 0]
        if all(np.array_equal(table[:count, 0], steps) for table in tables[1:]):
            self._waiting = [data[count * PAIR :] for data in self._waiting]
            return steps, np.stack([table[:count, 1] for table in tables])
        last = min(table[-1, 0] for table in tables)
        shared = tables[0][:, 0]
        for table in tables[1:]:
            shared = np.intersect1d(shared, table[:, 0])
        values_RN = np.stack([table[np.searchsorted(table[:, 0], shared), 1] for table in tables])
        self._waiting = [table[np.searchsorted(table[:, 0], last, side="right") :].tobytes() for table in tables]
        return shared, values_RN
