"""What a monitor knows of a run: its series, samples and commands, read from the events piece by piece."""

from __future__ import annotations

import math
import os
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.runs import metrics, read_events, read_series
from toolkit.runs.events import LARGEST, event_files, parse_line, resumed_from
from widgets.view import harmless, thin

__all__ = ["Follower", "Piece"]

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MOST_METRICS = 200
MOST_COMMANDS = 50
MOST_SAMPLES, LONGEST_SAMPLE = 5000, 1500
PACE_STEPS = 50
MOST_POINTS = 2000
OVERLAP = 2000
"""Events at the end that are read beside the series files."""

Points = dict[str, tuple[list[int], list[float | None]]]


@dataclass(slots=True)
class Piece:
    """What came since the piece before."""

    since: int
    """Number of the event that the piece follows on; 0: it is the whole."""
    seq: int
    """Number of the last event in it."""
    points: Points = field(default_factory=dict)
    """Metric -> (steps, values), down-sampled."""
    told: bool = False
    """Whether a sample, a command or a new metric is among it."""


def last_seq(folder: Path) -> int:
    """Number of the last whole event of rank 0; 0 where there is none."""
    for path in reversed(event_files(folder, 0)):
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * LARGEST))
                lines = file.read().split(b"\n")
            for event in filter(None, map(parse_line, reversed(lines))):
                return event["seq"]
    return 0


