"""One run of a monitor: its state, numbers, commands and checkpoints, read from its folder piece by piece."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.runs import Run, State, read_commands
from toolkit.runs.files import read_json
from widgets import run_facts
from widgets.follow import MOST_POINTS, Follower, Piece, Points
from widgets.rank_series import ACROSS_RANKS, Band, RankSeries
from widgets.view import harmless, thin

__all__ = ["WatchedRun"]

MOST_CHECKPOINTS = 200
GONE = "its folder is gone: nothing more can be read, and nothing asked of it"
UNSHOWN = "what its folder holds cannot be shown: {}: {}"


class WatchedRun:
    """A run under a key ("0", "1", ...) that names it on the page; its series are called "<key>:<metric>" there."""

    def __init__(self, run: Run, key: str) -> None:
        self.run, self.key = run, key
        self.follower = Follower(run.folder)
        self.own: set[int] = set()
        """Numbers of the commands that this monitor sent."""
        self.gone = False
        self.state = run.state
        self.processes = self._processes()
        self._ranks = self._rank_series()
        self._commands: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._checkpoints: tuple[list[tuple[str, float]], list[dict[str, Any]]] = ([], [])
        self._trouble = ""
        self._recipe: dict[str, Any] | None = None
        self._foreign = run.folder.stat().st_uid != os.geteuid()

    def read(self) -> Piece:
        """Look at the folder: the state, and what is new of the series. `since` is 0 where the page must forget the old.

        What cannot be read is told in the status, and read again at the next look.
        """
        try:
            piece, trouble = self._read(), ""
        except Exception as error:  # a folder may hold anything, and this is no reason to stop looking
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            trouble = f"its folder cannot be read now: {why}"
            piece = Piece(self.follower.seq, self.follower.seq)
        piece.told |= trouble != self._trouble
        self._trouble = trouble
        return piece

    def _read(self) -> Piece:
        if not self.run.folder.is_dir():
            moved, self.gone = not self.gone, True
            return Piece(self.follower.seq, self.follower.seq, told=moved)
        if self.gone:  # It came back, perhaps as another run of this name.
            self.gone = False
            self.follower.forget()
        attempt, self.state = self.state.attempt, self.run.state
        if self.state.attempt != attempt:
            self._recipe = None
            if self._processes() != self.processes:
                self.processes = self._processes()
                self._ranks = self._rank_series()
        piece = self.follower.read()
        if self.processes > 1:
            self._read_ranks(piece)
        piece.points = self._named(piece.points)
        return piece

    def _read_ranks(self, piece: Piece) -> None:
        """Put the middle, lowest and highest over all ranks in the place of rank 0's values."""
        for metric, series in self._ranks.items():
            new, void = series.new()
            if void:
                piece.since = 0
            if not series:
                continue
            piece.points.pop(metric, None)
            band = series.band if piece.since == 0 else new
            if band is not None:
                piece.points |= _band_points(metric, band)

    def points(self, most: int = MOST_POINTS, names: list[str] | None = None) -> Points:
        """All series, down-sampled, under their names on the page; of `names` only these metrics."""
        found = self.follower.points(most, [name for name in names if name in self.follower.series] if names else None)
        for metric, series in self._ranks.items():
            if series and (names is None or metric in names):
                found |= _band_points(metric, series.band, most)
        return self._named(found)

    def points_between(self, first: float, last: float) -> Points:
        """What `points` gives, between two steps only, hence finer."""
        found = self.follower.points_between(first, last)
        for metric, series in self._ranks.items():
            if not series:
                continue
            steps, low, middle, high = series.band
            part = slice(max(0, np.searchsorted(steps, first) - 1), np.searchsorted(steps, last, side="right") + 1)
            found |= _band_points(metric, (steps[part], low[part], middle[part], high[part]))
        return self._named(found)

    def _named(self, points: Points) -> Points:
        return {f"{self.key}:{name}": pair for name, pair in points.items()}

    def status(self) -> dict[str, Any]:
        """State, step, times and the commands that fit; where the folder holds what cannot be told, that."""
        try:
            return self._status()
        except Exception as error:  # a folder may hold anything: the other runs of the view are shown still
            shown = State(name=str(self.state.name))
            found = run_facts.status(self.run.id, shown, Follower(self.run.folder), time.time()) | {"key": self.key}
            return found | {"allowed": [], "message": UNSHOWN.format(type(error).__name__, harmless(error, 200))}

    def _status(self) -> dict[str, Any]:
        found = run_facts.status(self.run.id, self.state, self.follower, time.time()) | {"key": self.key}
        if self.gone:
            return found | {"state": "gone", "final": True, "allowed": [], "message": GONE, "summary": f"Run gone: {GONE}"}
        if self._trouble:
            return found | {"allowed": [], "message": self._trouble}
        if self._foreign:
            return found | {"allowed": [], "message": "another user's run: it can only be looked at"}
        slowest = self._ranks["step_seconds"].slowest() if self.processes > 1 else None
        if slowest is not None and not self.state.final:
            found["slowest"] = f"rank {slowest[0]} is the slowest: {slowest[2]:.2f} times the middle step time"
        return found | {"processes": self.processes}

    def details(self) -> dict[str, Any]:
        """Samples, marks, failure, commands, checkpoints; of what cannot be told nothing."""
        try:
            return self._details()
        except Exception as error:
            headline = UNSHOWN.format(type(error).__name__, harmless(error, 200))
            return run_facts.no_details(headline) | {"commands": [], "checkpoints": []}

    def _details(self) -> dict[str, Any]:
        found = run_facts.details(self.state, self.follower, self.run.logs)
        found["commands"] = run_facts.sent_commands(self.commands(), self.follower, self.own)
        found["checkpoints"] = [] if self.gone else self.checkpoints()
        return found

    def commands(self) -> list[dict[str, Any]]:
        """The commands to the present attempt, by whomever."""
        with suppress(OSError):
            size = (self.run.folder / "control.jsonl").stat().st_size
            if size != self._commands[0]:
                self._commands = size, read_commands(self.run.folder, 0)
        return self._commands[1]

    def checkpoints(self) -> list[dict[str, Any]]:
        """Step, bytes and held-out loss of every whole checkpoint, by step; `best` is the one with the lowest loss."""
        folder = self.run.folder / "checkpoints"
        with suppress(OSError, ValueError):  # one that is being removed, or is damaged: the list stays as it was
            seen = sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(folder))
            if seen != self._checkpoints[0]:
                self._checkpoints = seen, self._checkpoints[1]
                self._checkpoints = seen, self._listed()
        return self._checkpoints[1]

    def _listed(self) -> list[dict[str, Any]]:
        found = [
            {"step": step, "bytes": _size(path), "loss": _number(metrics.get("eval_loss") if isinstance(metrics, dict) else None)}
            for step, path, metrics in self.run.checkpoints()[-MOST_CHECKPOINTS:]
        ]
        best = min((one["loss"] for one in found if one["loss"] is not None), default=None)
        return [{**one, "best": best is not None and one["loss"] == best} for one in found]

    def recipe(self) -> dict[str, Any]:
        """What recipe.json holds, with the arguments of a function and the number of processes, where they can be read."""
        if self._recipe is not None:
            return self._recipe
        try:
            launched = self.run.launched
            found = {"type": "function"} | read_json(self.run.folder / "recipe.json", {})
        except (OSError, TypeError, ValueError):
            return {}
        if launched.get("arguments"):
            found["arguments"] = launched["arguments"]
        found |= {"processes": launched.get("processes", 1)}
        self._recipe = found
        return found

    @property
    def rank_step(self) -> int:
        """The last step that every rank has written, -1 before there is one."""
        return self._ranks["step_seconds"].step

    def ranks(self) -> list[dict[str, Any]]:
        """Of every rank: the last step, step time, its middle over the last steps, and memory."""
        times, memory = (self._ranks[metric].recent_RN for metric in ACROSS_RANKS)
        slowest = self._ranks["step_seconds"].slowest()
        return [
            {
                "rank": rank,
                "last": _number(times[rank, -1]) if times.shape[1] else None,
                "middle": _number(np.median(times[rank])) if times.shape[1] else None,
                "memory": _number(memory[rank, -1]) if memory.shape[1] else None,
                "slowest": slowest is not None and slowest[0] == rank,
            }
            for rank in range(self.processes)
        ]

    def _processes(self) -> int:
        launched = self.run.launched
        found = launched.get("processes", 1) if isinstance(launched, dict) else 1
        return found if isinstance(found, int) and 1 <= found <= 4096 else 1

    def _rank_series(self) -> dict[str, RankSeries]:
        return {metric: RankSeries(self.run.folder, metric, self.processes) for metric in ACROSS_RANKS}


def _band_points(metric: str, band: Band, most: int = MOST_POINTS) -> Points:
    steps, low, middle, high = band
    named = ((f"{metric}~low", low), (metric, middle), (f"{metric}~high", high))
    return {name: thin(steps, values, most) for name, values in named}


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(f"{value:.6g}") if usable else None
