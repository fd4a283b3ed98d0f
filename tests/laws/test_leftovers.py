"""Processes that runs left behind are found by their mark and their start, and ended; those of a live run are not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.launch import leftovers as leftovers_module
from toolkit.launch.leftovers import Leftover, end, leftovers
from toolkit.launch.processes import PLACE, TOKEN
from toolkit.runs.files import replace_json, take_lock
from toolkit.runs.roots import make_folder
from toolkit.runs.state import write_holder

SLEEP = "import sys, time; print(flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A run folder, and a process that carries its mark and does not end when asked."""
    folder, _ = make_folder(tmp_path, "amber")
    marks = {**os.environ, TOKEN: "amber", PLACE: str(folder)}
    process = subprocess.Popen([sys.executable, "-c", DEAF], env=marks, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield folder, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_an_orphan_is_found_and_ended_whatever_it_does(tmp_path: Path, orphan: tuple[Path, subprocess.Popen]) -> None:
    folder, process = orphan
    replace_json(folder / "state.json", {"name": "failed"})
    (found,) = leftovers(tmp_path)
    assert (found.pid, found.run, found.folder, found.reason) == (process.pid, "amber", folder, "its run is over")
    assert "time.sleep(600)" in found.command and found.memory > 1 << 20
    assert leftovers(tmp_path / "elsewhere") == []
    assert found.pid in [each.pid for each in leftovers()]
    assert end(found, patience=0.2)
    assert process.wait(10) == -9
    assert leftovers(tmp_path) == []


def test_a_live_run_is_never_touched(tmp_path: Path, orphan: tuple[Path, subprocess.Popen]) -> None:
    folder, process = orphan
    (before,) = leftovers(tmp_path)
    assert before.reason == "its run never began"
    lock = take_lock(folder / "lock")
    assert lock is not None
    write_holder(lock, 1)
    assert leftovers(tmp_path) == []
    assert not end(before, patience=0.1) and process.poll() is None
    os.close(lock)


def test_a_process_in_a_container_is_never_touched(
    tmp_path: Path, orphan: tuple[Path, subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run folder does not exist here, and that says nothing; nor does a disk that does not answer."""
    folder, process = orphan
    shutil.rmtree(folder)
    (found,) = leftovers(tmp_path)
    assert (found.pid, found.reason) == (process.pid, "its run folder is gone")
    real = leftovers_module.mounts
    with monkeypatch.context() as container:
        container.setattr(leftovers_module, "mounts", lambda pid: "mnt:[1]" if pid == process.pid else real(pid))
        assert leftovers(tmp_path) == []
    (folder.parent / "amber").symlink_to(folder.parent / "amber")  # ELOOP
    assert leftovers(tmp_path) == []
    assert not end(found, patience=0.1) and process.poll() is None


def test_another_process_with_its_number_is_not_touched(tmp_path: Path, orphan: tuple[Path, subprocess.Popen]) -> None:
    _, process = orphan
    (found,) = leftovers(tmp_path)
    other = Leftover(**{name: getattr(found, name) for name in Leftover.__dataclass_fields__} | {"start": found.start - 1})
    assert end(other, patience=0.1)  # The one that was meant is gone.
    assert process.poll() is None


def test_a_process_of_an_earlier_attempt_is_left_over(tmp_path: Path, orphan: tuple[Path, subprocess.Popen]) -> None:
    """The run has a new supervisor, which was started later than the process."""
    folder, process = orphan
    code = (
        "import os, sys; from pathlib import Path; from toolkit.runs.files import take_lock; "
        "from toolkit.runs.state import write_holder; write_holder(take_lock(Path(sys.argv[1])), 2, keeper=True); "
        "print(flush=True); sys.stdin.read()"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with keeper:
        assert keeper.stdout.readline()
        (found,) = leftovers(tmp_path)
        assert (found.pid, found.reason) == (process.pid, "it belongs to an earlier attempt")
        assert end(found, patience=0.1)
        keeper.stdin.close()
    assert process.wait(10) == -9
