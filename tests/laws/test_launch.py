"""Laws of launching: what travels, where it runs, who is blamed; no run is started here."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import toolkit
from toolkit.launch import InProcess, Local, launch
from toolkit.launch.code import named
from toolkit.launch.devices import Device, DevicesBusy, Held, allocate, release, visible
from toolkit.launch.failure import Ended, report
from toolkit.launch.local import processes_for
from toolkit.runs import Run
from toolkit.runs.control import load_shipped, perform_call
from toolkit.runs.files import UntrustedFile, plain, read_json, replace_json, restore
from toolkit.runs.roots import make_folder
from toolkit.runs.shipping import NotShippable, ship
from toolkit.values import dump, parse

# ---- work and its code ---------------------------------------------------------------------------------------------


def test_plain_data() -> None:
    data = {"a": [1, (2.5, None)], "b": float("inf"), "c": float("nan")}
    assert plain(data) == {"a": [1, [2.5, None]], "b": "Infinity", "c": "NaN"}
    assert restore(plain(data))["b"] == float("inf")
    for wrong in ({1: 2}, {"x": object()}, b"x"):
        with pytest.raises(TypeError, match="JSON"):
            plain(wrong)


def test_importable_functions_are_named() -> None:
    assert named(json.dumps) == "json:dumps"
    assert named(lambda: 1) is None
    assert named(print) is None


def test_what_cannot_travel_is_refused_by_name(tmp_path: Path) -> None:
    import torch

    table, weights, big = (tmp_path / "table").open("w"), torch.zeros(2, device="meta"), os.urandom(11_000_000)

    def uses_file() -> None:
        table.write("x")

    def uses_tensor() -> None:
        print({"inside": [weights]})

    def uses_much() -> int:
        return len(big)

    def helper() -> None:
        uses_file()

    lock = threading.Lock()
    refused = {
        uses_file: "table: an open file",
        uses_tensor: "weights: a tensor on meta",
        uses_much: "big alone has 11.0 MB",
        helper: "uses_file -> table: an open file",
        lambda: lock: "lock: cannot pickle",
    }
    for function, told in refused.items():
        with pytest.raises(NotShippable, match=told):
            ship(tmp_path, function, what="function f")
    with pytest.raises(NotShippable, match="argument 2"):
        ship(tmp_path, print, what="function f", arguments=(1, io.StringIO()))
    assert list((tmp_path / "code").glob("*")) == [] if (tmp_path / "code").exists() else True
    table.close()


def test_shipped_dataclass_keeps_its_fields(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Mine:
        size: int
        rate: float = 2.0

    code = f"from toolkit.runs.control import load_shipped; import dataclasses; Mine = load_shipped({str(tmp_path)!r}, "
    code += f"{ship(tmp_path, Mine, what='class Mine')!r}); assert Mine(size=1).rate == 2.0; size, rate = "
    code += "dataclasses.fields(Mine); assert size.default is size.default_factory is rate.default_factory is dataclasses.MISSING"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(toolkit.__file__).parents[1])


def test_shipped_code_is_checked_before_it_is_loaded(tmp_path: Path) -> None:
    digest = ship(tmp_path, lambda x: x + 1, what="function")
    assert load_shipped(tmp_path, digest)(1) == 2
    path = tmp_path / "code" / f"{digest}.pickle"
    path.chmod(0o666)
    with pytest.raises(UntrustedFile, match="others may write"):
        load_shipped(tmp_path, digest)
    path.chmod(0o600)
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(ValueError, match="it was changed"):
        load_shipped(tmp_path, digest)
    with pytest.raises(ValueError, match="expected a sha256"):
        load_shipped(tmp_path, "../../x")
    answer = perform_call(tmp_path, {"n": 1, "code": digest}, 0)
    assert "changed" in answer["error"]
    assert read_json(tmp_path / "calls" / "1-0.json") == answer


def test_work_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    handle = io.StringIO()
    for work, arguments in ((lambda: handle, ()), (3, ()), (print, (handle,))):
        with pytest.raises((NotShippable, TypeError)):
            launch(work, *arguments, root=tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's tool that shows one GPU."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-a'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("broken", ["remember", "begin_attempt", "subprocess.Popen", "Keeper"])
def test_a_launch_that_fails_on_the_way_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_gpu: None, broken: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"subprocess.Popen": "toolkit.launch.local.subprocess.Popen", "Keeper": "toolkit.launch.in_process.Keeper"}
    found = Local().settle(tmp_path, 1)[1]
    monkeypatch.setattr(Local, "settle", lambda *_: ({"processes": 1, "devices": []}, found))
    monkeypatch.setattr(InProcess, "settle", Local.settle)
    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(place.get(broken, f"toolkit.launch.{broken}"), full)
    with pytest.raises(OSError, match="No space left"):
        launch(json.dumps, 1, on=InProcess() if broken == "Keeper" else Local(), root=tmp_path)
    monkeypatch.undo()
    assert len(os.listdir("/dev/fd")) == before - len(found.locks)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_of_others_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = make_folder(tmp_path, "theirs")
    replace_json(folder / "launch.json", {"on": dump(Local()), "processes": 1, "restart": "toolkit.launch:restart"})
    starts = (Run(folder).restart, lambda: launch(json.dumps, 1, name="theirs", resume=True, root=tmp_path))
    monkeypatch.setattr(Local, "start", lambda *_: pytest.fail("it was started"))

    def refused(told: str) -> None:
        for start in starts:
            with pytest.raises(PermissionError, match=told):
                start()

    folder.chmod(0o770)
    refused("runs/theirs: others may write it")
    folder.chmod(0o700)
    (folder / "launch.json").chmod(0o666)
    with pytest.raises(PermissionError, match=r"launch\.json: others may write it"):
        Run(folder).restart()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    refused(f"runs/theirs: owned by user {owner}")
    assert not (folder / "lock").exists()


# ---- where it runs -------------------------------------------------------------------------------------------------


def test_places_are_values() -> None:
    assert parse(repr(Local(processes=2, devices=(0, 1))), Local) == Local(processes=2, devices=(0, 1))
    assert hash(InProcess()) == hash(InProcess())
    for wrong in ({"processes": 0}, {"threads": -1}, {"processes": "2"}, {"devices": "gpu"}):
        with pytest.raises((TypeError, ValueError), match=f"Local.{next(iter(wrong))}"):
            Local(**wrong)


def test_plan_settles_the_processes() -> None:
    class Plan:
        world_size = 4

    class Work:
        plan = Plan()

    assert processes_for(Work(), None) == 4
    assert processes_for(print, None) == 1
    with pytest.raises(ValueError, match="needs 4 processes"):
        processes_for(Work(), 2)


def test_too_few_gpus_in_all_means_the_cpu(tmp_path: Path, one_gpu: None) -> None:
    for on in (Local(processes=2), Local(processes=2, wait=True)):
        settled, held = on.settle(tmp_path, 2)
        assert (settled["devices"], settled["queue"], held) == ([], 0, Held())
        assert settled["message"] == "on the CPU: 2 processes, but this machine shows 1 GPU"
    with pytest.raises(ValueError, match="no GPU 1"):
        Local(devices=(0, 1)).settle(tmp_path, 2)
    with pytest.raises(ValueError, match="1 GPUs for 2 processes"):
        Local(devices=(0,)).settle(tmp_path, 2)
    settled, held = Local().settle(tmp_path, 1)
    assert (settled["devices"], settled["message"]) == (["GPU-a"], "")
    with pytest.raises(DevicesBusy, match="0 free"):
        Local().settle(tmp_path, 1)
    assert Local(wait=True).settle(tmp_path, 1)[0]["queue"] == 1
    release(held)


def test_visible_devices() -> None:
    listing = "0, GPU-aa\n1, GPU-bb\n2, GPU-cc\n"
    assert [device.index for device in visible(listing, None)] == [0, 1, 2]
    assert [device.index for device in visible(listing, "2,GPU-a")] == [2, 0]
    assert [device.index for device in visible(listing, "1,7,0")] == [1]
    assert visible("No devices were found", None) == ()


def test_devices_are_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    found = tuple(Device(index, f"GPU-{index}") for index in range(3))
    first = allocate(2, found, "/runs/amber", folder=tmp_path)
    assert [device.index for device in first.devices] == [0, 1]
    with pytest.raises(DevicesBusy, match="2 GPUs asked for, 1 free; GPU 0: held by run amber; GPU 1: held by run amber"):
        allocate(2, found, "/runs/birch", folder=tmp_path)
    second = allocate(1, found, "/runs/birch", folder=tmp_path)
    assert [device.index for device in second.devices] == [2]
    release(first)
    assert len(allocate(2, found, "/runs/cedar", folder=tmp_path).devices) == 2
    with pytest.raises(DevicesBusy, match="shows 3"):
        allocate(4, found, "/runs/cedar", folder=tmp_path)


# ---- reports -------------------------------------------------------------------------------------------------------


def error(folder: Path, rank: int, kind: str, message: str, time: float, *bases: str) -> Ended:
    """A rank that raised."""
    replace_json(folder / f"error-{rank}.json", {"type": kind, "kinds": [kind, *bases, "Exception"], "message": message,
                                                 "traceback": "...", "time": time})  # fmt: skip
    return Ended(rank, 1, time)


def test_the_first_cause_is_blamed(tmp_path: Path) -> None:
    broken = error(tmp_path, 0, "RuntimeError", "[pair.cc] Connection closed by peer", 1.0)
    backend = error(tmp_path, 1, "DistBackendError", "NCCL error", 1.1, "RuntimeError")
    own = error(tmp_path, 2, "ValueError", "no", 3.0)
    earlier = error(tmp_path, 3, "OutOfMemoryError", "CUDA out of memory", 2.0, "RuntimeError")
    killed, left = Ended(4, -9, 5.0), Ended(5, 7, 1.5)

    def blamed(*ended: Ended) -> int:
        return report(tmp_path, list(ended), 6, memory_kills=0)["rank"]

    assert blamed(broken, backend, own, earlier, killed) == 4
    assert blamed(broken, backend, own, earlier) == 3
    assert blamed(broken, own, left) == 5
    assert blamed(broken, backend) == 0
    assert "smaller context" in report(tmp_path, [earlier], 6, memory_kills=0)["remedy"]
    assert "out-of-memory killer struck" in report(tmp_path, [killed], 6, memory_kills=1)["likely"]
    assert report(tmp_path, [Ended(0, -64, 1.0)], 1, memory_kills=0)["signal"] in ("SIGRTMAX", "signal 64")


def test_toolkit_is_light() -> None:
    heavy = "('torch', 'numpy', 'asyncio', 'lightning')"
    command = f"import sys, toolkit.launch, toolkit.runs; print([name for name in {heavy} if name in sys.modules])"
    path = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-P", "-c", command], capture_output=True, text=True, check=True, env=path)
    assert found.stdout == "[]\n"
