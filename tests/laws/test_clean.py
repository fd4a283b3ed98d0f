"""Cleaning up: looking changes nothing, a live run is never touched, nothing outside the root is."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.laws.command_line import command, command_json, living, write_run
from toolkit.clean import REMAINS, Candidate, Choice, asides, folder_size, remove, survey
from toolkit.cli.clean import KEYS
from toolkit.launch.processes import PLACE, TOKEN
from toolkit.runs import runs
from toolkit.runs.control import begin_attempt
from toolkit.runs.files import take_lock
from toolkit.runs.rewind import rewind
from toolkit.runs.state import write_holder

DAY = 86400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Runs that ended 1, 2, ... days ago: a finished one, a failed one, one that is lost, and a large one."""
    write_run(tmp_path, "finished", ago=1 * DAY)
    write_run(tmp_path, "failed", ago=2 * DAY, state="failed")
    write_run(tmp_path, "lost", ago=3 * DAY, state="running")
    (write_run(tmp_path, "large", ago=4 * DAY) / "checkpoints" / "weights").write_bytes(b"x" * 3_000_000)
    return tmp_path


def going(root: Path, choice: Choice) -> list[str]:
    """Names of the runs that a choice lets go."""
    return [found.folder.name for found in survey(root, choice) if not found.kept]


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, with size and time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*")}


CHOICES = {
    "nothing asked": (Choice(), []),
    "older": (Choice(older=1.5 * DAY), ["failed", "lost", "large"]),
    "larger": (Choice(larger=2_000_000), ["large"]),
    "keep": (Choice(keep=3), ["large"]),
    "states": (Choice(states=("failed", "lost")), ["failed", "lost"]),
    "all at once": (Choice(states=("finished",), older=1.5 * DAY, keep=1), ["large"]),
    "none fits": (Choice(states=("lost",), larger=2_000_000), []),
}


@pytest.mark.parametrize(("choice", "expected"), CHOICES.values(), ids=CHOICES)
def test_a_run_goes_when_it_fits_everything_that_is_asked(choice: Choice, expected: list[str], root: Path) -> None:
    before = state_of(root)
    assert going(root, choice) == expected
    assert state_of(root) == before


def test_without_yes_nothing_is_done_and_with_it_what_was_shown(root: Path, capsys: Any) -> None:
    arguments = ["runs", "clean", "--older", "36h", "--state", "finished", "--state", "lost", "--root", str(root)]
    before = state_of(root)
    status, out, _ = command(*arguments, capsys=capsys)
    assert status == 0
    assert "Would remove 2 runs" in out
    assert "Nothing was done yet" in out
    assert state_of(root) == before
    shown = command_json(*arguments, "--json", capsys=capsys)
    assert tuple(shown) == KEYS
    assert {run["run"]: run["what"] for run in shown["runs"]} == {
        "finished": "stays", "failed": "stays", "lost": "would remove", "large": "would remove"
    }  # fmt: skip
    assert shown["bytes"] > 3_000_000
    done = command_json(*arguments, "--json", "--yes", capsys=capsys)
    assert done["bytes"] == shown["bytes"]
    assert sorted(path.name for path in (root / "runs").iterdir()) == ["failed", "finished"]


def test_a_live_run_is_never_touched(root: Path, capsys: Any) -> None:
    with living(root / "runs" / "large"), living(root / "runs" / "lost", state="paused"):
        before = state_of(root / "runs" / "large")
        command("runs", "clean", "--older", "1s", "--yes", "--root", str(root), capsys=capsys)
        assert state_of(root / "runs" / "large") == before
        assert sorted(path.name for path in (root / "runs").iterdir()) == ["large", "lost"]


def test_a_run_that_came_to_life_after_the_look_stays(root: Path) -> None:
    found = {each.folder.name: each for each in survey(root, Choice(older=0))}
    with living(root / "runs" / "failed"):
        assert remove(found["failed"]) == "it is live"
    lock = take_lock(root / "runs" / "lost" / "lock")  # started again and over again meanwhile
    assert lock is not None
    write_holder(lock, 2)
    os.close(lock)
    assert remove(found["lost"]) == "it was started again meanwhile"
    assert (root / "runs" / "failed" / "launch.json").is_file()
    assert (root / "runs" / "lost" / "launch.json").is_file()
    assert remove(found["large"]) is None
    assert remove(found["large"]) == "it is gone already"


