"""Laws of events and series: what is written comes back, whatever was torn, rotated, resumed or named."""

import json
import math
import time
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.runs import EventWriter, metrics, read_events, read_series
from toolkit.runs.events import event_files, parse_line
from toolkit.runs.series import PAIR, SeriesWriter, Tail, downsample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty run folder."""
    return tmp_path


def steps_of(folder: Path, **chosen: object) -> list[int]:
    """Steps of all metrics events, in order."""
    return [event["step"] for event in read_events(folder, kinds=("metrics",), **chosen)]


def follow(folder: Path) -> None:
    """Do what the supervisor does: read all events into the series."""
    writer, tail, done = SeriesWriter(folder, 0), Tail(folder, 0), False
    while not done:
        events, done = tail.poll(most=1 << 10)
        for event in events:
            writer.add(event)
        writer.flush(done)


def test_event_comes_back(folder: Path) -> None:
    writer = EventWriter(folder, 3, 2)
    assert writer.write("metrics", {"loss": 1.5}, step=7) == 1
    assert writer.write("state", {"state": "paused"}) == 2
    first, second = read_events(folder, rank=3)
    assert {**first, "time": 0} == {
        "seq": 1, "time": 0, "attempt": 2, "rank": 3, "step": 7, "kind": "metrics", "data": {"loss": 1.5}}  # fmt: skip
    assert abs(first["time"] - time.time()) < 10
    assert second["step"] is None
    assert read_events(folder, rank=3, since=1) == [second]
    assert read_events(folder, rank=3, kinds=("state",)) == [second]
    assert read_events(folder, rank=0) == []


def test_non_finite_numbers_are_text_in_the_file_and_numbers_in_the_series(folder: Path) -> None:
    import torch

    EventWriter(folder, 0, 1).write(
        "metrics", {"a": float("nan"), "b": torch.tensor(float("inf")), "c": numpy.float32(2)}, step=1
    )
    line = event_files(folder, 0)[0].read_text()
    assert json.loads(line, parse_constant=pytest.fail)["data"] == {"a": "NaN", "b": "Infinity", "c": 2.0}
    assert math.isnan(read_series(folder, "a")[1][0])
    assert read_series(folder, "b")[1][0] == math.inf


@pytest.mark.parametrize("data", [{"x": object()}, {"x": numpy.zeros(3)}, {"x": {1, 2}}])
def test_what_json_cannot_hold_is_refused(folder: Path, data: dict) -> None:
    writer = EventWriter(folder, 0, 1)
    with pytest.raises(TypeError, match="JSON|number"):
        writer.write("metrics", data, step=1)
    assert read_events(folder) == []


def test_large_event_and_unknown_kind_are_refused(folder: Path) -> None:
    writer = EventWriter(folder, 0, 1)
    with pytest.raises(ValueError, match="blobs/"):
        writer.write("text", {"text": "x" * 2_000_000})
    with pytest.raises(ValueError, match="metrics, state"):
        writer.write("metric", {})


def test_torn_line_costs_only_itself(folder: Path) -> None:
    EventWriter(folder, 0, 1).write("metrics", {"loss": 1.0}, step=1)
    path = event_files(folder, 0)[0]
    with path.open("ab") as file:
        file.write(b'{"seq":2,"time":1.0,"attempt":1,"rank":0,"step":2,"kind":"metrics","data":{"lo')
    assert steps_of(folder) == [1]
    writer = EventWriter(folder, 0, 1)
    writer.write("metrics", {"loss": 3.0}, step=3)
    assert steps_of(folder) == [1, 3]
    assert [event["seq"] for event in read_events(folder)] == [1, 3]
    follow(folder)
    assert list(read_series(folder, "loss")[0]) == [1, 3]


def test_lines_that_are_no_events_are_passed_over(folder: Path) -> None:
    path = folder / "events-0.jsonl"
    path.write_text('[]\n{"seq":"x"}\n\x00\x00\n{"seq":1,"time":1,"attempt":1,"rank":0,"step":null,"kind":"state","data":3}\n\n')
    with path.open("a") as file:
        for moment, step in (('"x"', "1"), ("NaN", "1"), ("1e999", "1"), ("1", '"a"'), ("1", "[1]"), ("1", "true")):
            text = f'{{"seq":1,"time":{moment},"attempt":1,"rank":0,"step":{step},"kind":"metrics","data":{{"bad":1}}}}\n'
            assert parse_line(text.encode()) is None
            file.write(text)
        file.write("[" * 100_000 + "\n")
    EventWriter(folder, 0, 1).write("metrics", {"loss": 3.0, "text": "no number", "flag": True, "huge": 10**400}, step=3)
    assert steps_of(folder) == [3]
    follow(folder)
    assert metrics(folder) == ["huge", "loss"]


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40), rotate=st.integers(200, 2000))
def test_rotation_loses_and_doubles_nothing(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rotate: int) -> None:
    folder = tmp_path_factory.mktemp("rotation")
    writer, tail, seen = EventWriter(folder, 0, 1, rotate=rotate), Tail(folder, 0), []
    for step, size in enumerate(sizes):
        writer.write("metrics", {"loss": step, "pad": "x" * size}, step=step)
        if size % 3 == 0:
            seen += tail.poll()[0]
    seen += tail.poll()[0]
    assert [event["step"] for event in seen] == steps_of(folder) == list(range(len(sizes)))
    assert [event["seq"] for event in read_events(folder, since=len(sizes) // 2)] == list(
        range(len(sizes) // 2 + 1, len(sizes) + 1)
    )
    again = EventWriter(folder, 0, 1, rotate=rotate)
    assert again.write("state", {}) == len(sizes) + 1


def test_long_lines_are_read_across_blocks(folder: Path) -> None:
    writer = EventWriter(folder, 0, 1)
    for step in range(9):
        writer.write("text", {"text": "x" * 200_000}, step=step)
    assert [event["step"] for event in read_events(folder)] == list(range(9))
    assert [event["step"] for event in read_events(folder, since=8)] == [8]


@pytest.mark.parametrize("said", [True, False])
def test_resumed_run_replaces_what_it_does_again(folder: Path, said: bool) -> None:
    first = EventWriter(folder, 0, 1)
    for step in range(1, 11):
        first.write("metrics", {"loss": 1.0}, step=step)
        first.write("sample", {"text": "old"}, step=step)
    first.write("command", {"n": 1, "command": "set", "applied": 9}, step=9)
    second = EventWriter(folder, 0, 2)
    second.write("state", {"state": "running", **({"resumed": 6} if said else {})}, step=6)
    second.write("metrics", {"loss": 2.0}, step=8 if said else 7)
    expected = [1, 2, 3, 4, 5, 6, 8 if said else 7]
    assert steps_of(folder) == expected
    assert [event["step"] for event in read_events(folder, kinds=("sample",))] == expected[:-1]
    assert len(read_events(folder, kinds=("command",))) == 1
    follow(folder)
    steps, values = read_series(folder, "loss")
    assert list(steps) == expected
    assert list(values) == [1.0] * 6 + [2.0]
    for path in (folder / "series").iterdir():
        path.unlink()
    assert list(read_series(folder, "loss")[0]) == expected


def test_attempt_from_the_very_beginning_replaces_all(folder: Path) -> None:
    first = EventWriter(folder, 0, 1)
    for step in range(4):
        first.write("metrics", {"loss": 1.0, "old": 1.0}, step=step)
    live, tail = SeriesWriter(folder, 0), Tail(folder, 0)

    def follow_on() -> list[float]:
        for event in tail.poll()[0]:
            live.add(event)
        live.flush()
        return list(read_series(folder, "loss")[0])

    assert follow_on() == [0, 1, 2, 3]
    second = EventWriter(folder, 0, 2)
    second.write("state", {"state": "running", "resumed": -1}, step=0)
    assert follow_on() == steps_of(folder) == []
    second.write("metrics", {"loss": 2.0}, step=1)
    assert follow_on() == steps_of(folder) == [1]
    for path in (folder / "series").iterdir():
        path.unlink()
    assert [list(found) for found in read_series(folder, "loss")] == [[1], [2.0]]
    assert list(read_series(folder, "old")[0]) == []


def test_series_are_rebuilt_when_missing_or_behind(folder: Path) -> None:
    writer = EventWriter(folder, 0, 1)
    writer.write("metrics", {"loss": 1.0}, step=1)
    assert list(read_series(folder, "loss")[0]) == [1]
    writer.write("metrics", {"loss": 1.0}, step=2)
    assert list(read_series(folder, "loss")[0]) == [1, 2]
    with pytest.raises(KeyError, match="there are: loss"):
        read_series(folder, "los")


@given(
    name=st.text(min_size=1, max_size=40) | st.sampled_from(["../../x", "..", ".", "/etc/passwd", "a@1", "%2e", "\x00", "\ud800"])
)
def test_any_metric_name_stays_inside_its_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    top = tmp_path_factory.mktemp("names")
    folder = top / "run"
    folder.mkdir()
    EventWriter(folder, 0, 1).write("metrics", {name: 2.0}, step=1)
    EventWriter(folder, 1, 1).write("metrics", {name: 3.0}, step=1)
    assert metrics(folder) == metrics(folder, rank=1) == [name]
    assert read_series(folder, name)[1][0] == 2.0
    assert read_series(folder, name, rank=1)[1][0] == 3.0
    assert {path.name for path in top.iterdir()} == {"run"}
    assert {path.name for path in folder.iterdir()} <= {"series", "events-0.jsonl", "events-1.jsonl"}


def test_series_of_a_live_run_are_cut_and_survive_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    writer, tail, write = SeriesWriter(folder, 0), Tail(folder, 0), os.write

    def follow_on() -> list[float]:
        for event in tail.poll()[0]:
            writer.add(event)
        writer.flush()
        pairs = numpy.fromfile(folder / "series" / "loss.f64")
        return list(pairs[: len(pairs) // 2 * 2 : 2])

    first = EventWriter(folder, 0, 1)
    first.write("metrics", {"loss": 1.0}, step=1)
    assert follow_on() == [1]
    for step in (2, 3):
        first.write("metrics", {"loss": 1.0}, step=step)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        assert follow_on() == [1, 2]
    assert follow_on() == [1, 2, 3]
    EventWriter(folder, 0, 2).write("metrics", {"loss": 2.0}, step=2)
    assert follow_on() == [1, 2]


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=400), most=st.integers(4, 60))
def test_downsampling_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    array = numpy.array(values)
    chosen = downsample(array, most)
    assert len(chosen) <= max(most, 4)
    assert chosen[0] == 0
    assert chosen[-1] == len(values) - 1
    assert (numpy.diff(chosen) > 0).all()
    if not numpy.isnan(array).all():
        assert numpy.nanmax(array[chosen]) == numpy.nanmax(array)
        assert numpy.nanmin(array[chosen]) == numpy.nanmin(array)


def test_spike_in_a_long_series_stays_visible(folder: Path) -> None:
    (folder / "series").mkdir()
    pairs = numpy.stack([numpy.arange(100_000.0), numpy.zeros(100_000)], axis=1)
    pairs[54_321, 1] = 9.0
    (folder / "series" / "loss.f64").write_bytes(pairs.tobytes() + b"torn")
    steps, values = read_series(folder, "loss")
    assert len(steps) <= 2000
    assert steps[values.argmax()] == 54_321
    assert list(read_series(folder, "loss", since_step=99_998)[0]) == [99_999]
    assert PAIR == pairs.dtype.itemsize * 2


def test_writing_is_quick(folder: Path) -> None:
    writer = EventWriter(folder, 0, 1)
    data = {f"metric {number}": number / 7 for number in range(10)}
    begun = time.process_time()
    for step in range(2000):
        writer.write("metrics", data, step=step)
    assert (time.process_time() - begun) / 2000 < 60e-6


def test_full_disk_delays_events_but_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    writer, write = EventWriter(folder, 0, 1), os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    writer.write("metrics", {"loss": 1.0}, step=1)
    monkeypatch.setattr(os, "write", full)
    writer.write("metrics", {"loss": 1.0}, step=2)
    writer.write("metrics", {"loss": 1.0}, step=3)
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:30]))
    writer.write("metrics", {"loss": 1.0}, step=4)
    monkeypatch.setattr(os, "write", write)
    writer.write("metrics", {"loss": 1.0}, step=5)
    assert steps_of(folder) == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("No space left") == 1
