"""Real runs in real processes: how they start, obey, fail, are reported, and leave nothing behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults import work
from tests.harness.leftovers import processes_of_runs
from toolkit.launch import InProcess, Local, launch
from toolkit.launch.devices import DevicesBusy, allocate, gpus, release
from toolkit.runs import Run, RunFailed, RunInactive, State, current

LIMIT = 60.0
ONE = Local(devices="cpu", threads=1)
TWO = Local(processes=2, devices="cpu", threads=1)


def until(true: Callable[[], object], limit: float = LIMIT) -> None:
    """Wait until `true()`; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def running(run: Run) -> State:
    """The state, once the work has begun."""
    until(lambda: run.state.name not in ("queued", "starting"))
    assert run.state.name == "running", run.state
    return run.state


def failure(run: Run) -> tuple[dict, str]:
    """Report and message of a run that fails."""
    with pytest.raises(RunFailed) as raised:
        run.wait(LIMIT)
    return raised.value.report, str(raised.value)


def processes(run: Run) -> list[int]:
    """Living processes that belong to the run."""
    return [pid for pid, name in processes_of_runs().items() if name == run.id]


def test_function_in_two_processes(tmp_path: Path) -> None:
    run = launch(work.add_up, 3, on=TWO, root=tmp_path)
    assert not run.state.final  # It returned before the work was done.
    assert run.folder.stat().st_mode & 0o777 == 0o700
    result = run.wait(LIMIT)
    assert result.state == "finished"
    assert result.metrics.pop("nan") != result.metrics
    assert result.metrics == {"sum": [3.0, 3.0], "threads": 1, "MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "2",
                              "OMP_NUM_THREADS": "1", "SCALEBOOK_RUN": run.id}  # fmt: skip
    assert list(run.metrics()["loss"][0]) == [1, 2, 3]
    assert "rank 1 of 2 is done" in run.logs(1)
    assert run.logs("supervisor") == ""
    assert processes(run) == []
    command = (
        "import sys; from toolkit.runs import Run; print(Run.attach(sys.argv[1], sys.argv[2])); assert 'torch' not in sys.modules"
    )
    seen = subprocess.run([sys.executable, "-c", command, run.id, str(tmp_path)], capture_output=True, text=True, check=True)
    assert seen.stdout == f"Run {run.id}: finished · step 3\n"
    with pytest.raises(RunInactive, match="is finished"):
        run.stop()
    with pytest.raises(FileExistsError, match="resume=True"):
        launch(work.add_up, 3, name=run.id, root=tmp_path)


def test_notebook_function_and_await(tmp_path: Path) -> None:
    factor = [2.0]

    def local(x: float) -> dict[str, float]:
        return {"product": factor[0] * x}

    async def cell() -> object:
        return (await launch(local, 4, on=ONE, root=tmp_path)).metrics

    assert asyncio.run(cell()) == {"product": 8.0}


def test_first_failing_rank_is_reported(tmp_path: Path) -> None:
    run = launch(work.fail_on_rank_1, on=TWO, root=tmp_path)
    report, message = failure(run)
    assert "rank 1 ValueError: the data is <b>wrong</b>" in message
    assert report["rank"] == 1
    assert report["remedy"] in message
    assert "fail_on_rank_1" in report["traceback"]
    assert "<b>" not in run._repr_html_()
    assert set(report["tails"]) == {"0", "1"}
    assert processes(run) == []


def test_killed_rank_is_reported_while_the_others_wait(tmp_path: Path) -> None:
    run = launch(work.wait_for_ever, on=TWO, root=tmp_path)
    victim = running(run).processes[2]
    os.kill(victim, signal.SIGKILL)
    report, _ = failure(run)
    assert (report["rank"], report["signal"]) == (1, "SIGKILL")
    assert (run.folder / "ended").exists()
    assert "memory" in report["likely"]


def test_supervisor_killed_then_restarted(tmp_path: Path) -> None:
    run = launch(work.second_time, on=ONE, root=tmp_path)
    supervisor, worker = running(run).processes
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: run.state.name == "lost", 15)
    until(lambda: not psutil.pid_exists(worker), 15)
    with pytest.raises(RunFailed, match="lost at attempt 1"):
        run.wait()
    with pytest.raises(RunInactive, match="is lost"):
        run.kill()
    assert run.restart().state.name == "starting"
    with pytest.raises(RunInactive, match="stop it first"):
        run.restart()
    assert run.wait(LIMIT).metrics == "back"
    assert run.state.attempt == 2