class Follower:
    """Reads the events of rank 0 of one run folder, the series files first, then what is new at each `read`.

    Once an attempt does steps of an older one again, the piece is the whole.
    `follower = Follower(run.folder); piece = follower.read()`
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self.seq = 0
        self.series: dict[str, tuple[array[float], array[float]]] = {}
        self.samples: deque[dict[str, Any]] = deque(maxlen=MOST_SAMPLES)
        self.commands: deque[dict[str, Any]] = deque(maxlen=MOST_COMMANDS)
        self._attempt, self._unsettled = 0, False
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)

    def read(self) -> Piece:
        """Read what is new. The first piece, and one after a resume, is the whole: `since` is 0."""
        if self.seq == 0:
            return self._open()
        since, known = self.seq, set(self.series)
        lengths = {name: len(steps) for name, (steps, _) in self.series.items()}
        events = read_events(self.folder, since=since)
        if any(map(self._repeats, events)):
            self._forget()
            return self._open()
        told = [self._take(event) for event in events]
        new = {}
        for name, (steps, values) in self.series.items():
            start = lengths.get(name, 0)
            if len(steps) > start:
                new[name] = thin(np.frombuffer(steps)[start:], np.frombuffer(values)[start:], MOST_POINTS)
        return Piece(since, self.seq, new, any(told) or set(self.series) != known)

    def _open(self) -> Piece:
        """Take the series files, the few events that are no metrics, and the last events, which the files may lack."""
        for name in metrics(self.folder)[:MOST_METRICS]:
            steps, values = read_series(self.folder, name, max_points=1 << 53)
            if len(steps):
                self.series[name] = array("d", steps.tobytes()), array("d", values.tobytes())
        for event in read_events(self.folder, kinds=("sample", "command", "state")):
            self._take(event)
        filed = max((steps[-1] for steps, _ in self.series.values()), default=-math.inf)
        recent = read_events(self.folder, since=max(0, last_seq(self.folder) - OVERLAP))
        last = [event for event in recent if event["kind"] == "metrics" and event["step"] is not None]
        if not last or last[0]["step"] > filed:
            last = read_events(self.folder, kinds=("metrics",))
        attempt = max((event["attempt"] for event in recent), default=1)
        newest = [event for event in recent if event["attempt"] == attempt] if attempt > 1 else []
        first = next((step for step in map(resumed_from, newest) if step is not None), None)
        if first is not None:  # The files may still hold what this attempt does again.
            self._cut(first)
        for event in last:
            self._take(event)
        self._unsettled = bool(newest) and first is None
        return Piece(0, self.seq, self.points(), True)

    def _cut(self, first: int) -> None:
        for steps, values in self.series.values():
            while steps and steps[-1] >= first:
                steps.pop()
                values.pop()
        self.series = {name: pair for name, pair in self.series.items() if pair[0]}

    def _repeats(self, event: dict[str, Any]) -> bool:
        """Whether the event begins what an older attempt had done already."""
        if event["attempt"] > self._attempt > 0:
            self._attempt, self._unsettled = event["attempt"], True
        return self._unsettled and resumed_from(event) is not None

    def points(self, most: int = MOST_POINTS, names: Iterable[str] | None = None) -> Points:
        """The series of these names, or every one, each down-sampled to `most` points."""
        wanted = {name: self.series[name] for name in (self.series if names is None else names)}
        return {name: thin(np.frombuffer(steps), np.frombuffer(values), most) for name, (steps, values) in wanted.items()}

    def points_between(self, first: float, last: float, most: int = MOST_POINTS) -> Points:
        """The points from step `first` to step `last`, and one on either side, each series down-sampled to `most`."""
        found = {}
        for name, pair in self.series.items():
            steps, values = map(np.frombuffer, pair)
            low, high = np.searchsorted(steps, first) - 1, np.searchsorted(steps, last, side="right") + 1
            found[name] = thin(steps[max(0, low) : high], values[max(0, low) : high], most)
        return found

    def samples_at(self, step: int | None) -> list[dict[str, Any]]:
        """The samples of one step."""
        return [sample for sample in self.samples if sample["step"] == step]

    def forget(self) -> None:
        """Begin anew at the next `read`, as if the folder had not been seen before."""
        self._forget()

    def step(self, attempt: int) -> int:
        """The last step of which there are metrics, if that attempt made it, else 0; the state names it up to a second later."""
        return self._pace[-1][1] if self._pace and self._attempt == attempt and not self._unsettled else 0

    def seconds_per_step(self) -> float | None:
        """Mean over the last steps of this attempt, None before there are two."""
        if len(self._pace) < 2 or self._pace[-1][1] <= self._pace[0][1]:
            return None
        (first_time, first_step), (last_time, last_step) = self._pace[0], self._pace[-1]
        return (last_time - first_time) / (last_step - first_step)

    def _take(self, event: dict[str, Any]) -> bool:
        kind, step, data = event["kind"], event["step"], event["data"]
        self.seq, self._attempt = max(event["seq"], self.seq), max(event["attempt"], self._attempt)
        if kind == "metrics" and isinstance(step, int) and abs(step) < 1 << 53:
            if isinstance(event["time"], (int, float)) and math.isfinite(event["time"]):
                self._pace.append((event["time"], step))
            for name, value in data.items():
                self._add(name, step, NON_FINITE.get(value) if isinstance(value, str) else value)
        elif kind == "sample":
            text = {part: harmless(data.get(part, ""), LONGEST_SAMPLE) for part in ("prompt", "text")}
            self.samples.append({"step": step, **text})
            return True
        elif kind == "command":
            applied = data.get("applied", step)
            applied = applied if isinstance(applied, int) else step
            self.commands.append({**data, "step": applied, "attempt": event["attempt"]})
            return True
        elif kind == "state" and step is not None:  # What an older attempt obeyed after this step did not come to be.
            kept = [one for one in self.commands if one["attempt"] >= event["attempt"] or (one["step"] or 0) <= step]
            self.commands = deque(kept, maxlen=MOST_COMMANDS)
        return False

    def _add(self, name: str, step: int, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or len(name) > 200:
            return
        if name not in self.series and len(self.series) >= MOST_METRICS:
            return
        steps, values = self.series.setdefault(name, (array("d"), array("d")))
        if steps and step <= steps[-1]:
            return  # The series file had it.
        try:
            values.append(value)
        except OverflowError:
            values.append(math.inf if value > 0 else -math.inf)
        steps.append(step)
