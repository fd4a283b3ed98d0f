"""The process that keeps one run: `python -P -m toolkit.launch.supervisor FOLDER [LOCK [DEVICE_LOCK...]]`.

It starts the workers, writes the state, obeys commands, and reports how it ended. It lives in a session of its own, so
that neither an interrupt nor the end of the notebook's kernel reaches it, and it imports no torch. LOCK and DEVICE_LOCK
are descriptors whose locks the launcher took for it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.launch.devices import DevicesBusy, Held, allocate, gpus, release
from toolkit.launch.failure import Ended, consequence, hang, report, signal_name
from toolkit.launch.keeper import Keeper, say
from toolkit.launch.memory import Memory, memory, memory_kills
from toolkit.launch.processes import LAUNCHER_VISIBLE, PARENT, VISIBLE, Watched, become_reaper, end_leftovers
from toolkit.launch.rank import torchrun_variables
from toolkit.launch.watch import ASK, Watch, in_collective, stacks
from toolkit.runs import control
from toolkit.runs.files import read_owned, replace_json, take_lock

MOMENT = 0.2
"""Seconds between two looks at everything."""
LOOK = 1.0
"""Seconds between two looks at memory and at whether the ranks move."""
GRACE = 1.0
"""Seconds after the first failure in which other ranks may show that they failed first."""
PATIENCE = 5.0
"""Seconds between the request to end and the kill."""
HUNG = 1.0
"""The same where the ranks hang: those that wait inside native code hear no request."""
KEEPING = 30.0
"""Seconds that a stop and keep may take when the kernel or the system ends the run."""


class Supervisor:
    """One attempt of one run."""

    def __init__(self, folder: Path, lock: int, held: tuple[int, ...] = ()) -> None:
        self.folder = folder
        self.held = Held(locks=held)
        self.launched: dict[str, Any] = json.loads(read_owned(folder / "launch.json"))
        self.ranks: int = self.launched["processes"]
        self.keeper = Keeper(folder, lock, self.launched["attempt"], self.ranks)
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: dict[int, Ended] = {}
        self.failed: list[Ended] = []
        self.stopped: dict[int, str] = {}
        """Ranks that a signal has stopped and that may go on, and its name."""
        self.stacks: dict[int, str] = {}
        """Where the ranks were that lived when others lost their connection."""
        self.hung: dict[str, Any] | None = None
        """Report of a run that hung."""
        self.ending: str | None = None
        """Why the workers are being ended: "stop" or "failure"; None while they work."""
        self.message = ""
        self.seen = 0
        self.stops = 0
        """How many stops the user has sent."""
        self.own_stop = 0
        """Number of the stop that this process itself has sent."""
        self.kill_at: float | None = None
        self.terminated = False
        self.memory_kills = memory_kills()
        self.memory: Memory | None = None
        self.watch = Watch(self.launched.get("silence"))
        kernel = None if self.launched["durable"] else self.launched["kernel"]
        self.kernel = Watched(kernel["pid"], kernel["start"]) if kernel else None
        self.wakeup, self.waker = socket.socketpair()

    def run(self) -> None:
        """Be the supervisor until the run is over."""
        self._prepare()
        if self._devices():
            self._start()
            while len(self.ended) < self.ranks:
                self._moment()
        self._finish()

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        become_reaper()
        if self.launched["attempt"] > 1:
            end_leftovers(self.folder.name, self.folder)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._terminate_asked)
        for ignored in (signal.SIGINT, signal.SIGHUP, ASK):  # The workers inherit it, until they can answer ASK.
            signal.signal(ignored, signal.SIG_IGN)

    def _devices(self) -> bool:
        """Have the devices locked, waiting in the queue for them; whether the run may start."""
        wanted = self.launched.get("queue", 0)
        while wanted and self.ending is None:
            candidates = tuple(
                device for device in gpus() if not self.launched["indices"] or device.index in self.launched["indices"]
            )
            try:
                self.held = allocate(wanted, candidates, str(self.folder))
                self.launched["devices"] = [device.name for device in self.held.devices]
                replace_json(self.folder / "launch.json", self.launched)  # The workers read it there.
                break
            except DevicesBusy as busy:
                if self.keeper.data["message"] != str(busy):
                    self.keeper.show("queued", message=str(busy))
            until = time.monotonic() + 1.0
            while time.monotonic() < until and self.ending is None:
                self._moment()
        if self.ending is None:
            self.keeper.show("starting", message=self.launched.get("message", ""), devices=self.launched["devices"])
        return self.ending is None

    def _start(self) -> None:
        for rank in range(self.ranks):
            with open(self.folder / f"rank-{rank}.log", "ab", opener=_private) as log:
                command = [self.launched["python"], "-P", "-m", "toolkit.launch.worker", str(self.folder), str(rank)]
                try:
                    self.workers[rank] = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=self.launched["directory"],
                        env=environment(self.launched, self.folder, rank),
                    )
                except OSError as error:
                    log.write(f"scalebook: {error}\n".encode())
                    self._note(rank, 127)
        self.keeper.show(processes=[os.getpid(), *(worker.pid for worker in self.workers.values())])

    # ---- every moment ------------------------------------------------------------------------------------------------

    def _moment(self) -> None:
        select.select([self.wakeup], [], [], MOMENT)
        while select.select([self.wakeup], [], [], 0)[0]:
            self.wakeup.recv(4096)
        self._reap()
        try:
            self.keeper.tick()
            self._obey()
        except FileNotFoundError:
            if self.folder.is_dir():
                raise
            self._signal(signal.SIGKILL)  # The folder was removed: nothing can be told any more.
            end_leftovers(self.folder.name, self.folder)
            os._exit(1)
        except OSError as error:  # The disk: what could not be read now is read at another moment.
            say(str(error))
        if time.monotonic() - self.watch.looked >= LOOK:
            self._watch()
        if self.kernel is not None and self.kernel.gone():
            self.kernel = None
            self._stop_and_keep("the kernel that started it ended")
        if self.terminated:
            self._stop_and_keep("the system asked the supervisor to end")
        self._look_for_failures()
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self.kill_at = None
            if self.ending is None:
                self.ending = "stop"
                self.message += f"; killed, since it did not stop within {KEEPING:.0f} s"
            self._signal(signal.SIGKILL)

    def _reap(self) -> None:
        ranks = {worker.pid: rank for rank, worker in self.workers.items()}
        stopped = dict(self.stopped)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            rank = ranks.get(pid)
            if rank is None:
                continue
            self.stopped.pop(rank, None)
            if os.WIFSTOPPED(status):
                self.stopped[rank] = signal_name(os.WSTOPSIG(status))
            elif not os.WIFCONTINUED(status):
                code = os.waitstatus_to_exitcode(status)
                self.workers[rank].returncode = code
                self._note(rank, code)
        if self.stopped != stopped and self.ending is None:
            told = [
                f"rank {rank} is stopped by {name}: kill -CONT {self.workers[rank].pid} lets it go on"
                for rank, name in sorted(self.stopped.items())
            ]
            self.keeper.show(message="; ".join(told) or self.launched.get("message", ""))

    def _watch(self) -> None:
        """Once a second: how much memory is free, and whether every rank still moves."""
        self.memory = memory()
        pids = {rank: worker.pid for rank, worker in self.workers.items() if rank not in self.ended}
        quiet = self.watch.look(pids)
        if not quiet or self.ending is not None:
            return
        self.watch.forget()
        asked = {rank: pid for rank, pid in pids.items() if rank not in self.stopped}
        dumps = stacks(self.folder, {rank: asked[rank] for rank in quiet if rank in asked})
        if any(map(in_collective, dumps.values())):
            dumps |= stacks(self.folder, {rank: pid for rank, pid in asked.items() if rank not in dumps})
            self.hung = hang(self.folder, dumps, self.stopped, self.ranks, self.launched["silence"])
            self._end("failure")

    def _note(self, rank: int, code: int) -> None:
        self.ended[rank] = Ended(rank, code, time.monotonic(), self.memory)
        if code != 0 and self.ending is None:
            self.failed.append(self.ended[rank])

    def _look_for_failures(self) -> None:
        if self.failed and self.ending is None:
            if time.monotonic() - self.failed[0].time > GRACE or len(self.ended) == self.ranks:
                if all(consequence(self.folder, ended) for ended in self.failed):
                    living = {rank: worker.pid for rank, worker in self.workers.items() if rank not in self.ended}
                    self.stacks = stacks(self.folder, living, patience=1.0) if living else {}
                self._end("failure")

    def _obey(self) -> None:
        """Look at the commands: those that the work itself does not obey are the supervisor's."""
        for command in self.keeper.commands(self.seen):
            self.seen = command["n"]
            if command["command"] == "kill":
                self._kill("killed")
            elif command["command"] == "stop":
                self.stops += command["n"] != self.own_stop
                if self.stops > 1:
                    self._kill("killed by a second stop")
                elif self.ending is None:
                    self.keeper.follow()  # It may just have said that it obeys.
                    if not self.keeper.data["controls"]:
                        self._end("stop")
            self.keeper.expect(command["command"])

    # ---- ending ------------------------------------------------------------------------------------------------------

    def _terminate_asked(self, *_: object) -> None:
        self.terminated = True  # Nothing more here: a lock may be held at this moment.

    def _stop_and_keep(self, why: str) -> None:
        if self.ending is None and self.kill_at is None:
            self.message = why
            self.kill_at = time.monotonic() + KEEPING
            if self.stops == 0:
                try:
                    self.own_stop = control.send(self.folder, "stop", save=True, why=why)
                except OSError as error:  # A full disk: then without a last checkpoint.
                    say(str(error))
                    self._end("stop")

    def _end(self, why: str) -> None:
        """Ask every worker to end, and kill what is left after a while."""
        self.ending = why
        if why == "stop" and self.workers:
            self.keeper.show("stopping")
        self._signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + (HUNG if self.hung else PATIENCE)

    def _kill(self, message: str) -> None:
        if self.ending != "failure":
            self.ending, self.message = "stop", message
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for rank, worker in self.workers.items():
            if rank not in self.ended:
                os.kill(worker.pid, number)  # Not reaped yet, so the number is still its own.

    def _finish(self) -> None:
        killed = end_leftovers(self.folder.name, self.folder)
        self._reap()
        release(self.held)  # Before the state says that it is over: who waited for that may start the next run.
        if killed:
            say(f"ended {killed} processes that the workers had left")
        if self.ending == "failure" or self.failed:
            kills = memory_kills() - self.memory_kills
            found = self.hung or report(self.folder, self.failed, self.ranks, memory_kills=kills, stacks=self.stacks)
            self._write(lambda: self.keeper.finish("failed", report=found, message=headline(found)))
        else:
            name = "stopped" if self.ending == "stop" else "finished"
            self._write(lambda: self.keeper.finish(name, message=self.message))

    def _write(self, finish: Callable[[], None]) -> None:
        """Write the end, trying for a while when the disk is full; without it the run shows as lost."""
        for _ in range(10):
            try:
                return finish()
            except OSError as error:
                say(str(error))
                if not self.folder.is_dir():
                    return None
                time.sleep(1.0)
        return None


