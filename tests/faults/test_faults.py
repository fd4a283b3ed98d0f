"""What goes wrong around a run - a stopped process, a hang, a clock, memory, a full disk, a dying kernel - is seen and told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults import work
from tests.faults.test_launch import LIMIT, ONE, TWO, failure, processes, running, until
from toolkit.checkpoint import newest, read_state
from toolkit.launch import Local, launch
from toolkit.launch.leftovers import end, leftovers
from toolkit.runs import Run, RunFailed, RunInactive, pulse, runs
from toolkit.runs.reserve import NAME as RESERVE

HERE = Path(__file__).parents[2]
PATIENT = Local(processes=2, devices="cpu", threads=1, silence=2.5)


def goes_on(run: Run) -> None:
    """Wait until it has made some more steps."""
    step = run.state.step or 0
    until(lambda: (run.state.step or 0) > step + 2)


def test_a_stopped_rank_is_named_at_once_and_a_hang_with_the_rank_that_is_missing(tmp_path: Path) -> None:
    run = launch(work.rounds, on=PATIENT, root=tmp_path)
    victim = running(run).processes[2]
    until(lambda: run.state.step)
    os.kill(victim, signal.SIGSTOP)
    until(lambda: run.state.message, 15)
    assert run.state.message == f"rank 1 is stopped by SIGSTOP: kill -CONT {victim} lets it go on"
    os.kill(victim, signal.SIGCONT)
    until(lambda: not run.state.message, 15)
    goes_on(run)
    (run.folder / "spin").touch()
    begun = time.monotonic()
    report, message = failure(run)
    assert time.monotonic() - begun < PATIENT.silence + 15 + 10  # What was allowed, what telling may take, a slow machine.
    assert report["rank"] == 1 and list(report["stacks"]) == ["0", "1"]
    assert "rank 0 waits in all_reduce (work.py:" in message and "rank 1 is in spin (work.py:" in message
    assert "---- where rank 1 was" in message and "same collectives" in report["remedy"]
    assert processes(run) == []


CLOCK = """
import os, time
real, place = time.time, os.environ.get("CLOCK_OF_TEST")

def jumping():
    try:
        with open(place) as file:
            return real() + float(file.read() or 0)
    except FileNotFoundError:
        return real()

if place:
    time.time = jumping