@pytest.mark.parametrize("head_start", [0.0, 0.0002, 0.001])
def test_removing_and_starting_at_once_has_one_winner(head_start: float, tmp_path: Path) -> None:
    for number in range(8):
        folder = write_run(tmp_path, f"run-{number}", state="failed")
        (found,) = survey(tmp_path, Choice(older=0))
        started: list[int] = []

        def start(folder: Path = folder, started: list[int] = started) -> None:
            """As `launch.restart` does: the lock, then the files."""
            threading.Event().wait(head_start)
            try:
                lock = take_lock(folder / "lock")
                if lock is not None:
                    write_holder(lock, 2)
                    begin_attempt(folder, 2)
                    started.append(lock)
            except FileNotFoundError:
                return

        thread = threading.Thread(target=start)
        thread.start()
        kept = remove(found)
        thread.join()
        assert bool(started) == bool(kept), (started, kept)
        assert folder.exists() == bool(started)
        if started:
            assert {"launch.json", "state.json", "events-0.jsonl"} <= {path.name for path in folder.iterdir()}
            os.close(started[0])
            lock = take_lock(folder / "lock")
            assert lock is not None
            os.close(lock)
            assert remove(survey(tmp_path, Choice(older=0))[0]) is None


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "gone", state="failed")
    held = take_lock(folder / "lock")
    assert held is not None
    refused: list[OSError] = []

    def wait_for_it() -> None:
        try:
            take_lock(folder / "lock", patience=5)
        except FileNotFoundError as error:
            refused.append(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    threading.Event().wait(0.1)
    (folder / "lock").unlink()
    os.close(held)
    thread.join()
    assert "it was removed meanwhile" in str(refused[0])


def test_a_list_of_runs_passes_over_what_is_being_removed(root: Path) -> None:
    (root / "runs" / "large").rename(root / "runs" / f"{REMAINS}large-1")
    assert [run.id for run in runs(root)] == ["finished", "failed", "lost"]


@pytest.mark.parametrize("state", ["{", "[1]", '{"name": 7, "attempt": "x", "since": "y"}', "\0"])
def test_a_run_with_damaged_files_hides_no_other_and_can_go(state: str, root: Path, capsys: Any) -> None:
    (root / "runs" / "failed" / "state.json").write_text(state)
    (root / "runs" / "failed" / "launch.json").write_text('{"title": 3, "time": "z"}')
    status, out, _ = command("runs", "--root", str(root), capsys=capsys)
    assert status == 0
    assert sorted(line.split()[0] for line in out.splitlines()[1:]) == ["failed", "finished", "large", "lost"]
    assert "damaged" in out
    listed = command_json("runs", "--json", "--root", str(root), capsys=capsys)
    assert {run["run"]: run["state"] for run in listed}["failed"] in ("damaged", "lost")
    assert "failed" in going(root, Choice(older=0))
    lock = take_lock(root / "runs" / "failed" / "lock")
    assert "failed" not in going(root, Choice(older=0)), "someone holds it"
    assert lock is not None
    os.close(lock)
    (found,) = [each for each in survey(root, Choice(older=0)) if each.folder.name == "failed"]
    assert remove(found) is None


def test_links_are_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    precious = write_run(outside, "precious", ago=90 * DAY)
    (root / "runs" / "linked").symlink_to(precious)
    (root / "runs" / "failed" / "blobs" / "out").symlink_to(outside)
    before = state_of(outside)
    assert "linked" not in [found.folder.name for found in survey(root, Choice(older=0))]
    assert folder_size(root / "runs" / "failed") < 1_000_000
    for found in survey(root, Choice(older=0)):
        assert remove(found) is None
    link = Candidate(folder=root / "runs" / "linked", state="finished", attempt=1, age=0.0, bytes=0)
    assert remove(link) == "it is no folder of this user any more"
    assert state_of(outside) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "runs").symlink_to(outside / "runs")
    with pytest.raises(ValueError, match="is a link, and cleaning follows none"):
        survey(elsewhere, Choice(older=0))