def test_death_of_the_kernel(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.faults.work import start_two_and_die as go; go(sys.argv[1])",
        str(tmp_path),
    ]
    kernel = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    until((tmp_path / "ids.json").exists)
    durable, bound = (Run.attach(name, tmp_path) for name in json.loads((tmp_path / "ids.json").read_text()))
    running(durable)
    running(bound)
    kernel.kill()
    kernel.wait()
    assert bound.wait(LIMIT).state == "stopped"
    assert "kernel" in bound.state.message
    assert (bound.folder / "ended").exists()
    assert durable.alive
    durable.stop()
    assert durable.wait(LIMIT).state == "stopped"


def test_interrupt_stops_the_waiting_only(tmp_path: Path) -> None:
    run = launch(work.wait_for_ever, on=ONE, root=tmp_path)
    running(run)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    assert run.alive
    for refused in (run.pause, run.checkpoint, lambda: run.set("lr", 1.0), lambda: run.call(int)):
        with pytest.raises(RunInactive, match="plain function"):
            refused()
    os.kill(run.state.processes[0], signal.SIGTERM)
    assert run.wait(LIMIT).state == "stopped"
    assert (run.folder / "ended").exists()


def test_second_stop_is_hard(tmp_path: Path) -> None:
    run = launch(work.never_end, on=ONE, root=tmp_path)
    running(run)
    run.stop()
    until(lambda: "no" in run.logs())
    assert run.state.name == "stopping"
    run.stop()
    assert run.wait(LIMIT).state == "stopped"
    assert "second stop" in run.state.message


def test_stop_of_the_system_is_no_second_stop(tmp_path: Path) -> None:
    run = launch(work.Toy(keeping=1.0), on=ONE, root=tmp_path)
    running(run)
    run.pause()
    until(lambda: run.state.name == "pausing")
    until(lambda: run.state.name == "paused")
    run.stop()
    until(lambda: run.state.name == "stopping")
    os.kill(run.state.processes[0], signal.SIGTERM)
    result = run.wait(LIMIT)
    assert (result.state, run.state.name) == ("stopped", "stopped")
    assert "the system asked" in run.state.message
    assert result.metrics["steps"] > 0
    assert [event["data"]["command"] for event in run.events(kinds=("command",))] == ["pause", "stop"]


def test_recipe_obeys_commands(tmp_path: Path) -> None:
    run = launch(work.Toy(), on=TWO, root=tmp_path)
    running(run)
    assert run.state.total_steps == 1_000_000
    run.pause()
    until(lambda: run.state.name == "paused")
    step = len(run.events(kinds=("metrics",)))
    assert run.call(lambda at: {"at": at, "half": at / 2}, timeout=LIMIT) == [{"at": step, "half": step / 2}] * 2
    with pytest.raises(RuntimeError, match="rank 0: ZeroDivisionError"):
        run.call(lambda: 1 / 0)
    number = run.set("lr", 0.5)
    run.checkpoint()
    run.resume()
    until(lambda: run.acknowledgement(number))
    assert run.acknowledgement(number)["applied"] == step
    until(lambda: run.state.name == "running" and run.checkpoints())
    assert run.checkpoints()[0][0] == step
    run.stop()
    result = run.wait(LIMIT)
    assert result.state == "stopped"
    assert result.metrics["lr"] == 0.5
    assert result.metrics["steps"] > step
    assert result.checkpoint == run.folder / "checkpoints" / f"step-{step}"
    assert launch(work.Toy(steps=2), name=run.id, resume=True, on=TWO, root=tmp_path).wait(LIMIT).metrics["steps"] == 2
    assert list(run.metrics("loss")["loss"][0]) == [1, 2]