"""


def test_jumping_clocks_and_a_stopped_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of supervisor and workers jumps, then ours; then the supervisor is stopped, and goes on."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    clock = tmp_path / "clock"
    monkeypatch.setenv("CLOCK_OF_TEST", str(clock))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    run = launch(work.rounds, on=ONE, root=tmp_path)
    supervisor, worker = running(run).processes
    for jump in (-7200, 86400 * 400):
        clock.write_text(str(jump))
        goes_on(run)
        assert (run.state.name, run.state.silent) == ("running", None)
        assert abs(run.events()[-1]["time"] - time.time() - jump) < 600  # It did jump.
    with monkeypatch.context() as ours:
        now = time.time
        for jump in (-7200, 86400 * 400):
            ours.setattr(time, "time", lambda jump=jump: now() + jump)
            assert (run.state.name, run.state.silent) == ("running", None)
    monkeypatch.setattr(pulse, "STALE", 3.0)
    os.kill(supervisor, signal.SIGSTOP)
    until(lambda: run.state.silent)
    assert run.state.name == "running"
    assert f"its supervisor (process {supervisor}) has given no sign for" in run.state.message
    os.kill(supervisor, signal.SIGCONT)
    until(lambda: run.state.silent is None, 15)
    os.kill(worker, signal.SIGKILL)
    report, _ = failure(run)
    assert report["signal"] == "SIGKILL" and "free just before" in report["likely"]
    assert json.loads((run.folder / "result.json").read_text())["seconds"] < 1000


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    run = launch(work.eat, on=ONE, root=tmp_path)
    report, _ = failure(run)
    assert report["likely"] == "out of memory"
    for remedy in ("micro_rows", "dp_shard", "bfloat16"):
        assert remedy in report["remedy"]
    assert "in eat" in report["traceback"]


def test_a_vanished_folder_ends_its_run_and_is_told(tmp_path: Path) -> None:
    """Its supervisor and workers are gone within 15 s, and whoever looks for the run is told."""
    run = launch(work.wait_for_ever, on=TWO, root=tmp_path)
    pids = running(run).processes
    assert len(pids) == 3 and set(pids[1:]) <= set(processes(run))
    until(lambda: shutil.rmtree(run.folder, ignore_errors=True) or not run.folder.exists(), 5)  # The heartbeat writes in it.
    until(lambda: not any(map(psutil.pid_exists, pids)) and not processes(run), 15)
    assert not run.folder.exists() and leftovers(tmp_path) == [] and runs(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=f"no run '{run.id}'"):
        Run.attach(run.id, tmp_path)
    assert (run.state.name, run.state.message) == ("lost", "its folder is gone, and all that was in it")
    with pytest.raises(RunFailed, match="was removed or moved while it went on"):
        run.wait()
    with pytest.raises(RunInactive, match="it obeys no command any more$"):
        run.stop()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 4 MiB at `folder`, where this user may mount one; whether it is there."""
    folder.mkdir()
    there = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True).returncode == 0
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_costs_nothing_but_the_checkpoint(tmp_path: Path) -> None:
    """The third checkpoint does not fit, on a full disk or, where none can be mounted, beyond a limit on the size of files."""
    root = tmp_path / "disk"
    with small_disk(root) as mounted:
        run = launch(work.save_until_full, None if mounted else 2_000_000, on=ONE, root=root)
        report, message = failure(run)
        assert ("No space left on device" if mounted else "File too large") in report["error"]
        assert ("the disk is full" if mounted else "a file grew beyond the limit") in report["likely"]
        assert "Free space" in report["remedy"] and "keeps its earlier checkpoints" in message
        found, skipped = newest(run.folder / "checkpoints")
        assert found is not None and read_state(found)["seen"] == [1, 2] and skipped == []
        assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["step-1", "step-2"]
        if mounted:
            with open(root / "ballast", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while file.write(bytes(1 << 12)):
                    pass
            with pytest.raises(OSError, match="No space left"):
                run.restart()
            assert run.state.name == "failed"
            subprocess.run(["mount", "-o", "remount,size=64m", str(root)], check=True)
        result = run.restart().wait(LIMIT)
        assert result.metrics == [2, 4]
        assert not (run.folder / RESERVE).exists()
        if mounted:
            read_only = ["mount", "-o", "remount,ro", str(root)]
            until(lambda: subprocess.run(read_only, capture_output=True).returncode == 0)  # The supervisor is just ending.
            for start in (run.restart, lambda: launch(work.save_until_full, None, on=ONE, root=root)):
                with pytest.raises(OSError, match="Read-only file system"):
                    start()
            assert run.state.name == "finished"


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("toolkit.launch:describe", None),
        ("toolkit.launch:begin_attempt!", None),
        ("toolkit.launch:write_holder", "lost"),
        ("toolkit.launch.local:subprocess.Popen!", "running"),
    ],
)
def test_a_kernel_that_dies_while_launching_leaves_a_run_or_none(tmp_path: Path, where: str, shown: str | None) -> None:
    command = [sys.executable, "-c", "import sys; from tests.faults.work import launch_and_die as go; go(*sys.argv[1:])"]
    died = subprocess.run([*command, str(tmp_path), "amber", where], cwd=HERE, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    if shown is None:
        with pytest.raises(FileNotFoundError, match="no run 'amber'"):
            Run.attach("amber", tmp_path)
        assert leftovers(tmp_path) == []
        return
    run = Run.attach("amber", tmp_path)
    until(lambda: run.state.name == shown)
    if shown == "running":
        run.kill()
        assert run.wait(LIMIT).state == "stopped"
    else:
        assert run.restart().wait(LIMIT).metrics == "back"


def test_commands_from_two_notebooks_and_a_shell_at_once(tmp_path: Path) -> None:
    """Every command has its own number, is obeyed in that order, is acknowledged and is shown; none to a dead run."""
    run = launch(work.Toy(), on=ONE, root=tmp_path)
    running(run)
    code = "import sys; from tests.faults.work import send_from_elsewhere as go; go(sys.argv[1], sys.argv[2], 20)"
    notebooks = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), run.id], cwd=HERE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    sent: list[int] = []
    threads = [threading.Thread(target=lambda: sent.extend([run.set("lr", 0.25) for _ in range(5)])) for _ in range(2)]
    for thread in threads:
        thread.start()
    shell = [sys.executable, "-P", "-m", "toolkit", "runs", "--root", str(tmp_path)]
    said = subprocess.run([*shell, "set", run.id, "lr", "0.5", "--json"], cwd=HERE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    sent.append(json.loads(said.stdout)["n"])
    for thread in threads:
        thread.join()
    for notebook in notebooks:
        answer, _ = notebook.communicate(timeout=LIMIT)
        sent += json.loads(answer)
    assert len(set(sent)) == 51
    until(lambda: run.acknowledgement(max(sent)))
    answers = [event["data"] for event in run.events(kinds=("command",))]
    assert [answer["n"] for answer in answers] == sorted(sent)
    assert [answer["applied"] for answer in answers] == sorted(answer["applied"] for answer in answers)
    run.stop()
    assert run.wait(LIMIT).state == "stopped"
    with pytest.raises(RunInactive, match=f"run {run.id} is stopped: it obeys no command any more; restart"):
        run.pause()
    said = subprocess.run([*shell, "pause", run.id], cwd=HERE, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (3, "")
    assert f"run {run.id} is stopped: it obeys no command any more" in said.stderr and len(said.stderr.splitlines()) == 1


def test_a_silent_supervisor_is_ended_and_what_outlives_it_is_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch(work.leave_a_process_and_wait, on=ONE, root=tmp_path)
    until(lambda: (run.folder / "left").exists())
    supervisor, worker = running(run).processes
    left = int((run.folder / "left").read_text())
    assert leftovers(tmp_path) == []
    os.kill(supervisor, signal.SIGSTOP)
    monkeypatch.setattr(pulse, "STALE", 1.5)
    until(lambda: run.state.silent)
    run.kill()
    until(lambda: run.state.name == "lost", 15)
    until(lambda: not psutil.pid_exists(worker), 15)
    with pytest.raises(RunFailed, match="lost at attempt 1"):
        run.wait()
    (found,) = leftovers(tmp_path)
    assert (found.pid, found.run, found.reason) == (left, run.id, "its run is over")
    assert end(found) and leftovers(tmp_path) == []
