"""Laws of the run folder: states, commands, trust, names, lists; no run is started here."""

import asyncio
import json
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from tests.laws import command_line
from toolkit.launch import launch
from toolkit.launch.keeper import Keeper
from toolkit.runs import Run, RunFailed, RunInactive, listing, read_commands, runs, send
from toolkit.runs.control import begin_attempt
from toolkit.runs.files import UntrustedFile, read_json, replace_json, take_lock
from toolkit.runs.listing import unattended
from toolkit.runs.roots import known_roots, make_folder, remember, root_of
from toolkit.runs.state import ACTIVE, write_holder


def kept_run(root: Path, name: str | None = None, entry: str | None = None) -> tuple[Run, Keeper]:
    """A run whose supervisor is this process."""
    folder, made = make_folder(root, name)
    assert made
    replace_json(folder / "launch.json", {"title": "<b>toy</b>", "processes": 1, "entry": entry, "restart": "os:getcwd"})
    lock = take_lock(folder / "lock")
    assert lock is not None
    return Run(folder), Keeper(folder, lock, 1, 1)


# ---- states --------------------------------------------------------------------------------------------------------


def test_state_follows_the_lock(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    assert run.state.name == "starting"
    for name in ACTIVE:
        keeper.show(name)
        assert run.state.name == name
    assert run.alive
    os.close(keeper._lock)
    assert run.state.name == "lost"
    assert "supervisor is gone" in str(run.state)
    with pytest.raises(RunFailed, match="restart"):
        run.wait()


def test_final_state_stays_until_the_next_attempt_begins(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.finish("finished", message="done")
    assert run.state.name == "finished"
    lock = take_lock(run.folder / "lock")
    assert lock is not None
    write_holder(lock, 2)
    assert (run.state.name, run.state.attempt) == ("starting", 2)
    os.close(lock)
    assert (run.state.name, run.state.attempt) == ("lost", 2)


def test_run_elsewhere_is_lost_without_heartbeat(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.show("running")
    (run.folder / "lock").write_text(json.dumps({"attempt": 1, "boot": "another machine", "host": "far", "time": 0}))
    assert run.state.name == "running"
    os.utime(run.folder / "heartbeat", (1, 1))
    assert run.state.name == "lost"


def test_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    path, over = tmp_path / "state.json", threading.Event()

    def write() -> None:
        while not over.is_set():
            for size in (1, 5000):
                replace_json(path, {"text": "x" * size}, sync=False)

    replace_json(path, {"text": ""})
    thread = threading.Thread(target=write)
    thread.start()
    sizes = {len(read_json(path)["text"]) for _ in range(2000)}
    over.set()
    thread.join()
    assert sizes <= {0, 1, 5000}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_keeper_mirrors_what_rank_0_says(tmp_path: Path) -> None:
    from toolkit.runs import EventWriter

    run, keeper = kept_run(tmp_path)
    writer = EventWriter(run.folder, 0, 1)
    writer.write("state", {"state": "paused", "controls": True, "total_steps": 8, "secret": 1}, step=4)
    writer.write("state", {"state": "finished"})
    keeper.tick()
    state = run.state
    assert (state.name, state.controls, state.total_steps, state.step, state.progress) == ("paused", True, 8, 4, 0.5)
    writer.write("state", {"state": "stopping"}, step=5)
    keeper.finish("finished")
    assert run.wait(1).state == "stopped"
    assert run.state.step == 5


def test_what_a_command_leads_to_shows_before_the_step_is_over(tmp_path: Path) -> None:
    from toolkit.runs import EventWriter

    run, keeper = kept_run(tmp_path)
    writer = EventWriter(run.folder, 0, 1)

    def shown(*, said: str | None = None, command: str = "checkpoint") -> str:
        if said:
            writer.write("state", {"state": said, "controls": True}, step=1)
        keeper.tick()
        keeper.expect(command)
        return run.state.name

    assert shown(command="pause") == "starting"
    assert shown(said="running") == "running"
    assert shown(command="pause") == "pausing"
    assert shown(said="running") == "pausing"
    assert shown(command="resume") == "running"
    assert shown(said="paused", command="pause") == "paused"
    assert shown(command="resume") == "paused"
    assert shown(said="running", command="pause") == "pausing"
    assert shown(said="paused") == "paused"
    assert shown(command="stop") == "stopping"
    assert shown(said="paused", command="resume") == "stopping"
    keeper.finish("finished")  # It came to its end before it came to the command.
    assert run.state.name == "finished"


STATES = {
    "torn": ('{"name": "run', "not JSON"),
    "no object": ("[]", "expected an object, got []"),
    "no name": ("{}", "name: expected one of queued, "),
    "unknown name": ('{"name": "amber"}', "got 'amber'"),
    "processes": ('{"name": "failed", "processes": 5}', "processes: expected a list of whole numbers, got 5"),
    "report": ('{"name": "failed", "report": [1]}', "report: expected an object or null, got [1]"),
    "report without rank": ('{"name": "failed", "report": {"error": "x"}}', "report: rank: expected a whole number, got None"),
    "tails": ('{"name": "failed", "report": {"rank": 0, "tails": [1]}}', "tails: expected an object of text or null"),
    "total_steps": ('{"name": "failed", "total_steps": [1]}', "total_steps: expected a whole number or null, got [1]"),
    "truth is no number": ('{"name": "failed", "step": true}', "step: expected a whole number or null, got True"),
    "endless": (f'{{"name": "failed", "step": 1{"0" * 400}}}', "step: expected a whole number or null, got 10"),
    "no time": ('{"name": "failed", "since": NaN}', "since: expected a time in seconds, got nan"),
    "too deep": ("[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize(("text", "told"), STATES.values(), ids=STATES)
def test_a_damaged_state_is_told_in_one_line_that_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    run, _ = kept_run(tmp_path, "amber")
    (run.folder / "state.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        _ = run.state
    assert str(run.folder / "state.json") in str(raised.value) and "\n" not in str(raised.value)
    status, out, err = command_line.command("runs", "show", "amber", "--root", str(tmp_path), capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1) and told in err


def test_a_damaged_lock_file_says_nothing_and_a_damaged_launch_names_its_field(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.show("running")
    for text in ("[]", '{"attempt": "x", "time": null, "pid": [1], "boot": 7}'):
        (run.folder / "lock").write_text(text)
        assert run.state.name == "running"
    for text, told in (("[1]", "expected an object"), ('{"title": 3}', "title: expected text, got 3")):
        (run.folder / "launch.json").write_text(text)
        for damaged in (lambda: run.launched, lambda: run.recipe, run.restart):
            with pytest.raises(ValueError, match=re.escape(told)):
                damaged()
    replace_json(run.folder / "launch.json", {})
    with pytest.raises(ValueError, match="expected toolkit"):
        run.restart()


# ---- commands ------------------------------------------------------------------------------------------------------


def test_commands_are_numbered_across_threads_and_attempts(tmp_path: Path) -> None:
    threads = [threading.Thread(target=lambda: [send(tmp_path, "set", name="lr", value=1) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [command["n"] for command in read_commands(tmp_path, 0)] == list(range(1, 21))
    assert [command["n"] for command in read_commands(tmp_path, 18)] == [19, 20]
    begin_attempt(tmp_path, 2)
    assert read_commands(tmp_path, 0) == []
    assert send(tmp_path, "stop", save=True) == 22
    assert [command["command"] for command in read_commands(tmp_path, 0)] == ["stop"]
    with (tmp_path / "control.jsonl").open("a") as file:
        file.write('{"n": 23, "command": "rm"}\n{"n": 24, "comm')
    assert send(tmp_path, "pause") == 24
    assert [command["n"] for command in read_commands(tmp_path, 0)] == [22, 24]
    with pytest.raises(ValueError, match="expected one of stop"):
        send(tmp_path, "destroy")


def test_untrusted_files_are_not_read(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    path = run.folder / "control.jsonl"
    send(run.folder, "pause")
    path.chmod(0o622)
    with pytest.raises(UntrustedFile, match="others may write"):
        read_commands(run.folder, 0)
    with pytest.raises(UntrustedFile):
        send(run.folder, "pause")
    assert keeper.commands(0) == []
    assert "others may write" in run.state.message
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedFile, match="link"):
        read_commands(run.folder, 0)


def test_commands_to_a_run_that_cannot_obey_name_its_state(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path, entry="toolkit.recipes.fine_tune:train")
    keeper.show("running", controls=True)
    assert run.pause() == 1
    with pytest.raises(ValueError, match="weight_decay"):
        run.set("momentum", 1.0)
    with pytest.raises(TypeError, match="a number"):
        run.set("lr", "1")  # type: ignore[arg-type]
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="finite"):
            run.set("lr", value)
    keeper.finish("failed", message="rank 0: no")
    for command in (run.pause, run.stop, run.kill, lambda: run.call(int)):
        with pytest.raises(RunInactive, match="is failed"):
            command()
    with pytest.raises(ValueError, match="toolkit"):
        run.restart()


def test_run_of_another_user_can_only_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.show("running", controls=True)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for command in (run.pause, run.stop, run.kill):
        with pytest.raises(PermissionError, match="only be looked at"):
            command()
    assert run.state.name == "running"


def test_until(tmp_path: Path) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.show("paused", step=4)
    assert asyncio.run(run.until("paused", step=3)).step == 4
    keeper.finish("finished")
    with pytest.raises(RunInactive, match="never was running"):
        asyncio.run(run.until("running"))


# ---- names, roots, lists -------------------------------------------------------------------------------------------


def test_root_is_the_nearest_project(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").touch()
    assert root_of(inner) == tmp_path / "a"
    (inner / "environment.yml").touch()
    assert root_of(inner) == inner


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 65, "a b", "a\n"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    for attempt in (lambda: launch(print, name=name, root=tmp_path), lambda: Run.attach(name, tmp_path)):
        with pytest.raises((ValueError, FileNotFoundError)):
            attempt()
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])
    assert not any((tmp_path / "runs").glob("*"))


def test_list_of_runs(tmp_path: Path) -> None:
    assert repr(runs(tmp_path)) == "no runs"
    for name in ("first", "second"):
        _, keeper = kept_run(tmp_path, name)
        keeper.finish("finished")
    found = runs(tmp_path)
    assert [run.id for run in found] == ["second", "first"]
    assert "finished" in repr(found)
    assert "&lt;b&gt;toy" in found._repr_html_()
    assert "<b>" not in found._repr_html_()
    assert Run.attach("first", tmp_path).id == Run.attach(found[1].folder).id == "first"
    with pytest.raises(FileNotFoundError, match="no run 'third'"):
        Run.attach("third", tmp_path)
    assert tmp_path not in known_roots()


def test_runs_that_nobody_looks_at_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(listing, "_reminded", False)
    run, keeper = kept_run(tmp_path)
    remember(tmp_path)
    assert [found.id for found in unattended()] == [run.id]
    listing.remind()
    listing.remind()
    assert capsys.readouterr().err.count(run.id) == 1
    keeper.finish("finished")
    assert unattended() == []


def test_a_damaged_run_keeps_no_other_from_being_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reminder passes over it, and says nothing where even the index of roots is damaged."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(listing, "_reminded", False)
    run, _ = kept_run(tmp_path, "good")
    torn, _ = kept_run(tmp_path, "torn")
    linked, _ = kept_run(tmp_path, "linked")
    (torn.folder / "state.json").write_text('{"name": "runn')
    (linked.folder / "state.json").symlink_to(torn.folder / "state.json")
    remember(tmp_path)
    assert [found.id for found in unattended()] == [run.id]
    assert [row[1] for row in sorted(runs(tmp_path).rows())] == ["starting", "damaged", "damaged"]
    listing.remind()
    assert "good" in capsys.readouterr().err
    (tmp_path / "state" / "scalebook" / "roots.json").write_text("[1]")
    monkeypatch.setattr(listing, "_reminded", False)
    listing.remind()
    with pytest.raises(ValueError, match=r"roots.json: expected an object"):
        known_roots()
