"""What a monitor reads beside rank 0's events, without a notebook: ranks, logs, recipes, commands, checkpoints."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.browser import toy
from toolkit.runs import EventWriter, Run
from toolkit.runs.control import begin_attempt
from toolkit.runs.differences import flat
from toolkit.runs.files import replace_json
from toolkit.runs.series import series_path
from widgets import RunMonitor
from widgets.rank_series import RankSeries
from widgets.recipe_diff import differences, short_names
from widgets.run_logs import LONGEST_LINE, MOST_LINES, read_page
from widgets.watched_run import WatchedRun

PAIRS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def append(folder: Path, rank: int, pairs: list[tuple[int, float]]) -> None:
    path = series_path(folder, "step_seconds", rank)
    assert path is not None
    path.parent.mkdir(exist_ok=True)
    with open(path, "ab") as file:
        file.write(np.array(pairs, dtype="<f8").tobytes())


def test_ranks_are_joined_at_the_steps_that_all_have(tmp_path: Path) -> None:
    series = RankSeries(tmp_path, "step_seconds", 3)
    assert series.new() == (None, False)
    append(tmp_path, 0, [(1, 1.0), (2, 1.0), (3, 1.0)])
    append(tmp_path, 1, [(1, 3.0), (2, 5.0)])
    assert series.new() == (None, False)  # rank 2 has written nothing
    append(tmp_path, 2, [(1, 2.0), (2, 2.0), (3, 2.0)])
    band, void = series.new()
    assert band is not None and not void
    assert [list(column) for column in band] == [[1, 2], [1, 1], [2, 2], [3, 5]]
    assert series.slowest() == (1, 2, 2.0)
    append(tmp_path, 1, [(3, 1.0), (4, 1.0)])
    band, _ = series.new()
    assert band is not None and list(band[0]) == [3]
    assert list(series.band[0]) == [1, 2, 3]
    for rank in range(3):  # a resumed run cuts what it does again
        path = series_path(tmp_path, "step_seconds", rank)
        assert path is not None
        os.truncate(path, 16)
    band, void = series.new()
    assert void and band is not None and list(series.band[0]) == [1]


@given(st.lists(PAIRS, min_size=2, max_size=4), st.integers(1, 5))
def test_bands_hold_whatever_order_the_ranks_write_in(tmp_path_factory: pytest.TempPathFactory, values: list, step: int) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    series, seen = RankSeries(folder, "step_seconds", len(values)), 0
    for at in range(0, max(map(len, values)), step):
        for rank, column in enumerate(values):
            part = list(enumerate(column))[at : at + step]
            if part:
                append(folder, rank, part)
        band, void = series.new()
        assert not void
        seen += 0 if band is None else len(band[0])
    count = min(map(len, values))
    matrix = np.array([column[:count] for column in values])
    assert seen == count == len(series.band[0])
    assert np.array_equal(series.band[1], matrix.min(axis=0))
    assert np.array_equal(series.band[3], matrix.max(axis=0))


def test_ranks_that_log_at_other_steps_meet_where_they_can(tmp_path: Path) -> None:
    append(tmp_path, 0, [(step, 1.0) for step in range(1, 11)])
    append(tmp_path, 1, [(step, 2.0) for step in range(2, 11, 2)])
    series = RankSeries(tmp_path, "step_seconds", 2)
    series.new()
    assert list(series.band[0]) == [2, 4, 6, 8, 10]


def test_logs_are_read_from_the_end_and_searched(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    assert read_page(log) == {"text": "", "lines": 0, "cut": ""}
    log.write_text("".join(f"line {number}\n" for number in range(5000)))
    page = read_page(log)
    assert page["lines"] == MOST_LINES and page["cut"] == "older lines are left out"
    assert page["text"].splitlines()[-1] == "line 4999"
    assert read_page(log, "LINE 12")["text"].splitlines()[:2] == ["line 12", "line 120"]
    assert read_page(log, "nowhere") == {"text": "", "lines": 0, "cut": ""}


def test_hostile_logs_are_text_and_bounded(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    bar = "\r".join(f"{percent} %" for percent in range(101))
    colours = b"\x1b[31m<b>red</b>\x1b[0m \xff\xfe\x00\x07"
    log.write_bytes(b"\n".join([b"needle" + b"y" * 10_000_000, bar.encode(), colours, b"z" * 1_000_000]))
    page = read_page(log)
    lines = str(page["text"]).splitlines()
    assert lines[1:3] == ["100 %", "<b>red</b> \ufffd\ufffd"]
    assert all(len(line) <= LONGEST_LINE for line in lines)
    assert str(read_page(log, "needle")["text"]).startswith("needle")
    outside = tmp_path / "secret"
    outside.write_text("password")
    (tmp_path / "rank-1.log").symlink_to(outside)
    assert read_page(tmp_path / "rank-1.log")["text"] == ""


def test_only_what_differs_between_recipes_is_told() -> None:
    lora = {"type": "LoRA", "rank": 4, "alpha": 8.0}
    first = {"schema": 1, "type": "FineTune", "adapters": {"*.q_proj": lora}, "lr": 1e-3, "prompts": [], "seed": 0}
    adapters = {"*.q_proj": lora | {"rank": 8}, "*.v_proj": {"type": "DoRA"}}
    second = first | {"adapters": adapters, "lr": 2e-5, "prompts": ["a", "b"]}
    third = first | {"adapters": None}
    assert differences([first, first]) == []
    found = {row["field"]: row["values"] for row in differences([first, second, third])}
    assert found == {
        'adapters["*.q_proj"]': ["LoRA", "LoRA", "–"],
        'adapters["*.q_proj"].rank': ["4", "8", "–"],
        'adapters["*.q_proj"].alpha': ["8", "8", "–"],
        'adapters["*.v_proj"]': ["–", "DoRA", "–"],
        "lr": ["0.001", "2e−5", "0.001"],
        "prompts": ["none", "a, b", "none"],
    }
    assert dict(flat({"type": "A", "plan": {"type": "Plan", "tp": 2}})) == {"recipe": "A", "plan": "Plan", "plan.tp": 2}
    assert short_names(["20260102-030405-amber", "20260203-040506-amber"]) == ["20260102-030405-amber", "20260203-040506-amber"]


def test_commands_say_who_sent_them_and_what_became_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    events = toy.make_folder(folder)
    begin_attempt(folder, 1)
    watched = WatchedRun(Run(folder), "0")
    from toolkit.runs import send

    watched.own.add(send(folder, "pause"))
    send(folder, "set", name="lr", value=0.5)
    send(folder, "stop", save=False)
    events.write("command", {"n": 2, "command": "pause", "applied": 7}, step=7)
    events.write("command", {"n": 3, "command": "set", "name": "lr", "value": 0.5, "applied": 7, "error": "no"}, step=7)
    watched.read()
    assert [(one["what"], one["here"], one["step"], one["error"]) for one in watched.details()["commands"]] == [
        ("pause", True, 7, ""),
        ("set lr to 0.5", False, 7, "no"),
        ("stop without a checkpoint", False, None, ""),
    ]


def test_the_best_checkpoint_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=300)
    (folder / "checkpoints" / "step-400").mkdir()  # cut off: it has no manifest
    found = WatchedRun(Run(folder), "0").checkpoints()
    assert [(one["step"], one["best"]) for one in found] == [(100, False), (200, False), (300, True)]
    assert all(one["bytes"] > 100_000 for one in found)


def test_a_folder_that_vanishes_is_said_to_be_gone_and_may_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=20)
    watched = WatchedRun(Run(folder), "0")
    assert watched.read().points["0:loss"][0][-1] == 20
    folder.rename(tmp_path / "away")
    watched.read()
    assert watched.status()["state"] == "gone" and watched.status()["allowed"] == []
    (tmp_path / "away").rename(folder)
    whole = watched.read()
    assert whole.since == 0 and len(whole.points["0:loss"][0]) == 20
    assert watched.status()["state"] == "finished"


def test_a_state_that_cannot_be_read_is_told_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=20)
    watched = WatchedRun(Run(folder), "0")
    watched.read()
    good = (folder / "state.json").read_text()
    (folder / "state.json").write_text(good[:20])
    assert watched.read().told
    assert watched.status()["message"] == "its folder cannot be read now: ValueError"
    (folder / "state.json").write_text(good)
    assert watched.read().told and watched.status()["message"] == ""


def test_commands_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    toy.make_finished(folder, steps=20)
    monitor = RunMonitor(folder)
    said: list[dict] = []
    monitor.send = said.append
    try:
        for message in (
            {"name": "pause"},
            {"name": "__init__"},
            {"name": "set", "setting": "seed", "value": 1},
            {"name": "set", "setting": "lr", "value": "1"},
            {"name": "restart", "step": "../.."},
            {"name": "restart", "step": 7},
        ):
            monitor._receive(None, {"kind": "command", "run": "0", **message}, [])
        monitor._receive(None, {"kind": "command", "run": "9", "name": "pause"}, [])
        monitor._receive(None, {"kind": "add", "id": "../../etc"}, [])
    finally:
        monitor.close()
    texts = [one["text"] for one in said if one["kind"] == "answer"]
    assert len(texts) == 7 and all(text and "\n" not in text for text in texts)
    assert re.match("pause: run one is finished", texts[0])
    assert texts[1] == "__init__: no such command"
    assert "expected one of lr" in texts[2] and "expected a number" in texts[3] and "whole number" in texts[4]


def test_a_monitor_takes_one_to_eight_runs(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / f"run-{number}" for number in range(9)]
    for folder in folders:
        toy.make_folder(folder).close()
        toy.end(folder, "finished", 1)
    with pytest.raises(ValueError, match="expected 1 to 8 runs, got 9"):
        RunMonitor(folders)
    with pytest.raises(ValueError, match="got 0"):
        RunMonitor([])
    monitor = RunMonitor(folders[0], folders[1], folders[0])
    monitor.add(folders[2])
    monitor.add(folders[2])
    assert [one.key for one in monitor.watched] == ["0", "1", "2"]
    assert [one["id"] for one in monitor.status["runs"]] == ["run-0", "run-1", "run-2"]
    monitor.close()


def test_a_page_that_was_there_before_the_first_step_gets_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    events = toy.make_folder(folder)
    toy.end(folder, "finished", 1)
    monitor = RunMonitor(folder)
    said: list[dict] = []
    monitor.send = said.append
    try:
        monitor._receive(None, {"kind": "since", "seq": 0}, [])
        events.write("metrics", {"loss": 1.0}, step=1)
        monitor.look()
        events.write("metrics", {"loss": 0.5}, step=2)
        monitor.look()
    finally:
        monitor.close()
    pieces = [one for one in said if one["kind"] == "series"]
    assert [(one["since"], one["seq"]) for one in pieces] == [(0, 1), (0, 2), (2, 3)]
    assert pieces[1]["points"] == {"0:loss": ([1], [1.0])} and pieces[2]["points"] == {"0:loss": ([2], [0.5])}


def test_the_twin_of_several_runs_tells_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / f"20260102-03040{seed}-{name}" for seed, name in enumerate(("amber", "mint"))]
    for seed, folder in enumerate(folders):
        toy.make_finished(folder, steps=40 + 20 * seed, seed=seed)
    monitor = RunMonitor(folders)
    html, text = monitor._static()
    monitor.close()
    assert '<th scope="col">amber</th><th scope="col">mint</th>' in html
    assert '<th scope="row">adapters[&quot;*.q_proj&quot;].rank</th><td>4</td><td>8</td>' in html
    assert re.search(r'<th scope="row">Loss, held out, lowest</th><td>2\.\d+</td><td>2\.\d+</td>', html)
    assert "amber: Run finished, step 40 of 40." in text and "mint: Run finished, step 60 of 60." in text


def test_a_run_that_was_over_and_is_resumed_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    events = toy.make_folder(folder)
    for step in range(1, 11):
        events.write("metrics", {"loss": 1.0}, step=step)
    events.close()
    toy.end(folder, "stopped", 10)
    monitor = RunMonitor(folder)
    try:
        assert monitor.status["runs"][0]["allowed"] == ["restart"]
        events = EventWriter(folder, 0, 2)
        events.write("state", {"state": "running", "resumed": 5}, step=5)
        replace_json(folder / "state.json", {"name": "finished", "attempt": 2, "step": 5})
        monitor.look()
        assert monitor.status["runs"][0]["state"] == "finished"
        assert monitor.watched[0].points()["0:loss"][0] == [1, 2, 3, 4, 5]
    finally:
        monitor.close()
