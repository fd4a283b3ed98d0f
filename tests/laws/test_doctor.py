"""doctor: every finding is looked at for real, a problem is one, and its remedy is told."""

import importlib.metadata
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.laws.command_line import command, command_json
from toolkit.cli.doctor import FOUND, KEYS
from toolkit.doctor import Finding, examine, machine, places, software, workers
from toolkit.doctor.machine import ports
from toolkit.doctor.places import writable
from toolkit.doctor.software import libraries
from toolkit.launch import Local
from toolkit.launch.memory import Memory, memory
from toolkit.runs.amounts import size


def test_this_machine_passes_and_two_processes_agree(tmp_path: Path, capsys: Any) -> None:
    found = command_json("doctor", "--json", "--root", str(tmp_path), capsys=capsys)
    assert tuple(found) == KEYS
    assert found["ok"] is True
    assert {tuple(finding) for finding in found["findings"]} == {FOUND}
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert {"python", "torch", "lightning", "cores", "memory", "/dev/shm", "open files", "loopback", "runs", "cache", "model",
            "git", "sbatch", "kubectl", "two processes"} <= set(by_name)  # fmt: skip
    assert by_name["torch"]["found"].startswith(importlib.metadata.version("torch"))
    assert "2 on the CPU agreed in" in by_name["two processes"]["found"]
    assert all(finding["remedy"] for finding in found["findings"] if finding["state"] != "ok")


def test_the_report_in_words(tmp_path: Path, capsys: Any) -> None:
    status, out, _ = command("doctor", "--no-self-test", "--root", str(tmp_path), capsys=capsys)
    assert status == 0
    assert [line for line in out.splitlines() if line and not line.startswith(" ")] == [
        "software", "machine", "places", "tools", "Nothing keeps this machine from training."
    ]  # fmt: skip
    assert str(tmp_path / "runs") in out
    assert list(tmp_path.iterdir()) == []


def test_a_problem_is_status_1_with_its_remedy(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    status, out, _ = command("doctor", "--no-self-test", "--root", str(tmp_path / "file"), capsys=capsys)
    assert status == 1
    assert "PROBLEM" in out
    assert "Not a directory" in out
    assert "-> choose another place: --root DIR" in out
    assert "One problem keeps this machine from training." in out


def test_libraries_beside_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=99", "no-such-library>=1", "numpy", 'pytest>=1; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    found = {finding.name: finding for finding in libraries()}
    assert found["torch"].state == "problem"
    assert found["torch"].remedy == "pip install 'torch>=99'"
    assert found["torch"].found.endswith("torch>=99 is needed")
    assert (found["no-such-library"].state, found["no-such-library"].found) == ("problem", "is missing")
    assert found["no-such-library"].remedy == "pip install 'no-such-library>=1'"
    assert "pytest" not in found


def test_a_library_in_another_version_than_the_tested_one_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "pinned", lambda: {"numpy": "0.1", "rich": "0.2"})
    found = {finding.name: finding for finding in libraries()}
    assert found["numpy"].state == "note"
    assert found["numpy"].remedy == "pip install 'numpy==0.1'"
    assert found["libraries"].state == "note"
    assert "1 in another version than the tested one" in found["libraries"].found


def test_doctor_and_supervisor_agree_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory()
    assert found is not None and machine.memory().found.endswith(f" free of {size(found.total)}")
    for now, state in ((Memory(1 << 30, 4 << 30), "note"), (Memory(3 << 30, 4 << 30), "ok"), (None, "ok")):
        monkeypatch.setattr(machine, "memory_now", lambda now=now: now)
        assert machine.memory().state == state
    assert "does not say" in machine.memory().found


def test_loopback_that_refuses_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ports().state == "ok"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert ports().state == "problem"
    assert "Cannot assign requested address" in ports().found


def test_a_disk_without_locks_or_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writable("runs", tmp_path / "not" / "yet", "").state == "ok"
    monkeypatch.setattr(places, "room", lambda place: (1 << 20, 1 << 30))
    assert writable("runs", tmp_path, "").state == "note"
    monkeypatch.setattr(places, "is_locked", lambda path: False)
    assert writable("runs", tmp_path, "").state == "problem"
    assert list(tmp_path.iterdir()) == []


RETURNED = {"sum": 3.0, "same": True, "torch": "2", "cuda": None, "gpus": 0, "device": "cpu"}
JUDGED = {
    "right": (RETURNED, "", "ok", "2 on the CPU agreed"),
    "wrong sum": ({**RETURNED, "sum": 2.0}, "", "problem", "came out as 2.0, not 3.0"),
    "torn": ({**RETURNED, "same": False}, "", "problem", "came out as"),
    "failed": (None, "run x failed: rank 1\nSIGKILL", "problem", "rank 1"),
}


@pytest.mark.parametrize(("returned", "trouble", "state", "text"), JUDGED.values(), ids=JUDGED)
def test_the_sum_is_judged(returned: Any, trouble: str, state: str, text: str) -> None:
    found = workers.judged("two processes", 2, returned, 1.0, trouble)
    assert found.state == state
    assert text in found.found


def test_a_self_test_that_hangs_is_ended_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LONGEST", 0.2)
    monkeypatch.setattr(workers.tempfile, "mkdtemp", lambda prefix: str(os.makedirs(tmp_path / "test") or tmp_path / "test"))
    returned, _, trouble = workers.run_of(Local(processes=2, devices="cpu", threads=1))
    assert returned is None
    assert "was not done after" in trouble
    assert not (tmp_path / "test").exists()


def test_torch_that_sees_no_gpu_where_there_is_one_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.launch.devices as devices

    monkeypatch.setattr(workers, "run_of", lambda on: (RETURNED, 1.0, ""))
    monkeypatch.setattr(devices, "gpus", lambda: (devices.Device(0, "GPU-0"),))
    *_, last = workers.about_workers()
    assert last.state == "problem"
    assert "torch 2 sees none of the 1 GPUs" in last.found
    assert "built for CUDA" in last.remedy


def test_findings_are_plain_data() -> None:
    found = list(examine(self_test=False))
    assert all(finding.found for finding in found)
    json.dumps([finding.found for finding in found])
    with pytest.raises(ValueError, match="expected one of ok, note, problem"):
        Finding(group="a", name="b", state="bad", found="c")
