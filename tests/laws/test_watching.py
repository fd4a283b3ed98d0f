"""What a supervisor makes of stacks, of memory, of clocks and of a disk that refuses; no run is started here."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.launch import watch
from toolkit.launch.failure import Ended, hang, report
from toolkit.launch.keeper import Keeper
from toolkit.launch.memory import Memory, memory, memory_kills
from toolkit.runs import Run, pulse, reserve
from toolkit.runs.files import replace_json, take_lock
from toolkit.runs.roots import make_folder
from toolkit.runs.state import write_holder

TORCH = "/env/lib/python3.12/site-packages/torch"
HEAD = "Thread 0x00007f (most recent call first):\n"
MAIN = "Current thread 0x00007f [python] (most recent call first):\n"
OUTER = '  File "/x/toolkit/launch/code.py", line 9 in <lambda>\n  File "/x/toolkit/launch/worker.py", line 5 in main\n'


def frames(*found: tuple[str, int, str]) -> str:
    """Lines of a stack, the innermost frame first."""
    return "".join(f'  File "{file}", line {line} in {name}\n' for file, line, name in found)


SUM = frames(
    (f"{TORCH}/distributed/distributed_c10d.py", 3252, "all_reduce"),
    (f"{TORCH}/distributed/c10d_logger.py", 83, "wrapper"),
    ("/home/me/train.py", 12, "step"),
)
WAITS = HEAD + frames(("/x/threading.py", 1, "wait")) + "\n" + MAIN + SUM + OUTER
COUNTS = MAIN + frames(("/home/me/train.py", 30, "count"), ("/home/me/train.py", 40, "work")) + OUTER
DONE = MAIN + frames(("/x/toolkit/launch/meeting.py", 70, "leave"), ("/x/toolkit/launch/worker.py", 60, "_work"))
BACKWARD = HEAD + SUM + "\n" + MAIN + frames((f"{TORCH}/autograd/graph.py", 7, "_engine_run_backward"), ("/home/me/t.py", 3, "f"))


def test_a_stack_says_where_a_rank_is() -> None:
    assert [watch.in_collective(dump) for dump in (WAITS, COUNTS, DONE, BACKWARD, "")] == [True, False, False, True, False]
    assert watch.place(WAITS) == "waits in all_reduce (train.py:12 in step)"
    assert watch.place(COUNTS) == "is in count (train.py:30 in count)"
    assert watch.place(DONE) == "has finished its work"
    assert watch.place("") == "gives no answer"
    assert "worker.py" not in watch.main_stack(COUNTS) and watch.main_stack(COUNTS).endswith("in work")


@pytest.mark.parametrize(
    ("dumps", "stopped", "rank", "likely"),
    [
        ({0: WAITS, 1: WAITS, 2: COUNTS}, {}, 2, "does not take part"),
        ({0: WAITS, 1: DONE, 2: WAITS}, {}, 1, "does not take part"),
        ({0: WAITS, 2: COUNTS}, {1: "SIGTSTP"}, 1, "stopped from outside"),
        ({0: WAITS, 1: "", 2: COUNTS}, {}, 1, "does not take part"),
        ({0: WAITS, 1: WAITS, 2: WAITS}, {}, 0, "every rank waits"),
    ],
)
def test_a_hang_is_blamed_on_the_rank_that_is_missing(
    tmp_path: Path, dumps: dict[int, str], stopped: dict[int, str], rank: int, likely: str
) -> None:
    found = hang(tmp_path, dumps, stopped, 3, 600.0)
    assert found["rank"] == rank and likely in found["likely"]
    told = "hang: no rank has gone on for 600 s: rank 0 waits in all_reduce (train.py:12 in step); rank 1"
    assert found["error"].startswith(told)
    assert set(found["tails"]) == {"0", "1", "2"} and json.loads(json.dumps(found)) == found


def test_a_rank_that_lost_its_connection_tells_where_the_others_were(tmp_path: Path) -> None:
    error = {"type": "RuntimeError", "kinds": ["RuntimeError"], "message": "gloo: timed out", "traceback": "", "time": 1.0}
    replace_json(tmp_path / "error-0.json", error)
    found = report(tmp_path, [Ended(0, 1, 1.0)], 2, memory_kills=0, stacks={1: COUNTS})
    assert "rank 1 is in count (train.py:30 in count)" in found["likely"]
    assert found["stacks"]["1"].startswith('  File "/home/me/train.py"')


def test_a_process_that_moves_is_told_from_one_that_does_not() -> None:
    """The silence of a rank grows only while it does not run, and by no more than a look may add."""
    code = "import sys\nfor line in sys.stdin: print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None and stdout is not None

        def answers() -> None:
            stdin.write("x\n")
            stdin.flush()
            assert stdout.readline()

        answers()
        seen = watch.Watch(0.02)
        deadline = time.monotonic() + 20
        while not seen.look({3: child.pid}) == [3]:  # It waits for its input.
            assert time.monotonic() < deadline
            time.sleep(0.02)
        seen.looked -= 3600  # This process was stopped for an hour.
        seen.look({3: child.pid})
        assert seen.still[3] < 60
        answers()
        assert seen.look({3: child.pid}) == [] and seen.still[3] == 0.0
        assert watch.Watch(None).look({3: child.pid}) == []
        assert watch.Watch(0.0).look({3: 1 << 30}) == [3]  # One that is gone is for others to notice.
        stdin.close()


def test_stacks_come_on_request_and_not_from_one_that_is_not_ready(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from toolkit.launch import watch; "
        "signal.signal(watch.ASK, signal.SIG_IGN); print(flush=True); sys.stdin.readline(); "
        "watch.answer(Path(sys.argv[1]), 0); print(flush=True)\ndef here(): sys.stdin.readline()\nhere()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        assert watch.stacks(tmp_path, {0: child.pid}, patience=0.3) == {0: ""}
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        deadline = time.monotonic() + 20
        while (found := watch.stacks(tmp_path, {0: child.pid})[0]).count("in here") != 1:
            assert time.monotonic() < deadline, found
        assert (tmp_path / "stacks-0.txt").stat().st_mode & 0o777 == 0o600
        child.send_signal(signal.SIGKILL)


# ---- memory --------------------------------------------------------------------------------------------------------


def machine(root: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine with 16 GiB, of which 8 are free."""
    for name, text in {
        "proc/self/cgroup": cgroup, "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        "proc/vmstat": "pgfault 9\noom_kill 7\n", **{name.replace("__", "/"): text for name, text in files.items()},
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "proc", root / "groups"


def test_memory_is_that_of_the_machine_or_of_the_container(tmp_path: Path) -> None:
    plain = machine(tmp_path / "plain", "0::/job\n")
    assert memory(*plain) == Memory(8 << 30, 16 << 30) and memory_kills(*plain) == 7
    new = machine(
        tmp_path / "new", "0::/job\n", groups__job__memory_max="", **{
            "groups__job__memory.max": str(4 << 30), "groups__job__memory.current": str(3 << 30),
            "groups__job__memory.stat": f"anon 1\ninactive_file {1 << 29}\n", "groups__job__memory.events": "oom 3\noom_kill 2\n",
        },
    )  # fmt: skip
    assert memory(*new) == Memory((1 << 30) + (1 << 29), 4 << 30) and memory_kills(*new) == 2
    old = machine(
        tmp_path / "old", "4:cpu,memory:/far/away\n1:name=systemd:/\n", **{
            "groups__memory__memory.limit_in_bytes": str(2 << 30), "groups__memory__memory.usage_in_bytes": str((2 << 30) - 4096),
            "groups__memory__memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        },
    )  # fmt: skip
    found = memory(*old)
    assert found == Memory(4096, 2 << 30) and found.short and memory_kills(*old) == 5
    endless = machine(tmp_path / "endless", "0::/\n", **{"groups__memory.max": "max\n", "groups__memory.current": "5"})
    assert memory(*endless) == Memory(8 << 30, 16 << 30)
    assert memory(tmp_path / "none", tmp_path / "none") is None


def test_a_kill_is_put_down_to_memory_only_where_it_was_short(tmp_path: Path) -> None:
    def likely(kills: int, found: Memory | None) -> str:
        return report(tmp_path, [Ended(0, -9, 1.0, found)], 1, memory_kills=kills)["likely"]

    assert likely(1, None).startswith("out of memory: Linux's out-of-memory killer struck")
    assert likely(0, Memory(1 << 20, 16 << 30)) == "out of memory: 0.0 of 16.0 GiB were free just before"
    assert likely(0, Memory(8 << 30, 16 << 30)).endswith("memory was not short, 8.0 of 16.0 GiB were free just before")
    assert likely(0, None).startswith("out of memory, or killed from outside")


# ---- clocks --------------------------------------------------------------------------------------------------------


def kept_run(root: Path) -> tuple[Run, Keeper]:
    """A run whose supervisor is this process."""
    folder, _ = make_folder(root, "amber")
    replace_json(folder / "launch.json", {"title": "toy", "processes": 1, "entry": None})
    lock = take_lock(folder / "lock")
    assert lock is not None
    return Run(folder), Keeper(folder, lock, 1, 1)


def test_a_supervisor_elsewhere_is_believed_by_its_pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, keeper = kept_run(tmp_path)
    keeper.show("running")
    (run.folder / "lock").write_text(json.dumps({"attempt": 1, "boot": "another machine", "host": "far", "time": 0}))
    now, passed = time.time(), [0.0]
    clock: Callable[[], float] = time.monotonic
    monkeypatch.setattr(pulse.time, "monotonic", lambda: clock() + passed[0])

    def beaten(at: float) -> str:
        os.utime(run.folder / "heartbeat", (at, at))
        return run.state.name

    assert beaten(now - 3600) == "lost"  # Its clock, or it: who looks for the first time cannot tell.
    assert beaten(now - 3599) == "running"  # It moves: its clock is an hour behind ours.
    passed[0] += 14
    assert run.state.name == "running"
    passed[0] += 2
    assert run.state.name == "lost"
    assert beaten(now + 7200) == "running"  # Set right, and two hours ahead.
    passed[0] += 16
    assert run.state.name == "lost"


def test_a_silent_launcher_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = make_folder(tmp_path, "amber")
    replace_json(folder / "launch.json", {"processes": 1, "entry": None})
    lock = take_lock(folder / "lock")
    assert lock is not None
    write_holder(lock, 1)
    assert (Run(folder).state.name, Run(folder).state.silent) == ("starting", None)
    monkeypatch.setattr(pulse, "STALE", 0.0)
    assert Run(folder).state.name == "starting" and "has given no sign" in Run(folder).state.message
    os.close(lock)


# ---- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", [errno.EROFS, errno.EIO, errno.ENOSPC])
def test_a_disk_that_refuses_for_a_while_costs_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: int) -> None:
    """The state is kept, told once there is room, and no error ends the supervisor."""
    run, keeper = kept_run(tmp_path)
    keeper.show("running")
    assert (run.folder / reserve.NAME).stat().st_size == reserve.SIZE

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(cause, os.strerror(cause), str(path))

    with monkeypatch.context() as broken:
        broken.setattr("toolkit.launch.keeper.replace_json", refuse)
        broken.setattr("toolkit.launch.keeper.pulse.beat", refuse)
        keeper.show("paused", step=4)
        keeper._beat = 0.0
        keeper.tick()
        with pytest.raises(OSError, match=os.strerror(cause)):
            keeper.finish("finished")
    assert run.state.name == "running"
    keeper._beat = 0.0
    keeper.tick()
    assert (run.state.name, run.state.step, run.state.message) == ("paused", 4, "")
    keeper.finish("finished")
    assert run.state.name == "finished" and not (run.folder / reserve.NAME).exists()


def test_the_reserve_makes_room_for_one_more_file(tmp_path: Path) -> None:
    calls = []

    def write() -> None:
        calls.append((tmp_path / reserve.NAME).exists())
        if calls[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert reserve.set_aside(tmp_path) and reserve.set_aside(tmp_path)
    reserve.written(tmp_path, write)
    assert calls == [True, False]
    assert not reserve.set_aside(tmp_path / "none")