def test_what_is_no_run_stays_and_what_a_removal_left_goes(root: Path) -> None:
    (root / "runs" / "tour").mkdir()
    (root / "runs" / f"{REMAINS}old-1").mkdir()
    (root / "runs" / f"{REMAINS}old-1" / "weights").write_bytes(b"x")
    assert going(root, Choice()) == [f"{REMAINS}old-1"]
    (found,) = [each for each in survey(root) if not each.kept]
    assert remove(found) is None
    assert (root / "runs" / "tour").is_dir()


def test_checkpoints_that_were_set_aside_are_shown_offered_and_go_when_asked(root: Path, capsys: Any) -> None:
    for name in ("large", "failed"):
        for step in (20, 40):
            place = root / "runs" / name / "checkpoints" / f"step-{step}"
            place.mkdir()
            (place / "manifest.json").write_bytes(b"x" * 100_000)
        assert [path.name for path in rewind(place.parents[1], 20)] == ["step-40.aside"]
    shown = command("runs", "show", "large", "--root", str(root), capsys=capsys)[1]
    assert "step-40.aside, 1" in next(line for line in shown.splitlines() if line.startswith("set aside"))
    (told,) = command_json("runs", "show", "large", "--json", "--root", str(root), capsys=capsys)["aside"]
    assert told["folder"].endswith("step-40.aside") and told["bytes"] >= 100_000
    failed, large = asides(survey(root), True)
    before = state_of(root)
    arguments = ["runs", "clean", "--root", str(root)]
    assert "2 checkpoints set aside in them (2" in command(*arguments, "--yes", capsys=capsys)[1]
    assert state_of(root) == before
    with living(root / "runs" / "failed"):
        out = command(*arguments, "--aside", capsys=capsys)[1]
        assert "large/step-40.aside" in out and "failed/step-40" not in out
        assert "Would remove 0 runs, 1 checkpoint (1" in out
        assert (root / "runs" / "large" / "checkpoints" / "step-40.aside").is_dir()
        done = command_json(*arguments, "--aside", "--yes", "--json", capsys=capsys)
        assert {each["run"]: each["what"] for each in done["aside"]} == {"large": "removed", "failed": "stays"}
        assert done["bytes"] >= 100_000
        assert remove(failed) == "it is live"
    assert [remove(failed), remove(failed), remove(large)] == [None, *["it is gone already"] * 2]
    names = sorted(path.name for path in (root / "runs").glob("*/checkpoints/*"))
    assert names == ["step-20", "step-20", "weights"]


def test_a_run_lost_on_another_machine_is_left_to_it(root: Path) -> None:
    folder = root / "runs" / "lost"
    (folder / "lock").write_text(json.dumps({"attempt": 1, "host": "far", "boot": "other", "time": 0.0}))
    assert {found.folder.name: found.kept for found in survey(root, Choice(older=0))}["lost"] == (
        "it was lost on far, which alone can tell whether it lives"
    )


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = folder_size(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert folder_size(tmp_path) == once >= 100_000


def test_an_orphan_is_shown_first_and_then_ended(root: Path, capsys: Any) -> None:
    marks = {TOKEN: "finished", PLACE: str(root / "runs" / "finished")}
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, **marks})
    try:
        _, out, _ = command("runs", "clean", "--root", str(root), capsys=capsys)
        assert f"Process {orphan.pid} of run finished: its run is over; would be ended" in out
        assert orphan.poll() is None
        done = command_json("runs", "clean", "--yes", "--json", "--root", str(root), capsys=capsys)
        assert [(found["pid"], found["ended"]) for found in done["processes"]] == [(orphan.pid, True)]
        assert orphan.wait(5) != 0
        assert (root / "runs" / "finished").is_dir()
    finally:
        orphan.kill()
        orphan.wait()
