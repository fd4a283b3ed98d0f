"""`runs`: the list, one run looked into, and commands that reach it."""

import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.laws.command_line import command, living, write_run
from toolkit.cli.follow import Watch
from toolkit.runs import EventWriter, Run
from toolkit.runs.files import replace_json
from toolkit.runs.state import State


def test_watch_prints_metrics_as_json_lines(project: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "watch", "good", "--root", str(project), "--json", capsys=capsys)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line.get("loss") for line in lines[:-1]] == [6.0, 3.0, 2.0]
    assert lines[-1]["metrics"] == {"loss": 6.0}


def test_watch_on_a_terminal(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, out, _ = command("runs", "watch", "good", "--root", str(project), capsys=capsys)
    assert status == 0
    assert "Run good finished in" in out


def test_runs_lists_newest_first(project: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "--root", str(project), capsys=capsys)
    assert status == 0
    header, *rows = out.splitlines()
    assert header.split()[:2] == ["run", "state"]
    assert [row.split()[:2] for row in rows] == [["bad", "failed"], ["good", "finished"]]
    found = json.loads(command("runs", "--root", str(project), "--json", capsys=capsys)[1])
    assert [(run["run"], run["state"], run["step"]) for run in found] == [("bad", "failed", 3), ("good", "finished", 3)]


def test_a_damaged_run_is_listed_beside_the_others(tmp_path: Path, capsys: Any) -> None:
    bad, _ = write_run(tmp_path, "bad"), write_run(tmp_path, "good")
    for damaged in ("{", "[1]", '{"title": 3}'):
        (bad / "launch.json").write_text(damaged)
        found = json.loads(command("runs", "--root", str(tmp_path), "--json", capsys=capsys)[1])
        assert {run["run"]: run["state"] for run in found} == {"bad": "damaged", "good": "finished"}
        assert "launch.json" in next(run["message"] for run in found if run["run"] == "bad")


def test_runs_show(project: Path, capsys: Any) -> None:
    status, out, _ = command("runs", "show", "good", "--root", str(project), capsys=capsys)
    assert status == 0
    assert "loss               2 at step 3" in out
    shown = json.loads(command("runs", "--root", str(project), "--json", "show", "good", capsys=capsys)[1])
    assert shown["metrics"]["loss"] == {"step": 3, "value": 2.0}
    assert "ArithmeticError" in command("runs", "show", "bad", "--root", str(project), capsys=capsys)[1]


def test_runs_tail(project: Path, capsys: Any) -> None:
    (project / "runs" / "good" / "rank-0.log").write_text("one\ntwo\nthree\n")
    assert command("runs", "tail", "good", "-n", "2", "--root", str(project), capsys=capsys)[1] == "two\nthree\n"
    for rank, message in {"../0": "--rank: expected a number", "7": "--rank 7: run good has no such log; there are: 0"}.items():
        status, _, err = command("runs", "tail", "good", "--rank", rank, "--root", str(project), capsys=capsys)
        assert status == 2
        assert message in err
    told = command("runs", "tail", "good", "--follow", "-n", "1", "--root", str(project), capsys=capsys)[1]
    assert told == "three\n"


@pytest.mark.parametrize("action", [["pause"], ["resume"], ["checkpoint"], ["stop"], ["set", "lr", "0.1"]])
def test_a_run_that_is_over_obeys_nothing(action: list[str], project: Path, capsys: Any) -> None:
    status, _, err = command("runs", action[0], "good", *action[1:], "--root", str(project), capsys=capsys)
    assert status == 3
    assert "run good is finished" in err


COMMANDS = {
    "pause": (["pause"], ("pause",)),
    "resume": (["resume"], ("resume",)),
    "checkpoint": (["checkpoint"], ("checkpoint",)),
    "stop": (["stop"], ("stop", True)),
    "stop without saving": (["stop", "--no-save"], ("stop", False)),
    "stop now": (["stop", "--now"], ("kill",)),
    "set": (["set", "lr", "1e-4"], ("set", "lr", 1e-4)),
    "set a whole number": (["set", "max_steps", "12"], ("set", "max_steps", 12)),
}


@pytest.mark.parametrize(("action", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_commands_reach_the_run(
    action: list[str], expected: tuple[Any, ...], project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    told: list[tuple[Any, ...]] = []
    for name in ("pause", "resume", "checkpoint", "set", "kill"):
        monkeypatch.setattr(Run, name, lambda self, *given, name=name: told.append((name, *given)) or 7)
    monkeypatch.setattr(Run, "stop", lambda self, save=True: told.append(("stop", save)) or 7)
    arguments = ["runs", action[0], "good", *action[1:], "--root", str(project)]
    status, out, _ = command(*arguments, capsys=capsys)
    assert status == 0
    assert out.startswith("Told run good: ")
    assert json.loads(command(*arguments, "--json", capsys=capsys)[1])["n"] == 7
    assert told == [expected, expected]
    assert [type(item) for item in told[0]] == [type(item) for item in expected]


def test_restart(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(Run, "restart", lambda self, step=None: asked.append(step) or self)
    status, out, _ = command("runs", "restart", "good", "--root", str(project), capsys=capsys)
    assert status == 0
    assert "Run good starts again" in out
    assert command("runs", "restart", "good", "--step", "20", "--json", "--root", str(project), capsys=capsys)[0] == 0
    assert asked == [None, 20]


def test_time_left_is_told_from_the_mean_pace() -> None:
    watch = Watch.__new__(Watch)
    watch.metrics, watch._first, watch._last = {"loss": 2.0, "eval_loss": "NaN"}, (10, 100.0), (14, 108.0)
    assert watch.seconds_left(20) == 12
    assert watch.line(State(name="running", step=14, total_steps=20)) == "running · step 14 of 20 · loss 2.000 · 12 s left"
    assert watch.line(State(name="paused", step=14)) == "paused · step 14 · loss 2.000"
    watch._first = watch._last
    assert watch.seconds_left(20) is None


class Said(io.StringIO):
    """What a command prints, for another thread to wait for."""

    def waits_for(self, text: str) -> bool:
        """Whether `text` is printed within a minute."""
        until = time.monotonic() + 60
        while text not in self.getvalue() and time.monotonic() < until:
            time.sleep(0.005)
        return text in self.getvalue()


def test_tail_follows_a_live_log_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = write_run(tmp_path, "talks")
    log = folder / "rank-0.log"
    log.write_text("before\nhalf a li")
    said, alive = Said(), threading.Event()
    monkeypatch.setattr(sys, "stdout", said)

    def live() -> None:
        """Each line is finished, and another begun, once what is before it was printed."""
        with living(folder), log.open("a") as file:
            alive.set()
            for printed, text in (("before\n", "ne\ntold \x1b[2J"), ("half a line\n", " and the rest")):
                assert said.waits_for(printed)
                file.write(text)
                file.flush()

    thread = threading.Thread(target=live)
    thread.start()
    assert alive.wait(60)
    status = command("runs", "tail", "talks", "--follow", "--root", str(tmp_path), capsys=capsys)[0]
    thread.join()
    assert status == 0
    assert said.getvalue() == "before\nhalf a line\ntold \\x1b[2J and the rest\n"


def test_numbers_without_a_step_are_shown_all_the_same(tmp_path: Path, capsys: Any) -> None:
    folder = write_run(tmp_path, "odd", losses=(2.0,))
    EventWriter(folder, 0, 1).write("metrics", {"loss": 1.0})
    replace_json(folder / "state.json", {"name": "finished", "total_steps": 9})
    status, out, _ = command("runs", "watch", "odd", "--root", str(tmp_path), capsys=capsys)
    assert status == 0 and "loss 1.000" in out


def test_tail_follows_a_busy_log_and_says_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = write_run(tmp_path, "busy")
    log = folder / "rank-0.log"
    log.touch()
    said, alive, lines = Said(), threading.Event(), "".join(f"line {number}\n" for number in range(2000))
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr("toolkit.cli.tail.POLL_SECONDS", 0.001)

    def live() -> None:
        with living(folder), log.open("a", buffering=1) as file:
            alive.set()
            file.writelines(lines.splitlines(keepends=True))

    thread = threading.Thread(target=live)
    thread.start()
    assert alive.wait(60)
    command("runs", "tail", "busy", "-f", "-n", "3000", "--root", str(tmp_path), capsys=capsys)
    thread.join()
    assert said.getvalue() == lines