def headline(found: dict[str, Any]) -> str:
    """One line for the list of runs."""
    what = found.get("signal") or (found.get("error") or "").partition("\n")[0][:200] or f"exit code {found.get('exit')}"
    return f"rank {found['rank']}: {what}"


def environment(launched: dict[str, Any], folder: Path, rank: int) -> dict[str, str]:
    """What a worker finds in its environment: that of the launching process, with what names this run and this rank."""
    left_out = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "MASTER_ADDR", "MASTER_PORT", LAUNCHER_VISIBLE)
    found = {name: value for name, value in os.environ.items() if name not in left_out}
    if VISIBLE in found:
        found[LAUNCHER_VISIBLE] = found[VISIBLE]
    own = {VISIBLE: ",".join(launched["devices"]), PARENT: str(os.getpid())}
    return found | torchrun_variables(launched, folder, rank) | own


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def main(arguments: list[str]) -> None:
    """Keep the run in the folder `arguments[0]`; the others are descriptors of locks that the launcher took."""
    folder, locks = Path(arguments[0]).resolve(), [int(text) for text in arguments[1:]]
    for lock in locks:
        os.set_inheritable(lock, False)
    lock = locks[0] if locks else take_lock(folder / "lock")
    if lock is None:
        raise SystemExit(f"{folder.name}: another supervisor keeps this run")
    Supervisor(folder, lock, tuple(locks[1:])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
