"""The thread of a monitor, without a notebook: nothing in a folder ends it, and none stays that nobody looks at."""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.events import EventManager, available_events

from tests.browser import toy
from toolkit.runs import EventWriter
from toolkit.runs.series import series_path
from widgets import RunMonitor

HOSTILE_STATES = (
    {"step": "a"}, {"total_steps": [1]}, {"total_steps": math.nan}, {"step": math.inf}, {"started": "x"}, {"started": math.nan},
    {"since": [1]}, {"report": [1]}, {"report": {"tails": [1]}}, {"name": 7}, {"name": ["failed"]}, {"attempt": "x"},
    {"message": {"a": 1}}, {"devices": 3}, {"unknown": 1},
)  # fmt: skip
HOSTILE_EVENTS = (
    '"time":"x","attempt":1,"rank":0,"step":21,"kind":"metrics","data":{"loss":1.0}',
    '"time":NaN,"attempt":1,"rank":0,"step":22,"kind":"metrics","data":{"loss":NaN}',
    '"time":1e999,"attempt":1,"rank":0,"step":23,"kind":"metrics","data":{"loss":[1],"lr":{"a":1}}',
    '"time":1,"attempt":1,"rank":0,"step":24,"kind":"command","data":{"n":[1],"command":{},"applied":"a"}',
    '"time":1,"attempt":1,"rank":0,"step":24,"kind":"command","data":{"n":1,"command":"set","step":[],"applied":[2]}',
    '"time":1,"attempt":1,"rank":0,"step":25,"kind":"state","data":{"resumed":"x","state":[1]}',
    '"time":1,"attempt":1,"rank":0,"step":26,"kind":"sample","data":{"prompt":[1],"text":{"a":1}}',
)


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["running", "failed"])
def test_hostile_states_and_events_stop_no_monitor(tmp_path: Path, name: str) -> None:
    """Whatever a folder holds, the thread goes on, says what is wrong, and shows the run once it is sound again."""
    folder, other = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    toy.make_finished(folder, steps=20)
    toy.make_finished(other, steps=10)
    toy.end(folder, name, 20)
    (folder / "recipe.json").write_text("[1]")
    monitor = RunMonitor(folder, other)
    try:
        with open(folder / "events-0.jsonl", "a") as file:
            file.writelines(f'{{"seq":{1000 + at},{event}}}\n' for at, event in enumerate(HOSTILE_EVENTS))
        for wrong in HOSTILE_STATES:
            sound = {"name": name, "attempt": 1, "step": 20, "total_steps": 20, "started": 1.0, "since": 2.0}
            (folder / "state.json").write_text(json.dumps(sound | wrong))
            monitor.look()
            monitor._keep()
            hostile, fine = monitor.status["runs"]
            json.dumps([monitor.status, monitor.details, monitor.series], allow_nan=False)
            assert hostile["id"] == "one" and fine["state"] == "finished" and fine["step"] == 10
            monitor._static()
        EventWriter(folder, 0, 1).write("metrics", {"loss": 0.5}, step=40)
        toy.end(folder, "finished", 40)
        monitor._wake.set()  # it looks now, if it lives
        wait_until(lambda: monitor.watched[0].points()["0:loss"][0][-1] == 40)
        wait_until(lambda: monitor.status["runs"][0]["state"] == "finished")
    finally:
        monitor.close()


def test_a_pipe_in_the_place_of_a_series_blocks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=20, ranks=2)
    path = series_path(folder, "step_seconds", 1)
    assert path is not None
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    monitor = RunMonitor(folder)  # a reader that waits at the pipe never comes back
    assert monitor.status["runs"][0]["state"] == "finished"
    monitor.close()


def test_a_cell_that_is_run_again_leaves_no_thread_and_no_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=20)
    shell = SimpleNamespace(events=EventManager(None, available_events))
    monkeypatch.setattr("widgets.run_monitor.get_ipython", lambda: shell)
    made = [RunMonitor(folder) for _ in range(5)]

    def following() -> int:
        hooks = [one.__self__ for one in shell.events.callbacks["post_run_cell"] if isinstance(one.__self__, RunMonitor)]
        names = [thread.name for thread in threading.enumerate() if thread.name == "monitor of one"]
        return len(names) if len(names) == len(hooks) else -1

    def comes_to(number: int) -> None:
        wait_until(lambda: following() == number)

    try:
        comes_to(1)
        said: list[dict] = []
        made[0].send = said.append
        made[0]._receive(None, {"kind": "hello", "page": "p"}, [])  # an older one that a page shows still
        comes_to(2)
        whole = next(one for one in said if one["kind"] == "series")
        assert whole["since"] == 0 and len(whole["points"]["0:loss"][0]) == 20
        made[0]._receive(None, {"kind": "leave", "page": "p"}, [])
        comes_to(1)
        made[4]._receive(None, {"kind": "leave", "page": "q"}, [])  # the newest one goes on
        made[4].look()
        comes_to(1)
    finally:
        for one in made:
            one.close()
    comes_to(0)


def test_what_goes_wrong_in_the_thread_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.make_finished(tmp_path / "runs" / "one", steps=20)
    monitor = RunMonitor(tmp_path / "runs" / "one")
    try:
        with monkeypatch.context() as broken:
            broken.setattr("widgets.run_monitor.short_names", lambda _: 1 / 0)
            monitor._wake.set()
            wait_until(lambda: "cannot be shown: ZeroDivisionError" in monitor.status["runs"][0]["message"])
        monitor._wake.set()
        wait_until(lambda: monitor.status["runs"][0]["message"] == "")
    finally:
        monitor.close()
