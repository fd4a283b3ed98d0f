"""Numbers over steps: `series/<metric>.f64`, pairs (step, value) of 16 bytes, so that a long run opens at once.

The supervisor follows the events and appends. A reader reads the file instead of mapping it: a resumed run cuts its
series, and a map of a file that was cut kills the process that looks at it.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from toolkit.runs.events import parse_line, resumed_from, rotated_files
from toolkit.runs.files import NON_FINITE, open_plain, read_json, read_plain, replace_bytes, replace_json
from toolkit.runs.state import supervised

if TYPE_CHECKING:
    import numpy

PAIR = 16
LONGEST_NAME = 200
COMPLETE = "complete.json"


def series_path(folder: Path, metric: str, rank: int = 0) -> Path | None:
    """File of one metric of one rank, always directly inside `series/`; None for a name no file can have."""
    name = quote(metric, safe=" +,=()[]", errors="surrogatepass")
    if not name or len(name) > LONGEST_NAME:
        return None
    return folder / "series" / (f"{name}.f64" if rank == 0 else f"{name}@{rank}.f64")


def metrics(folder: Path, *, rank: int = 0) -> list[str]:
    """Names of the metrics that `rank` has written, sorted.

    `metrics(run.folder)` -> `["loss", "lr"]`
    """
    ensure(Path(folder))
    names = [path.name.removesuffix(".f64").partition("@") for path in (Path(folder) / "series").glob("*.f64")]
    return sorted(unquote(name, errors="surrogatepass") for name, _, of in names if (of or "0") == str(rank))


def read_series(
    folder: Path, metric: str, *, rank: int = 0, max_points: int = 2000, since_step: int | None = None
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Steps and values (float64, ascending steps) of one metric, only those after `since_step`.

    Of more than `max_points` the smallest and the largest value of each stretch stay, so that no spike is lost.
    Raises KeyError naming the metrics there are. `steps, loss = read_series(run.folder, "loss")`
    """
    import numpy

    folder = Path(folder)
    ensure(folder)
    path = series_path(folder, metric, rank)
    if path is None or not path.is_file():
        raise KeyError(
            f"no metric {metric!r} of rank {rank} in {folder.name}; there are: {', '.join(metrics(folder, rank=rank))}"
        )
    data = read_plain(path)
    pairs = numpy.frombuffer(data[: len(data) // PAIR * PAIR], dtype="<f8").reshape(-1, 2)
    if since_step is not None:
        pairs = pairs[numpy.searchsorted(pairs[:, 0], since_step, side="right") :]
    chosen = downsample(pairs[:, 1], max_points)
    return pairs[chosen, 0], pairs[chosen, 1]


def downsample(values: numpy.ndarray, max_points: int) -> numpy.ndarray:
    """Ascending indices of at most `max_points` of `values`: first, last, and the extremes of each stretch between."""
    import numpy

    count = len(values)
    if count <= max_points:
        return numpy.arange(count)
    if max_points < 4:
        raise ValueError(f"max_points {max_points}: expected at least 4")
    stretches = (max_points - 2) // 2
    starts = numpy.linspace(1, count - 1, stretches + 1).astype(int)[:-1]
    width = -(-(count - 2) // stretches) + 1
    index = numpy.minimum(starts[:, None] + numpy.arange(width)[None, :], count - 2)
    inside = values[index]
    lowest = numpy.where(numpy.isnan(inside), numpy.inf, inside).argmin(axis=1)
    highest = numpy.where(numpy.isnan(inside), -numpy.inf, inside).argmax(axis=1)
    rows = numpy.arange(stretches)
    return numpy.unique(numpy.concatenate([[0], index[rows, lowest], index[rows, highest], [count - 1]]))


class Tail:
    """Follows the event file of one rank, across rotation, from its beginning."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._passed, self._offset, self._torn = 0, 0, b""

    def poll(self, most: int = 8 << 20) -> tuple[list[dict[str, Any]], bool]:
        """Events that came since the last call, and whether the end was reached (`most` bytes a call are read)."""
        events: list[dict[str, Any]] = []
        while True:
            number, data = self._read(most)
            self._offset += len(data)
            *lines, self._torn = (self._torn + data).split(b"\n")
            events.extend(filter(None, map(parse_line, lines)))
            if len(data) == most:
                return events, False
            if number is None:
                return events, True
            if not data:
                self._passed, self._offset, self._torn = number, 0, b""

    def _rotated(self) -> tuple[int | None, Path]:
        later = [found for found in rotated_files(self._folder, self._rank) if found[0] > self._passed]
        return later[0] if later else (None, self._folder / f"events-{self._rank}.jsonl")

    def _read(self, most: int) -> tuple[int | None, bytes]:
        while True:
            number, path = self._rotated()
            try:
                descriptor = open_plain(path)
            except FileNotFoundError:
                return None, b""
            try:
                if self._rotated()[1] == path:  # Else it was renamed before it was opened, and this is its successor.
                    return number, os.pread(descriptor, most, self._offset)
            finally:
                os.close(descriptor)


class SeriesWriter:
    """Keeps the series files of one rank as its events are read from their beginning.

    What was there is replaced at once when the end is reached for the first time; from then on it appends.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._attempt = 0
        self._unsettled = False
        self._gathering = True
        self._waiting: dict[str, array[float]] = {}
        self._files: dict[str, Path] = {}

    def add(self, event: dict[str, Any]) -> None:
        """Take the numbers of a metrics event, and cut what a resumed run does again."""
        if event["attempt"] > self._attempt:
            self._unsettled = self._attempt > 0
            self._attempt = event["attempt"]
        first = resumed_from(event) if self._unsettled else None
        if first is not None:
            self._unsettled = False
            self._cut(first)
        if event["kind"] != "metrics" or event["step"] is None or abs(event["step"]) >= 1 << 53:
            return
        for name, value in event["data"].items():
            found = NON_FINITE.get(value) if isinstance(value, str) else value
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                pairs = self._waiting[name] if name in self._waiting else self._begin(name)
                pairs.append(event["step"])
                pairs.append(_float(found))

    def _begin(self, name: str) -> array[float]:
        path = series_path(self._folder, name, self._rank)
        if path is not None:
            self._files[name] = path
        return self._waiting.setdefault(name, array("d"))

    def flush(self, at_end: bool = True) -> None:
        """Write what has been taken; `at_end`: whether all events there are were read. A full disk loses nothing."""
        if self._gathering and not at_end:
            return
        if self._gathering:
            self._replace()
            self._gathering = False
        for name, pairs in self._waiting.items():
            if name not in self._files:
                del pairs[:]
            elif pairs:
                del pairs[: 2 * _append(self._files[name], pairs)]

    def _replace(self) -> None:
        (self._folder / "series").mkdir(mode=0o700, exist_ok=True)
        for path in set(metrics_on_disk(self._folder, self._rank)) - set(self._files.values()):
            path.unlink(missing_ok=True)
        for name, path in self._files.items():
            replace_bytes(path, self._waiting[name].tobytes(), sync=False)
            del self._waiting[name][:]

    def _cut(self, first: int) -> None:
        if not self._gathering:
            self.flush()
        for pairs in self._waiting.values():
            while pairs and pairs[-2] >= first:
                del pairs[-2:]
        for path in [] if self._gathering else metrics_on_disk(self._folder, self._rank):
            pairs = array("d", read_plain(path)[: path.stat().st_size // PAIR * PAIR])
            keep = len(pairs) // 2
            while keep and pairs[2 * keep - 2] >= first:
                keep -= 1
            os.truncate(path, keep * PAIR)


def _float(found: int | float) -> float:
    try:
        return float(found)
    except OverflowError:
        return float("inf") if found > 0 else float("-inf")


def metrics_on_disk(folder: Path, rank: int) -> list[Path]:
    """Series files of one rank."""
    ending = ".f64" if rank == 0 else f"@{rank}.f64"
    return [
        path for path in (folder / "series").glob("*.f64") if path.name.endswith(ending) and (rank > 0 or "@" not in path.name)
    ]


def _append(path: Path, pairs: array[float]) -> int:
    """Append pairs; how many were written whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        torn = os.fstat(descriptor).st_size % PAIR
        if torn:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - torn)
        return os.write(descriptor, pairs.tobytes()) // PAIR
    finally:
        os.close(descriptor)


def sizes(folder: Path) -> dict[str, int]:
    """Name and size of every event file: when they are as they were, the series are whole."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("events-*.jsonl"))}


def mark_complete(folder: Path, found: dict[str, int]) -> None:
    """Note that the series hold every event in files of these sizes."""
    (folder / "series").mkdir(mode=0o700, exist_ok=True)
    replace_json(folder / "series" / COMPLETE, found, sync=False)


def ensure(folder: Path) -> None:
    """Build the series anew when no supervisor keeps them and they are missing or behind the events."""
    if supervised(folder) or not folder.is_dir():
        return
    found = sizes(folder)
    if read_json(folder / "series" / COMPLETE) == found or not found or not os.access(folder, os.W_OK):
        return
    for rank in sorted({int(name.split(".")[0].removeprefix("events-")) for name in found}):
        writer, tail, done = SeriesWriter(folder, rank), Tail(folder, rank), False
        while not done:
            events, done = tail.poll()
            for event in events:
                writer.add(event)
            writer.flush(done)
    mark_complete(folder, found)