def test_class_of_a_notebook_travels_with_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(work.NOTEBOOK)
    command = [sys.executable, str(tmp_path / "notebook.py"), str(tmp_path)]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    name, lr = subprocess.run(command, capture_output=True, text=True, check=True, env=path).stdout.split()
    assert lr == "0.25"
    run = Run.attach(name, tmp_path)
    assert "lr / self.by" in (run.folder / "code" / "Shrink.py").read_text()
    assert run.recipe["grow"]["type"] == "notebook:Shrink"
    (run.folder / "code" / f"{run.launched['code']['Shrink']['pickle']}.pickle").write_bytes(b"changed")
    assert "it was changed" in failure(run.restart())[1]


def test_queue_for_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-a'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    held = allocate(1, gpus(), "/runs/amber")
    with pytest.raises(DevicesBusy, match="GPU 0: held by run amber"):
        launch(work.second_time, root=tmp_path)
    run = launch(work.second_time, on=Local(wait=True), root=tmp_path)
    until(lambda: run.state.name == "queued" and "amber" in run.state.message)
    assert len(run.state.processes) == 1
    run.stop()
    assert run.wait(LIMIT).state == "stopped"
    run = launch(work.second_time, on=Local(wait=True), root=tmp_path)
    until(lambda: run.state.name == "queued" and "amber" in run.state.message)
    release(held)
    until(lambda: len(run.state.processes) == 2)
    assert run.launched["devices"] == list(run.state.devices) == ["GPU-a"]  # What the worker reads, and what is shown.
    run.kill()
    assert run.wait(LIMIT).state == "stopped"
    with pytest.raises(ValueError, match="no GPU 3"):
        launch(work.second_time, on=Local(devices=(3,)), root=tmp_path)
    run = launch(work.second_time, on=Local(processes=2, threads=1), root=tmp_path)
    assert "on the CPU: 2 processes, but this machine shows 1 GPU" in running(run).message
    run.kill()
    run = launch(work.second_time, root=tmp_path)
    assert run.launched["devices"] == ["GPU-a"]
    with pytest.raises(DevicesBusy, match=run.id):
        launch(work.second_time, root=tmp_path)
    second = [sys.executable, "-P", "-m", "toolkit.launch.supervisor", str(run.folder)]
    refused = subprocess.run(second, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "another supervisor keeps this run" in refused.stderr
    run.kill()
    assert run.wait(LIMIT).state == "stopped"
    release(allocate(1, gpus(), "/runs/birch"))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    run = launch(work.leave_a_process, on=ONE, root=tmp_path)
    assert not psutil.pid_exists(run.wait(LIMIT).metrics)
    assert "1 processes" in run.logs("supervisor")


def test_failures_before_and_after_the_work_are_reported(tmp_path: Path) -> None:
    run = launch(work.return_nonsense, on=ONE, root=tmp_path)
    assert "object is not JSON" in failure(run)[1]
    launched = json.loads((run.folder / "launch.json").read_text())
    for changes, told in (({"python": "/no/such/python"}, "No such file"), ({"function": "no_such_module:x"}, "no_such_module")):
        (run.folder / "launch.json").write_text(json.dumps(launched | changes))
        assert told in failure(run.restart())[1]
    assert run.state.attempt == 3


def test_in_process(tmp_path: Path) -> None:
    import torch

    before = dict(os.environ), torch.get_num_threads()
    run = launch(work.add_up, 2, on=InProcess(threads=1), root=tmp_path)
    assert run.wait().metrics["sum"] == [1.0, 1.0]
    assert (dict(os.environ), torch.get_num_threads()) == before
    assert current() is None
    assert not torch.distributed.is_initialized()
    with pytest.raises(ZeroDivisionError):
        launch(lambda: 1 / 0, name="fails", on=InProcess(), root=tmp_path)
    assert "ZeroDivisionError" in failure(Run.attach("fails", tmp_path))[1]
    threading.Timer(0.5, lambda: Run.attach("long", tmp_path).stop()).start()
    assert launch(work.wait_for_ever, name="long", on=InProcess(), root=tmp_path).wait().state == "stopped"
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    kept = launch(work.Toy(), on=InProcess(), root=tmp_path)
    assert kept.state.name == "stopped"
    assert kept.wait().metrics["steps"] > 0
    with pytest.raises(ValueError, match="resume=True"):
        kept.restart()
